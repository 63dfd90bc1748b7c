"""Write docs/zoo.md from the headers of the shipped configs: `python docs/zoo.py`."""

import re
from pathlib import Path

ROOT = Path(__file__).parents[1]
PAGE = ROOT / "docs" / "zoo.md"
TITLES = {"pretrain": "Pre-training", "finetune": "Fine-tuning"}
FIELDS = ("hardware", "time", "expect")
LONGEST = {"what": 80, "time": 40, "expect": 100}  # characters of a cell, which is the first sentence of the header's
INTRODUCTION = """\
---
hide: [toc]
---

<!-- Made by `python docs/zoo.py` from the headers of configs/: change it there. -->

# Recipes

Commands take the name of a config: `m3ae train phantom`, or `m3ae train phantom_vqa model=runs/phantom/model`.
`--print-config` shows all settings. The header of each file in `configs/` has the hardware, the commands that prepare
its data, and all figures. The package ships no weights. Recipes start from each other, or from
[published weights](tutorials/published.md).
"""


def read_header(path: Path) -> dict[str, str]:
    """Return what the comment at the top of a config says: `what`, and one entry per field."""
    lines = []
    for line in path.read_text(encoding="utf-8").splitlines():
        if not line.startswith("#"):
            break
        lines.append(line[1:].rstrip())
    found = {"what": " ".join(" ".join(lines[: lines.index("")]).split())}
    for field in FIELDS:
        (text,) = re.findall(rf"^ {field} +(.*(?:\n {{5,}}.*)*)", "\n".join(lines), re.MULTILINE)
        found[field] = " ".join(text.split())
    return found


def shorten(text: str, longest: int) -> str:
    """Return the first sentence of a text, or as many of its first clauses as have a number of characters at most."""
    text = re.split(r"\. (?=[A-Z])", text)[0].rstrip(".")
    if len(text) <= longest:
        return text
    starts = [text[: match.start()] for match in re.finditer(r"[;:,] | \(", text) if match.start() < longest]
    whole = [start for start in starts if start.count("(") == start.count(")")]
    return whole[-1] if whole else f"{text[:longest].rpartition(' ')[0]} …"


def page() -> str:
    """Return the page."""
    parts = [INTRODUCTION]
    for folder, title in TITLES.items():
        parts.append(f"## {title}\n\n| config | what | time | expect |\n|---|---|---|---|")
        for path in sorted((ROOT / "configs" / folder).glob("*.yaml")):
            header = read_header(path)
            cells = [shorten(header[name], longest).replace("|", "\\|") for name, longest in LONGEST.items()]
            parts.append(f"| `{path.stem}` | {' | '.join(cells)} |")
        parts.append("")
    return "\n".join(parts)


if __name__ == "__main__":
    PAGE.write_text(page(), encoding="utf-8")
