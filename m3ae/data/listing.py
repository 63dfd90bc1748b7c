"""What a source lists: rows and rejected entries, checked before any image is opened."""

import hashlib
import json
from collections.abc import Iterable
from dataclasses import asdict
from pathlib import Path
from typing import Any, NamedTuple

from m3ae.data.finish import Row, name_below
from m3ae.data.prepared import Metadata, Rejected


class Listing(NamedTuple):
    """What a source lists.

    Attributes:
        rows: by split.
        rejected: what was left out so far.
        metadata: what the source says about itself, by name.
        digest: of all entries, files by name, so that no folder is reused for another source.
    """

    rows: dict[str, list[Row]]
    rejected: list[Rejected]
    metadata: dict[str, Any]
    digest: str


def list_rows(entries: Iterable[Row | Rejected | Metadata], roots: list[Path]) -> Listing:
    """Sort a source's entries into rows by split, rejected ones, and what it says about itself."""
    rows: dict[str, list[Row]] = {}
    rejected: list[Rejected] = []
    metadata: dict[str, Any] = {}
    seen: set[str] = set()
    digest = hashlib.sha256()
    for entry in entries:
        checked = entry if isinstance(entry, Rejected | Metadata) else _check(entry, seen)
        if isinstance(checked, Rejected):
            rejected.append(checked)
        elif isinstance(checked, Metadata):
            metadata[checked.name] = checked.value
        else:
            rows.setdefault(checked["split"], []).append(checked)
            seen.add(checked["id"])
        listed = asdict(checked) if isinstance(checked, Rejected | Metadata) else checked
        text = json.dumps(listed, default=lambda cell: name_below(cell, roots) if isinstance(cell, Path) else None)
        digest.update(text.encode())
    return Listing(rows, rejected, metadata, digest.hexdigest())


def _check(row: Row, seen: set[str]) -> Row | Rejected:
    """Reject a row that no folder can hold or that was there before."""
    if broken := [column for column, cell in row.items() if not _is_utf8(cell)]:
        return Rejected(row["id"], "text not UTF-8", row["split"], detail=f"{', '.join(broken)}: save it as UTF-8")
    if row["id"].splitlines() != [row["id"]]:
        return Rejected(row["id"], "id not one line", row["split"])
    return Rejected(row["id"], "duplicate id", row["split"]) if row["id"] in seen else row


def _is_utf8(cell: Any) -> bool:
    try:
        json.dumps(cell, default=lambda _: None, ensure_ascii=False).encode()
    except UnicodeEncodeError:
        return False
    return True
