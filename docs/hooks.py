"""Additions to mkdocs: pages that are files of the repository's top folder."""

import re
from pathlib import Path
from typing import Any

ROOT = Path(__file__).parents[1]
PAGES = {"contributing.md": "CONTRIBUTING.md", "changelog.md": "CHANGELOG.md"}


def on_page_markdown(markdown: str, page: Any, **_: Any) -> str:
    """Keep "%" beside its number; replace a page by the file that it stands for, with links relative to docs/."""
    markdown = re.sub(r"(?<=\d) %", "\N{NO-BREAK SPACE}%", markdown)
    if (name := PAGES.get(page.file.src_uri)) is None:
        return markdown
    text = (ROOT / name).read_text(encoding="utf-8").replace("](docs/", "](")
    for own, other in PAGES.items():
        text = text.replace(f"]({other})", f"]({own})")
    return text
