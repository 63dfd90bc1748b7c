"""What sources share: CSV tables split by split, and checks of their records."""

from pathlib import Path

from m3ae.data.prepared import Rejected
from m3ae.data.splits import SPLIT_NAMES, find_split
from m3ae.data.tables import Broken, read_csv, require_folder, whole_number


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
    path: Path, columns: tuple[str, ...], split: str | None, rejected: list[Rejected], column: str | None = None
) -> list[dict[str, str]]:
    """Read the records of a CSV table that can be told apart.

    Args:
        path: the table.
        columns: columns that must be there, the one with the id first.
        split: that the table belongs to, if to one.
        rejected: list that broken lines and records without an id are added to.
        column: column of the prepared rows that the table fills; None if its records are rows.

    Raises:
        FileNotFoundError: there is no such file.
        ValueError: the file is empty or damaged, or lacks a column.
    """
    records: list[dict[str, str]] = []
    for number, record in enumerate(read_csv(path, columns), start=1):
        place = f"{path.name}, row {number}"
        name = whole_number((record.cells if isinstance(record, Broken) else record)[columns[0]].strip())
        if isinstance(record, Broken):
            rejected.append(Rejected(name or place, record.reason, split, column, record.detail))
        elif not name:
            rejected.append(Rejected(place, "id missing", split, column))
        else:
            records.append(record | {columns[0]: name})
    return records


def read_splits(path: Path, columns: tuple[str, ...]) -> list[dict[str, str]]:
    """Read a table that says which split a row belongs to; `split` of the records is train, validation or test.

    Args:
        path: the table.
        columns: columns that must be there beside `split`, the one with the id first.

    Raises:
        FileNotFoundError: there is no such file.
        ValueError: the file is empty or damaged, lacks a column, has a broken line, or names an unknown split.
    """
    rejected: list[Rejected] = []
    records = read_records(path, (*columns, "split"), None, rejected)
    if rejected:
        raise ValueError(f"{path} does not give the split of {rejected[0].id}: {rejected[0].reason}")
    if unknown := {record["split"] for record in records if find_split(record["split"]) is None}:
        raise ValueError(f"{path} names the unknown splits {sorted(unknown)}: expected {', '.join(SPLIT_NAMES)}")
    return [record | {"split": find_split(record["split"]) or ""} for record in records]
