"""A folder of your own: images with a table of texts, labels, numbers or questions, or images alone.

The table is a `.csv`, `.tsv`, `.jsonl` or `.xlsx` file with the names of the images in a column: one table of any
name, with or without a column for the split, or a table per split, `train.csv`, `validation.csv` and `test.csv`. The
imagefolder convention of `datasets` is understood: `metadata.csv` or `metadata.jsonl` with `file_name`, for all images
or in each of the folders `train`, `validation` and `test`, or no table at all, and folders of images named for their
label. Files whose name starts with a dot are left alone.
"""

import os
import re
from collections import Counter, defaultdict
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, Literal

import datasets
import numpy as np

from m3ae.data.prepared import Metadata, PreparedColumns, Rejected, load_manifest
from m3ae.data.sources._columns import (
    ONE_VALUE,
    ROLES,
    Chosen,
    ImageFiles,
    ImageTree,
    Table,
    choose_columns,
    file_name,
    strings,
)
from m3ae.data.sources._common import IMAGE, SPLIT_NAMES, STRING, STRINGS, features, find_split
from m3ae.data.sources._splits import Entry, Row, Unsplit, fix_splits, say, split_rows
from m3ae.data.sources._tables import Reading, find_tables, read_tables
from m3ae.data.tables import TABLE_SUFFIXES, Broken, is_nested, require_folder, visible_files
from m3ae.images.files import is_image
from m3ae.images.volumes import VolumeFile, stored_shape

FEATURES = features(image=IMAGE, text=STRINGS, labels=STRINGS, question=STRING, answer=STRING)

NUMBER = datasets.Value("float32")
SPLITS_EXPECTED = f"expected one of {', '.join(SPLIT_NAMES)}"


def rows(
    source: Path,
    *,
    table: str | None = None,
    delimiter: str | None = None,
    encoding: str | None = None,
    image_folder: Path | None = None,
    image_column: str | None = None,
    text_column: str | None = None,
    label_column: str | None = None,
    number_column: str | None = None,
    array_column: str | None = None,
    question_column: str | None = None,
    answer_column: str | None = None,
    id_column: str | None = None,
    split_column: str | None = None,
    group_column: str | None = None,
    split: Literal["hash", "stratified", "none"] | None = None,
    split_file: Path | None = None,
    scale_from: Path | None = None,
    volume_size: int = 64,
    volume_spacing: float | None = None,
) -> Iterator[Row | Rejected | Metadata | PreparedColumns]:
    """Yield one row per row of the tables, or per image in a folder without tables.

    Columns that are not named are recognised by their usual names; the standard error names the chosen ones. The
    options of columns take several, separated by commas, each with a name for the prepared column before it if it is
    to have one: `front=Frontal,side=Lateral`. Rows without an id are called by their image, a second one of an image
    `name-2`; several images in one cell are as many rows. A row without a split goes where other rows of its group
    (such as a patient) are, else where `split` says.

    Args:
        source: your folder.
        table: name of the table in the folder; by default the only one.
        delimiter: what separates the cells of a table, tab for a tab; found out by default.
        encoding: encoding of a table, such as cp1252; found out by default.
        image_folder: folder that the names of images are relative to; by default that of the table, or `images` in it.
        image_column: columns with the names of image files, the views of a study; neither case nor a missing suffix
            matters.
        text_column: columns with a text, or, in JSON, a list of texts; several are joined.
        label_column: columns with labels, separated by semicolons, or, in JSON, a list of labels.
        number_column: columns with a number, such as of a laboratory; together they are one vector.
        array_column: columns with the names of .npy files: vectors, sequences of vectors, or volumes; or of NIfTI
            files, or of folders with a DICOM series.
        question_column: column with a question about the image.
        answer_column: column with its answer.
        id_column: column with a unique name of the row.
        split_column: column with train, validation or test.
        group_column: column with the patient or another group that must not be torn apart over splits.
        split: split of rows without one, 8:1:1: by a hash of group, image or id, the default; or stratified by label;
            or none for new data, all of which is for testing.
        split_file: table with a column of splits and one of ids, images or groups; rows that it lacks are left out.
        scale_from: prepared folder whose means and deviations of numbers count; by default those of the training rows.
        volume_size: voxels a side of the cubic grid that volumes are resampled to, in 8 bits.
        volume_spacing: millimetres between these voxels; by default each volume just fits.
    """
    require_folder(source, "your folder of images, with a table or without")
    columns = (image_column, text_column, label_column, number_column, array_column, question_column, answer_column)
    wanted = dict(zip(ROLES, (*columns, id_column, split_column, group_column), strict=True))
    if split == "none" and (split_column or split_file):
        raise ValueError("--split none: got a column or a file of splits, too, expected one of them")
    if (separator := {"tab": "\t", r"\t": "\t"}.get(delimiter or "", delimiter)) and len(separator) > 1:
        raise ValueError(f"--delimiter: got {delimiter!r}, expected one character, or tab")
    reading = Reading(separator, encoding)
    files = visible_files(source)
    names: dict[str, list[str]] = {}  # of each prepared column of numbers
    if tables := find_tables(source, files, table, reading):
        parts = [_open_table(source, files, table, image_folder, wanted) for table in tables]
        prepared, names = _prepared_columns([columns for _, columns, _ in parts])
        numbered: Counter[str] = Counter()
        entries = [entry for part in parts for entry in _table_rows(*part, prepared, numbered)]
        _report_unused(source, {*files} - {table.path for table in tables} - {split_file}, entries)
        del parts, tables  # as large as the entries
        if prepared != FEATURES:
            yield PreparedColumns(_with_shapes(prepared, entries, volume_size, volume_spacing))
    elif named := [f"--{role}-column" for role, column in wanted.items() if column is not None]:
        raise FileNotFoundError(f"{source} holds no table ({', '.join(TABLE_SUFFIXES)}) for {', '.join(named)}")
    else:
        entries = _image_rows(source, files)
    if split_file is not None:
        records = [record for table in read_tables(split_file, None, reading) for record in table.records]
        entries = fix_splits(entries, [record for record in records if isinstance(record, dict)], split_file)
    finished = [*split_rows(source, entries, split or "hash")]
    del entries
    if names:
        yield _scale(finished, names, scale_from)
    finished.reverse()
    while finished:  # what is yielded is packed, and not held twice
        yield finished.pop()


def _open_table(
    source: Path, files: list[Path], table: Table, image_folder: Path | None, wanted: Mapping[str, str | None]
) -> tuple[Table, Chosen, dict[str, ImageFiles]]:
    """Return a table, its chosen columns, and the folder of the files that each of its columns of files names."""
    usual = [folder / below for folder in (table.path.parent, source) for below in ("", "images")]
    candidates = [ImageFiles(folder) for folder in ([image_folder] if image_folder else dict.fromkeys(usual))]
    candidates += [] if image_folder else [ImageTree(source, files)]
    columns = choose_columns(table, wanted, candidates, bool(image_folder) or any(map(is_image, files)))
    named = [column for role in ("image", "array") for column in columns.get(role, {})]
    return table, columns, {column: _image_folder(table, column, candidates) for column in named}


def _prepared_columns(tables: Sequence[Chosen]) -> tuple[datasets.Features, dict[str, list[str]]]:
    """Return the prepared columns, and the columns of the table behind each column of numbers."""
    by_role: dict[str, dict[str, list[str]]] = {}
    for chosen in tables:
        for role, columns in chosen.items():
            for column, name in columns.items():
                several = by_role.setdefault(role, {}).setdefault(name, [])
                several += [column] * (column not in several)
    names = {role: [*columns] for role, columns in by_role.items()}
    numbers = by_role.get("number", {})
    prepared = features(
        **dict.fromkeys(names.get("image", ["image"]), IMAGE),
        text=STRINGS,
        **{name: STRING for name in names.get("text", []) if name != "text"},
        **dict.fromkeys(names.get("label", ["labels"]), STRINGS),
        question=STRING,
        answer=STRING,
        **{name: datasets.List(NUMBER, length=len(columns)) for name, columns in numbers.items()},
        **dict.fromkeys(names.get("array", []), datasets.List(NUMBER)),
    )
    return prepared, numbers


def _with_shapes(
    prepared: datasets.Features, entries: Sequence[Entry], side: int, spacing: float | None
) -> datasets.Features:
    """Return the columns with the most frequent shape of the arrays in each; files of volumes are to be resampled.

    Raises:
        ValueError: Arrays of a column have one number, or more than three dimensions.
    """
    for name in [name for name, feature in prepared.items() if feature == datasets.List(NUMBER)]:
        files = [entry.row[name] for entry in entries if isinstance(entry, Unsplit) and entry.row[name]]
        (shape, _), *_ = Counter(filter(None, map(stored_shape, files))).most_common(1) or [((), 0)]
        feature: Any = NUMBER
        if len(shape) == 3:
            feature, shape = datasets.Value("uint8"), (1, side, side, side)
            for row in (entry.row for entry in entries if isinstance(entry, Unsplit) and entry.row[name]):
                row[name] = VolumeFile(row[name], side, spacing)
        elif len(shape) not in (1, 2):
            raise ValueError(
                f"{files[0].parent if files else name}: arrays of column {name} have the shape {shape}, expected (F,) "
                "or (T, F) or, of volumes, (D, H, W); images belong into image files"
            )
        for length in reversed(shape):
            feature = datasets.List(feature, length=length)
        prepared = datasets.Features(prepared | {name: feature})
    return prepared


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


def _image_folder(table: Table, column: str | None, candidates: list[ImageFiles]) -> ImageFiles:
    """Return the first folder that holds at least one image of the table."""
    names = [*map(file_name, table.cells(column))] if column else []
    for images in candidates:
        if not names or any(images.find(name) or (images.folder / name).is_dir() for name in names):
            return images
    raise FileNotFoundError(
        f"{table.path}: none of its {len(names)} images exists, the first one tried is "
        f"{candidates[0].folder / names[0]}; set --image-folder to the folder that the names are relative to, or "
        "--image-column to the column of names"
    )


def _table_rows(
    table: Table,
    columns: Chosen,
    folders: Mapping[str, ImageFiles],
    prepared: datasets.Features,
    names: Counter[str],
) -> Iterator[Entry]:
    images = [folders[column] for column in columns.get("image", {})]
    for number, record in enumerate(table.records, start=1):
        name = f"{table.name}, row {number}"
        if isinstance(record, Broken):
            yield Rejected(name, record.reason, detail=record.detail)
        elif swallowed := next(filter(None, (_swallowed(record, folder) for folder in images)), None):
            yield Rejected(name, "quotation mark not closed", detail=f"a cell of several lines holds {swallowed}")
        else:
            blank = dict.fromkeys(prepared) | {"split": table.split}
            yield from _record_rows(name, record, columns, folders, blank, names)


def _record_rows(
    line: str,
    record: Row,
    columns: Chosen,
    folders: Mapping[str, ImageFiles],
    blank: Row,
    names: Counter[str],
) -> Iterator[Entry]:
    """Yield a row, or a row for each of several images in a record; `line` names the record."""
    values = {(role, column): record.get(column) for role, chosen in columns.items() for column in chosen}
    if nested := [column for (_, column), value in values.items() if is_nested(value)]:
        yield Rejected(line, "object in a cell", detail=", ".join(nested))
        return
    cells = {key: strings(value) for key, value in values.items()}
    views = columns.get("image", {})
    single = (*ONE_VALUE, "array", "number", *(["image"] if len(views) > 1 else []))
    if several := [column for (role, column), cell in cells.items() if role in single and len(cell) > 1]:
        yield Rejected(line, "several values in a cell", detail=", ".join(several))
        return
    one = {role: cell[0] for (role, _), cell in cells.items() if role in ONE_VALUE and cell}
    files = {  # by column
        column: [folders[column].find(cell) or file_name(cell) for cell in cells[role, column]]
        for role in ("image", "array")
        for column in columns.get(role, {})
    }
    first = next((files[column][0] for column in views if files[column]), None)
    group, id = one.get("group"), one.get("id")
    row = blank | _texts(columns.get("text", {}), cells) | _numbers(columns.get("number", {}), cells)
    row |= {role: one.get(role) for role in ("question", "answer")}
    labels = {name: _labels(cells["label", column]) for column, name in columns.get("label", {}).items()}
    row |= {name: several or None for name, several in labels.items()}
    for role in ("image", "array"):
        for column, name in columns.get(role, {}).items():
            row[name] = folders[column].folder / files[column][0] if files[column] else None
    copies = files[next(iter(views))] if len(views) == 1 else []
    for number, file in enumerate(copies or [first], start=1):
        row["id"] = id or _numbered(file or line, names)
        if id and number > 1:
            row["id"] = f"{id}-{number}"
        if (split := one.get("split")) and not find_split(split):
            yield Rejected(row["id"], "unknown split", detail=f"{split}: {SPLITS_EXPECTED}")
            return
        row["split"] = find_split(split) if split else blank["split"]
        for column, name in views.items() if copies else ():
            row[name] = folders[column].folder / copies[number - 1]
        every = tuple(label for several in labels.values() for label in several)
        yield Unsplit(dict(row), group, group or first or row["id"], every)


def _texts(columns: Mapping[str, str], cells: Mapping[tuple[str, str], list[str]]) -> Row:
    """Return the texts of a row: lists of one column as they are, several columns of a name joined."""
    by_name: dict[str, list[str]] = defaultdict(list)
    for column, name in columns.items():
        by_name[name] += cells["text", column]
    joined = {name: " ".join(" ".join(texts).split()) or None for name, texts in by_name.items()}
    if [*columns.values()].count("text") == 1:
        return joined | {"text": by_name["text"] or None}
    return joined | {"text": [joined["text"]] if joined.get("text") else None}


def _labels(cell: Sequence[str]) -> list[str]:
    return [label.strip() for labels in cell for label in re.split("[;|]", labels) if label.strip()]


def _numbers(columns: Mapping[str, str], cells: Mapping[tuple[str, str], list[str]]) -> Row:
    """Return the vectors of a row, with NaN where a cell holds no number; None where none does."""
    vectors: dict[str, list[float]] = defaultdict(list)
    for column, name in columns.items():
        text = (cells["number", column] or ["nan"])[0]
        try:
            value = float(text if "." in text else text.replace(",", "."))
        except ValueError:
            value = float("nan")
        vectors[name].append(value if np.isfinite(value) else float("nan"))
    return {name: None if np.isnan(values).all() else values for name, values in vectors.items()}


def _scale(rows: Sequence[Any], names: Mapping[str, list[str]], scale_from: Path | None) -> Metadata:
    """Standardise each number of the rows, drop incomplete vectors, and return means and deviations by column.

    Raises:
        ValueError: There are no training rows and no other folder to take means and deviations from, or that folder
            has other numbers.
    """
    saved = load_manifest(scale_from).metadata.get("numbers", {}) if scale_from else {}
    scales: dict[str, dict[str, list[Any]]] = {}
    for name, columns in names.items():
        filled = [row for row in rows if isinstance(row, dict) and row[name] is not None]
        train = np.array([row[name] for row in filled if row["split"] == "train"], np.float64)
        if scale_from is not None and saved.get(name, {}).get("columns") != columns:
            raise ValueError(f"{scale_from} has other numbers than {name} of {', '.join(columns)}: it has {saved}")
        if scale_from is None and (len(train) == 0 or np.isnan(train).all(0).any()):
            raise ValueError(
                f"{', '.join(columns)}: the training rows lack one of these numbers, so that nothing says how to "
                "scale it; set --scale-from to the prepared folder of training, or leave the column out"
            )
        scales[name] = saved.get(name) or {
            "columns": columns,
            "mean": np.nanmean(train, 0).tolist(),
            "deviation": [deviation or 1.0 for deviation in np.nanstd(train, 0).tolist()],
        }
        for row in filled:
            values = (np.array(row[name]) - scales[name]["mean"]) / scales[name]["deviation"]
            row[name] = None if np.isnan(values).any() else values.tolist()
        if incomplete := sum(row[name] is None for row in filled):
            say(f"{incomplete} rows lack some of {', '.join(columns)}, and have no {name}")
    return Metadata("numbers", scales)


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
    rows = [entry.row for entry in entries if isinstance(entry, Unsplit)]
    used = {cell for row in rows for cell in row.values() if isinstance(cell, Path)}
    for file in sorted(file for file in files - used if used.isdisjoint(file.parents)):
        by_kind[file.suffix.lower()].append(file.relative_to(source).as_posix())
    if by_kind:
        kinds = [f"{len(names)} {kind}, such as {names[0]}" for kind, names in by_kind.items()]
        say(f"{source}: not used: {'; '.join(kinds)}")
