"""A folder of your own: images with a table of texts, labels or questions, or images alone.

The table is a `.csv`, `.tsv` or `.jsonl` file with the names of the images in one column: one table of any name, with
or without a column for the split, or a table per split, `train.csv`, `validation.csv` and `test.csv`. The imagefolder
convention of `datasets` is understood: `metadata.csv` or `metadata.jsonl` with `file_name`, for all images or in each
of the folders `train`, `validation` and `test`, or no table at all, and folders of images named for their label. Files
whose name starts with a dot are left alone.
"""

import os
import re
import sys
from collections import Counter, defaultdict
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

from m3ae.data.prepared import Rejected
from m3ae.data.sources._columns import ImageFiles, ImageTree, Table, choose_columns, file_name, strings
from m3ae.data.sources._common import IMAGE, SPLIT_NAMES, STRING, STRINGS, features, find_split, hash_split
from m3ae.data.tables import (
    HIDDEN,
    TABLE_SUFFIXES,
    Broken,
    is_nested,
    printable,
    read_csv,
    read_json,
    read_jsonl,
    require_folder,
    whole_number,
)
from m3ae.images.files import is_image

FEATURES = features(image=IMAGE, text=STRINGS, labels=STRINGS, question=STRING, answer=STRING)

ROLES = ("image", "text", "label", "question", "answer", "id", "split", "group")  # of the columns of a table
ONE_VALUE = ("question", "answer", "id", "split", "group")
UNREAD_SUFFIXES = (".xlsx", ".xls", ".ods", ".parquet")
SPLITS_EXPECTED = f"expected one of {', '.join(SPLIT_NAMES)}"

Row = dict[str, Any]


class Unsplit(NamedTuple):
    """A row whose split may be None."""

    row: Row
    group: str | None  # the patient, study or the like
    key: str  # of what must not be torn apart over splits: the group, else the image, else the row


Entry = Unsplit | Rejected


def rows(
    source: Path,
    *,
    table: str | None = None,
    image_folder: Path | None = None,
    image_column: str | None = None,
    text_column: str | None = None,
    label_column: str | None = None,
    question_column: str | None = None,
    answer_column: str | None = None,
    id_column: str | None = None,
    split_column: str | None = None,
    group_column: str | None = None,
) -> Iterator[Row | Rejected]:
    """Yield one row per row of the tables, or per image in a folder without tables.

    Columns that are not named are recognised by their usual names; the standard error names the chosen ones. Rows
    without an id are called by their image, a second one of an image `name-2`; several images in one cell are as many
    rows. A row without a split goes where other rows of its group (such as a patient) are, else where a hash of its
    group, its image or its id decides, with odds 8:1:1.

    Args:
        source: your folder.
        table: name of the table in the folder; by default the only one.
        image_folder: folder that the names of images are relative to; by default that of the table, or `images` in it.
        image_column: column with the names of image files; neither case nor a missing suffix matters.
        text_column: column with a text, or, in JSON, a list of texts.
        label_column: column with labels, separated by semicolons, or, in JSON, a list of labels.
        question_column: column with a question about the image.
        answer_column: column with its answer.
        id_column: column with a unique name of the row.
        split_column: column with train, validation or test.
        group_column: column with the patient or another group that must not be torn apart over splits.
    """
    require_folder(source, "your folder of images, with a table or without")
    columns = (image_column, text_column, label_column, question_column, answer_column)
    wanted = dict(zip(ROLES, (*columns, id_column, split_column, group_column), strict=True))
    files = _visible_files(source)
    if tables := _find_tables(source, files, table):
        entries = _rows_of_tables(source, files, tables, image_folder, wanted)
        _report_unused(source, {*files} - {table.path for table in tables}, entries)
    elif named := [f"--{role}-column" for role, column in wanted.items() if column is not None]:
        raise FileNotFoundError(f"{source} holds no table ({', '.join(TABLE_SUFFIXES)}) for {', '.join(named)}")
    else:
        entries = _image_rows(source, files)
    _report_groups(source, entries)
    yield from _split(entries)


def _visible_files(source: Path) -> list[Path]:
    """Return all files below a folder, in order, except those whose name or folder starts with a dot."""
    paths = []
    for folder, folders, names in os.walk(source):
        folders[:] = [name for name in folders if not name.startswith(HIDDEN)]
        paths += [os.path.join(folder, name) for name in names if not name.startswith(HIDDEN)]
    return [*map(Path, sorted(paths, key=lambda path: path.replace(os.sep, "\0")))]  # as paths are sorted, but faster


def _rows_of_tables(
    source: Path,
    files: list[Path],
    tables: list[Table],
    image_folder: Path | None,
    wanted: dict[str, str | None],
) -> list[Entry]:
    has_images = bool(image_folder) or any(map(is_image, files))
    names: Counter[str] = Counter()
    entries: list[Entry] = []
    for table in tables:
        usual = [folder / below for folder in (table.path.parent, source) for below in ("", "images")]
        candidates = [ImageFiles(folder) for folder in ([image_folder] if image_folder else dict.fromkeys(usual))]
        candidates += [] if image_folder else [ImageTree(source, files)]
        columns = choose_columns(table, wanted, candidates, has_images)
        images = _image_folder(table, columns.get("image"), candidates)
        entries += _table_rows(table, columns, images, names)
    return entries


def _image_rows(source: Path, visible: list[Path]) -> list[Entry]:
    """Return a row per image file, whose split is the first folder that not all files share, and label the last."""
    files = [file for file in visible if is_image(file)]
    if not files:
        raise FileNotFoundError(
            f"{source} holds neither a table ({', '.join(TABLE_SUFFIXES)}) nor an image (.jpg, .png, .tif, .dcm, …)"
        )
    detail = "neither DICOM nor of a suffix of an image format"
    others = sorted({*visible}.difference(files))
    entries: list[Entry] = [Rejected(str(file.relative_to(source)), "not an image", detail=detail) for file in others]
    below = [file.relative_to(source) for file in files]
    above = Path(os.path.commonpath([file.parent for file in below])).parts
    depth = next((depth for depth, name in enumerate(above) if find_split(name)), len(above))
    has_splits = any(find_split(file.parts[depth]) for file in below)
    for file in below:
        folders = list(file.parts[depth if has_splits else 0 : -1])
        split = find_split(folders.pop(0)) if has_splits and folders else None
        name = file.as_posix()
        if has_splits and split is None:
            entries.append(Rejected(name, "not in the folder of a split", detail=SPLITS_EXPECTED))
        else:
            row = {"id": name, "split": split, "image": source / file, "labels": folders[-1:] or None}
            entries.append(Unsplit(dict.fromkeys(FEATURES) | row, None, name))
    return entries


def _find_tables(source: Path, files: list[Path], name: str | None) -> list[Table]:
    """Return the named table, metadata of an imagefolder, a table for each split, or the only table."""
    if name is not None:
        if named := _read(source / name, None):
            return named
        raise ValueError(f"{source / name} holds no list of records: expected [{{...}}, ...]")
    tables = [file for file in files if file.name.lower().endswith(TABLE_SUFFIXES)]
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
        if is_whole and (chosen := [table for path, split in paths.items() for table in _read(path, split)]):
            return chosen
    if tables:
        names = ", ".join(file.relative_to(source).as_posix() for file in tables[:10])
        raise ValueError(f"{source} holds several tables ({names}): choose one with --table")
    unread = [file for file in files if file.parent == source and file.suffix.lower() in UNREAD_SUFFIXES]
    return [table for file in unread for table in _read(file, None)]


def _split_of(file: Path, source: Path) -> str | None:
    """Return the split in the name of a table, or in the name of its folder below the source."""
    return find_split(file.name.partition(".")[0]) or (find_split(file.parent.name) if file.parent != source else None)


def _read(path: Path, split: str | None) -> list[Table]:
    """Read a table; each list of records in a JSON file is one, and a file without any has none."""
    name = path.name.lower()
    if name.endswith(UNREAD_SUFFIXES):
        raise ValueError(f"{path} cannot be read: save it as CSV, or move it out of the folder")
    if name.endswith((".json", ".json.gz")):
        tables = _json_tables(path, split)
    else:
        records = [record for _, record in read_jsonl(path)] if ".jsonl" in name else [*read_csv(path)]
        tables = [Table(path, path.name, split, records)]
    for table in tables:
        if not table.columns():
            broken = {record.reason for record in table.records if isinstance(record, Broken)}
            raise ValueError(f"{path} holds no row that can be read: {', '.join(sorted(broken)) or 'it is empty'}")
    return tables


def _json_tables(path: Path, split: str | None) -> list[Table]:
    """Return a list of records, one for each split, or the only one in an object; records may have ids as keys."""
    content = read_json(path)
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


def _image_folder(table: Table, column: str | None, candidates: list[ImageFiles]) -> ImageFiles:
    """Return the first folder that holds at least one image of the table."""
    names = [*map(file_name, table.cells(column))] if column else []
    for images in candidates:
        if not names or any(map(images.find, names)):
            return images
    raise FileNotFoundError(
        f"{table.path}: none of its {len(names)} images exists, the first one tried is "
        f"{candidates[0].folder / names[0]}; set --image-folder to the folder that the names are relative to, or "
        "--image-column to the column of names"
    )


def _table_rows(table: Table, columns: dict[str, str], images: ImageFiles, names: Counter[str]) -> Iterator[Entry]:
    for number, record in enumerate(table.records, start=1):
        name = f"{table.name}, row {number}"
        if isinstance(record, Broken):
            yield Rejected(name, record.reason, detail=record.detail)
        elif swallowed := _swallowed(record, images):
            yield Rejected(name, "quotation mark not closed", detail=f"a cell of several lines holds {swallowed}")
        else:
            yield from _record_rows(name, record, columns, images, table.split, names)


def _record_rows(
    line: str, record: Row, columns: dict[str, str], images: ImageFiles, split: str | None, names: Counter[str]
) -> Iterator[Entry]:
    """Yield a row, or a row for each of several images in a record; `line` names the record."""
    values = {role: record.get(column) for role, column in columns.items()}
    if nested := [columns[role] for role, value in values.items() if is_nested(value)]:
        yield Rejected(line, "object in a cell", detail=", ".join(nested))
        return
    cells = {role: strings(value) for role, value in values.items()}
    if several := [columns[role] for role in ONE_VALUE if len(cells.get(role, [])) > 1]:
        yield Rejected(line, "several values in a cell", detail=", ".join(several))
        return
    one = {role: next(iter(cells.get(role, [])), None) for role in ONE_VALUE}
    files: list[str | None] = [images.find(cell) or file_name(cell) for cell in cells.get("image", [])]
    files = files or [None]
    labels = [label.strip() for cell in cells.get("label", []) for label in re.split("[;|]", cell) if label.strip()]
    key = one["group"] or files[0]
    for number, file in enumerate(files, start=1):
        name = one["id"] or _numbered(file or line, names)
        if one["id"] and number > 1:
            name = f"{name}-{number}"
        if one["split"] and not find_split(one["split"]):
            yield Rejected(name, "unknown split", detail=f"{one['split']}: {SPLITS_EXPECTED}")
            return
        row = {
            "id": name,
            "split": find_split(one["split"]) if one["split"] else split,
            "image": images.folder / file if file else None,
            "text": cells.get("text") or None,
            "labels": labels or None,
            "question": one["question"],
            "answer": one["answer"],
        }
        yield Unsplit(row, one["group"], key or name)


def _swallowed(record: Row, images: ImageFiles) -> str | None:
    """Return an image in a cell of several lines, whose quotation mark was closed in the line of another row."""
    cells = [cell for cell in record.values() if isinstance(cell, str) and not cell.isprintable()]
    cells = [cell for cell in cells if re.search(r"\S[\r\n]+\s*\S", cell)]
    names = [name for cell in cells for name in re.split('[,;|\t\r\n"]', cell)]
    return next((name for name in names if is_image(images.folder / name) and images.find(name)), None)


def _numbered(name: str, names: Counter[str]) -> str:
    names[name] += 1
    return name if names[name] == 1 else f"{name}-{names[name]}"


def _report_unused(source: Path, files: set[Path], entries: list[Entry]) -> None:
    """Print on standard error the kinds of files that no row has."""
    by_kind: dict[str, list[str]] = defaultdict(list)
    for file in sorted(files - {entry.row["image"] for entry in entries if isinstance(entry, Unsplit)}):
        by_kind[file.suffix.lower()].append(file.relative_to(source).as_posix())
    if by_kind:
        kinds = [f"{len(names)} {kind}, such as {names[0]}" for kind, names in by_kind.items()]
        _say(f"{source}: not used: {'; '.join(kinds)}")


def _report_groups(source: Path, entries: list[Entry]) -> None:
    """Print on standard error how many rows have no group."""
    groups = [entry.group for entry in entries if isinstance(entry, Unsplit)]
    if without := groups.count(None):
        _say(
            f"{source}: {without} of {len(groups)} rows name no patient, study or other group, and may tear one over "
            "several splits: name its column with --group-column if groups have several rows"
        )


def _split(entries: list[Entry]) -> Iterator[Row | Rejected]:
    """Yield the rows with their splits, and name groups and images in several splits on standard error."""
    splits: dict[str, list[str]] = defaultdict(list)
    for entry in entries:
        if isinstance(entry, Unsplit) and (split := entry.row["split"]):
            splits[whole_number(entry.key)].append(split)
    torn = {key: dict.fromkeys(several) for key, several in splits.items() if len(set(several)) > 1}
    for key, several in [*torn.items()][:1]:
        _say(f"{len(torn)} groups or images are in several splits, such as {key} in {' and '.join(several)}")
    for entry in entries:
        if isinstance(entry, Rejected):
            yield entry
        else:
            key = whole_number(entry.key)
            splits[key] = splits[key] or [hash_split(entry.key)]
            yield entry.row | {"split": entry.row["split"] or splits[key][0]}


def _say(line: str) -> None:
    print(printable(line), file=sys.stderr)
