"""What sources share: columns, splits, tables split by split, and checks of their records."""

import hashlib
import re
from pathlib import Path
from typing import Any

import datasets

from m3ae.data.prepared import Rejected
from m3ae.data.tables import Broken, read_csv, require_folder, whole_number

STRING = datasets.Value("string")
STRINGS = datasets.List(STRING)
IMAGE = datasets.Image()

SPLIT_NAMES = {  # as sources spell them
    **dict.fromkeys(("train", "training"), "train"),
    **dict.fromkeys(("validation", "validate", "valid", "val", "dev", "development", "tuning"), "validation"),
    **dict.fromkeys(("test", "testing"), "test"),
}


def features(**columns: Any) -> datasets.Features:
    """Return the columns of a source: `id`, `split` and others."""
    return datasets.Features({"id": STRING, "split": STRING, **columns})


def find_split(name: str) -> str | None:
    """Return train, validation or test for the name of a split in any spelling: `Val`, `test set`."""
    letters = "".join(letter for letter in name.casefold() if letter.isalnum())
    return SPLIT_NAMES.get(letters) or SPLIT_NAMES.get(re.sub("(set|split|data)$", "", letters))


def hash_split(key: str) -> str:
    """Choose train, validation or test with odds 8:1:1, the same for a key on every machine and in every subset.

    Args:
        key: The name of a study, an article or a patient that must not be torn apart.
    """
    bucket = int(hashlib.sha256(key.encode("utf-8", "surrogatepass")).hexdigest(), 16) % 10
    return {8: "validation", 9: "test"}.get(bucket, "train")


def split_tables(source: Path, suffix: str, what: str) -> dict[Path, str]:
    """Return the tables of a folder that are called after a split, such as `valid_captions.csv`, with their splits.

    Args:
        source: The folder.
        suffix: The end of the tables' names: `_captions.csv`.
        what: A description of the folder, for the message.
    """
    require_folder(source, what)
    candidates = {source / f"{name}{suffix}": split for name, split in SPLIT_NAMES.items()}
    tables = {path: split for path, split in candidates.items() if path.is_file()}
    if not tables:
        raise FileNotFoundError(f"{source} holds no train{suffix} and no such table of another split: expected {what}")
    return tables


def read_records(
    path: Path, columns: tuple[str, ...], split: str | None, rejected: list[Rejected], column: str | None = None
) -> list[dict[str, str]]:
    """Read the records of a CSV table that have an id.

    Args:
        path: The table.
        columns: The columns that must be present, the one with the id first.
        split: The split of the whole table, if it has one.
        rejected: A list that broken lines and records without an id are added to.
        column: The column of the prepared rows that the table fills; None if its records are rows.
    """
    records: list[dict[str, str]] = []
    for number, record in enumerate(read_csv(path, columns), start=1):
        line = f"{path.name}, row {number}"
        name = whole_number((record.cells if isinstance(record, Broken) else record)[columns[0]].strip())
        if isinstance(record, Broken):
            rejected.append(Rejected(name or line, record.reason, split, column, record.detail))
        elif not name:
            rejected.append(Rejected(line, "id missing", split, column))
        else:
            records.append(record | {columns[0]: name})
    return records


def read_splits(path: Path, columns: tuple[str, ...], group: str, what: str) -> list[dict[str, str]]:
    """Read a table of splits; `split` of each record is train, validation or test.

    Args:
        path: The table.
        columns: The columns that must be present beside `split`, the one with the id first.
        group: The column whose values must not be in several splits.
        what: A word for such a value, such as study.
    """
    rejected: list[Rejected] = []
    records = read_records(path, (*columns, "split"), None, rejected)
    if rejected:
        raise ValueError(f"{path} does not give the split of {rejected[0].id}: {rejected[0].reason}")
    if unknown := {record["split"] for record in records if find_split(record["split"]) is None}:
        raise ValueError(f"{path} names the unknown splits {sorted(unknown)}: expected {', '.join(SPLIT_NAMES)}")
    splits: dict[str, str] = {}
    for record in records:
        record["split"] = find_split(record["split"]) or ""
        if (first := splits.setdefault(record[group], record["split"])) != record["split"]:
            raise ValueError(f"{path} puts {what} {record[group]} into {first} and into {record['split']}")
    return records


def check_sections(sections: str, known: Any) -> list[str]:
    """Return the names of sections that commas separate; raise ValueError for an unknown one."""
    names = [section.strip() for section in sections.split(",")]
    if unknown := [section for section in names if section not in known]:
        raise ValueError(f"unknown sections {', '.join(unknown)}: expected some of {', '.join(known)}")
    return names


def cell_texts(*cells: Any) -> list[str]:
    """Return the texts in cells of JSON; a cell holds a text, a list of texts or null."""
    values = [value for cell in cells for value in (cell if isinstance(cell, list) else [cell])]
    return [str(value) for value in values if value is not None]
