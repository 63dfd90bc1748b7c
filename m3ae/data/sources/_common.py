"""What the sources of captioned figures share: CSV tables split by split, and checks of their records."""

from pathlib import Path

from m3ae.data.prepared import Rejected
from m3ae.data.splits import SPLIT_NAMES
from m3ae.data.tables import read_csv, require_folder


def split_tables(source: Path, suffix: str, what: str) -> dict[Path, str]:
    """Find one table per split, whatever the split is called in its file name.

    Args:
        source: the folder.
        suffix: what follows the name of the split: `_captions.csv`.
        what: what the folder should be, for the message.

    Returns:
        The split of every table.

    Raises:
        FileNotFoundError: the folder is missing or holds no such table.
    """
    require_folder(source, what)
    candidates = {source / f"{name}{suffix}": split for name, split in SPLIT_NAMES.items()}
    tables = {path: split for path, split in candidates.items() if path.is_file()}
    if not tables:
        raise FileNotFoundError(f"{source} holds no train{suffix} and no such table of another split: expected {what}")
    return tables


def read_records(
    path: Path, columns: tuple[str, ...], split: str, rejected: list[Rejected], column: str | None = None
) -> list[dict[str, str]]:
    """Read the records of a CSV table that can be told apart.

    Args:
        path: the table.
        columns: columns that must be there, the one with the id first.
        split: that the table belongs to.
        rejected: list that records without an id, or with more cells than the header, are added to.
        column: column of the prepared rows that the table fills; None if its records are rows.

    Raises:
        FileNotFoundError: there is no such file.
        ValueError: the file is empty or damaged, or lacks a column.
    """
    records = []
    for number, record in enumerate(read_csv(path, columns), start=1):
        name = record[columns[0]].strip()
        if None in record:
            rejected.append(Rejected(name or f"{path.name}, row {number}", "more cells than columns", split, column))
        elif not name:
            rejected.append(Rejected(f"{path.name}, row {number}", "id missing", split, column))
        else:
            records.append(record | {columns[0]: name})
    return records
