"""What mkdocs does beside its own: pages that are files of the repository's top folder."""

from pathlib import Path
from typing import Any

ROOT = Path(__file__).parents[1]
PAGES = {"contributing.md": "CONTRIBUTING.md", "changelog.md": "CHANGELOG.md"}


def on_page_markdown(markdown: str, page: Any, **_: Any) -> str:
    """Replace a page by the file that it stands for, its links being relative to docs/."""
    if (name := PAGES.get(page.file.src_uri)) is None:
        return markdown
    text = (ROOT / name).read_text(encoding="utf-8").replace("](docs/", "](")
    for own, other in PAGES.items():
        text = text.replace(f"]({other})", f"]({own})")
    return text
