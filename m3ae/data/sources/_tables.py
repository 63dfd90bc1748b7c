"""The tables of a folder: which of its files they are, and their records."""

from pathlib import Path
from typing import Any, NamedTuple

from m3ae.data.sources._columns import Table
from m3ae.data.sources._common import find_split
from m3ae.data.sources._splits import say
from m3ae.data.tables import EXCEL, TABLE_SUFFIXES, Broken, read_csv, read_excel, read_json, read_jsonl

UNREAD_SUFFIXES = (".xls", ".ods", ".parquet")


class Reading(NamedTuple):
    """How text files are read; None is found out."""

    delimiter: str | None = None
    encoding: str | None = None


def find_tables(source: Path, files: list[Path], name: str | None, reading: Reading) -> list[Table]:
    """Return the named table, metadata of an imagefolder, a table for each split, or the only table."""
    if name is not None:
        if named := read_tables(source / name, None, reading):
            return named
        raise ValueError(f"{source / name} holds no list of records: expected [{{...}}, ...]")
    every = [file for file in files if file.name.lower().endswith(TABLE_SUFFIXES)]
    tables = [file for file in every if not file.name.lower().endswith(EXCEL)] or every
    top = [file for file in tables if file.parent == source]
    metadata = [file for file in tables if file.name.startswith("metadata.")]
    documents = [file for file in files if file.parent == source and file.name.lower().endswith(".json")]
    choices: tuple[dict[Path, str | None], ...] = (
        {file: None for file in metadata if file in top},
        {file: split for file in metadata if file.parent.parent == source and (split := find_split(file.parent.name))},
        {file: _split_of(file, source) for file in top or tables},
        {file: _split_of(file, source) for file in documents if not tables},
    )
    for paths in choices:
        is_whole = len(paths) == 1 or (paths and all(paths.values()))
        if is_whole and (chosen := [t for path, split in paths.items() for t in read_tables(path, split, reading)]):
            return chosen
    if tables:
        names = ", ".join(file.relative_to(source).as_posix() for file in tables[:10])
        raise ValueError(f"{source} holds several tables ({names}): choose one with --table")
    unread = [file for file in files if file.parent == source and file.suffix.lower() in UNREAD_SUFFIXES]
    return [table for file in unread for table in read_tables(file, None, reading)]


def _split_of(file: Path, source: Path) -> str | None:
    """Return the split in the name of a table, or in the name of its folder below the source."""
    return find_split(file.name.partition(".")[0]) or (find_split(file.parent.name) if file.parent != source else None)


def read_tables(path: Path, split: str | None, reading: Reading) -> list[Table]:
    """Read a table; each list of records in a JSON file is one, and a file without any has none.

    Raises:
        ValueError: The file is no table, has no row that can be read, or is in an encoding that is not known.
    """
    name = path.name.lower()
    if name.endswith(UNREAD_SUFFIXES):
        raise ValueError(f"{path} cannot be read: save it as CSV, or move it out of the folder")
    if name.endswith(EXCEL):
        tables = _excel_tables(path, split)
    elif name.endswith((".json", ".json.gz")):
        tables = _json_tables(path, split, reading.encoding)
    elif ".jsonl" in name:
        tables = [Table(path, path.name, split, [record for _, record in read_jsonl(path, reading.encoding)])]
    else:
        tables = [Table(path, path.name, split, [*read_csv(path, (), *reading)])]
    for table in tables:
        if not table.columns():
            broken = {record.reason for record in table.records if isinstance(record, Broken)}
            raise ValueError(f"{path} holds no row that can be read: {', '.join(sorted(broken)) or 'it is empty'}")
        undecoded = sum("\\udc" in str(record) for record in table.records)  # as `repr` writes a lone surrogate
        if undecoded > 1 and 10 * undecoded >= len(table.records):
            raise ValueError(
                f"{path}: {undecoded} of {len(table.records)} rows are not UTF-8: name the encoding with --encoding, "
                "such as cp1251, gb18030 or shift_jis"
            )
    return tables


def _excel_tables(path: Path, split: str | None) -> list[Table]:
    """Return the sheets that are called after splits, or the first one."""
    sheets = read_excel(path)
    if not sheets:
        raise ValueError(f"{path} cannot be read: no sheet has a header and a row")
    if all(map(find_split, sheets)):
        return [Table(path, f"{path.name} {title}", find_split(title), [*rows]) for title, rows in sheets.items()]
    first, *others = sheets
    if others:
        say(f"{path.name}: read from sheet {first!r}; not used: {', '.join(map(repr, others))}")
    return [Table(path, path.name, split, [*sheets[first]])]


def _json_tables(path: Path, split: str | None, encoding: str | None) -> list[Table]:
    """Return a list of records, one for each split, or the only one in an object; records may have ids as keys."""
    content = read_json(path, encoding)
    lists: list[tuple[str, Any]] = [("", content)]
    if isinstance(content, dict):
        by_split = [(key, value) for key, value in content.items() if find_split(key) and value]
        unnamed = [("", value) for value in content.values() if isinstance(value, list)]
        lists = by_split or (unnamed if len(unnamed) == 1 else lists)
    tables = []
    for key, records in lists:
        if isinstance(records, dict) and all(isinstance(record, dict) for record in records.values()):
            records = [{"id": name} | record for name, record in records.items()]
        if not isinstance(records, list) or not any(isinstance(record, dict) for record in records):
            return []
        records = [record if isinstance(record, dict) else Broken("not a JSON object", None, {}) for record in records]
        tables.append(Table(path, f"{path.name} {key}".strip(), find_split(key) or split, records))
    return tables
