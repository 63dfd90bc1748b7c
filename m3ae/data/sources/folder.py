"""A folder of your own: images with a table of texts, labels or questions, or images alone.

The table is a `.csv`, `.tsv` or `.jsonl` file with the names of the images in one column: one table of any name, with
or without a column for the split, or a table per split, `train.csv`, `validation.csv` and `test.csv`. The imagefolder
convention of `datasets` is understood: `metadata.csv` or `metadata.jsonl` with `file_name`, for all images or in each
of the folders `train`, `validation` and `test`, or no table at all, and folders of images named for their label.
"""

import os
from collections import Counter
from collections.abc import Iterator
from itertools import chain
from pathlib import Path
from typing import Any, NamedTuple

import datasets

from m3ae.data.images import is_image
from m3ae.data.prepared import Rejected
from m3ae.data.splits import SPLIT_NAMES, hash_split
from m3ae.data.tables import TABLE_SUFFIXES, read_csv, read_jsonl, require_folder

FEATURES = datasets.Features(
    {
        "id": datasets.Value("string"),
        "split": datasets.Value("string"),
        "image": datasets.Image(),
        "text": datasets.List(datasets.Value("string")),
        "labels": datasets.List(datasets.Value("string")),
        "question": datasets.Value("string"),
        "answer": datasets.Value("string"),
    }
)

USUAL_NAMES = {
    "image": ("image", "file_name", "filename", "image_path", "image_file", "image_name", "img", "path", "file"),
    "text": ("text", "caption", "report", "description", "findings"),
    "label": ("label", "labels", "class", "diagnosis"),
    "question": ("question",),
    "answer": ("answer",),
    "id": ("id", "uid", "qid"),
    "split": ("split", "subset", "fold"),
    "group": ("group", "patient", "patient_id", "subject", "subject_id", "study", "study_id"),
}
SPLITS_EXPECTED = f"expected one of {', '.join(SPLIT_NAMES)}"

Record = dict[str, Any]
Row = dict[str, Any]


class Table(NamedTuple):
    """A table: its file, the split that its place stands for, if any, and its records, None where a line is broken."""

    path: Path
    split: str | None
    records: list[Record | None]


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
    """Yield one row per row of the tables, or per image where there is none.

    Columns that are not named are found by their usual names; what was found is printed. Rows without an id are called
    by their image, a second one of the same image `name-2`. Where nothing says which split a row belongs to, a hash
    decides with odds 8:1:1: of its group (such as a patient), else of its image, else of its id.

    Args:
        source: your folder.
        table: name of the table in the folder; by default the only one there.
        image_folder: folder that the names of images are relative to; by default that of the table, or `images` in it.
        image_column: column with the names of image files.
        text_column: column with a text, or, in JSON, a list of texts.
        label_column: column with labels, separated by semicolons, or, in JSON, a list of labels.
        question_column: column with a question about the image.
        answer_column: column with its answer.
        id_column: column with a name of the row that no other row has.
        split_column: column with train, validation or test.
        group_column: column with what must not be torn apart over splits, such as the patient.

    Raises:
        FileNotFoundError: the folder, the table or all images are missing.
        ValueError: several tables, or a table that is empty, damaged or lacks a column.
    """
    require_folder(source, "your folder of images, with a table or without")
    wanted = {
        "image": image_column,
        "text": text_column,
        "label": label_column,
        "question": question_column,
        "answer": answer_column,
        "id": id_column,
        "split": split_column,
        "group": group_column,
    }
    tables = _find_tables(source, table)
    if not tables:
        if named := [f"--{role}-column" for role, column in wanted.items() if column is not None]:
            raise FileNotFoundError(f"{source} holds no table ({', '.join(TABLE_SUFFIXES)}) for {', '.join(named)}")
        yield from _image_rows(source)
    names: Counter[str] = Counter()
    for found in tables:
        columns = _choose_columns(found, wanted)
        folder = _image_folder(found, columns.get("image"), image_folder)
        for number, record in enumerate(found.records, start=1):
            place = f"{found.path.name}, row {number}"
            yield _table_row(place, record, columns, folder, found.split, names)


def _image_rows(source: Path) -> Iterator[Row | Rejected]:
    """Yield a row per image file: its split is its first folder, where those are splits, its label its last one."""
    below = sorted(path.relative_to(source) for path in source.rglob("*") if not path.is_dir())
    visible = [file for file in below if not any(part.startswith(".") for part in file.parts)]
    files = [file for file in visible if is_image(source / file)]
    if not files:
        raise FileNotFoundError(
            f"{source} holds neither a table ({', '.join(TABLE_SUFFIXES)}) nor an image (.jpg, .png, .tif, .dcm, …)"
        )
    for file in sorted({*visible}.difference(files)):
        yield Rejected(file.as_posix(), "not an image", detail="neither DICOM nor of a suffix of an image format")
    has_splits = any(file.parts[0].lower() in SPLIT_NAMES for file in files)
    for file in files:
        folders = list(file.parts[:-1])
        split = SPLIT_NAMES.get(folders.pop(0).lower()) if has_splits and folders else None
        if has_splits and split is None:
            yield Rejected(file.as_posix(), "not in the folder of a split", detail=SPLITS_EXPECTED)
        else:
            yield dict.fromkeys(FEATURES) | {
                "id": file.as_posix(),
                "split": split or hash_split(file.as_posix()),
                "image": source / file,
                "labels": folders[-1:] or None,
            }


def _find_tables(source: Path, name: str | None) -> list[Table]:
    """Find the tables: the one named, metadata of an imagefolder, one for each split, or the only one there is."""
    if name is not None:
        return [_read(source / name, split=None)]
    folders = {folder: SPLIT_NAMES.get(folder.name.lower()) for folder in sorted(source.iterdir()) if folder.is_dir()}
    choices: tuple[dict[Path, str | None], ...] = (
        dict.fromkeys(_tables_in(source, "metadata.")),
        {path: split for folder, split in folders.items() if split for path in _tables_in(folder, "metadata.")},
        {path: SPLIT_NAMES.get(path.name.partition(".")[0].lower()) for path in _tables_in(source)},
    )
    for paths in choices:
        if len(paths) == 1 or (paths and all(paths.values())):
            return [_read(path, split) for path, split in paths.items()]
    if several := _tables_in(source):
        raise ValueError(
            f"{source} holds several tables ({', '.join(path.name for path in several)}): choose one with --table"
        )
    return []


def _tables_in(folder: Path, start: str = "") -> list[Path]:
    return sorted(path for path in folder.glob(f"{start}*") if path.name.lower().endswith(TABLE_SUFFIXES))


def _read(path: Path, split: str | None) -> Table:
    if ".jsonl" in path.suffixes:
        records: list[Record | None] = [record for _, record in read_jsonl(path)]
    else:
        records = [*read_csv(path, (), delimiter="\t" if ".tsv" in path.suffixes else ",")]
    if not any(records):
        raise ValueError(f"{path} is empty: expected at least one row")
    return Table(path, split, records)


def _choose_columns(table: Table, wanted: dict[str, str | None]) -> dict[str, str]:
    """Return the column of each role that the table has one for, and print the choice."""
    keys = dict.fromkeys(chain.from_iterable(record for record in table.records if record))
    there = [column for column in keys if column is not None]
    by_lower = {column.lower(): column for column in reversed(there)}
    chosen = {}
    for role, column in wanted.items():
        usual = (by_lower[name] for name in USUAL_NAMES[role] if name in by_lower)
        if column is not None and column not in there:
            raise ValueError(
                f"{table.path} has no column {column!r}: set --{role}-column to one of {', '.join(there)}"
            )
        if (found := column or next(usual, None)) is not None:
            chosen[role] = found
    if not {"image", "text"} & chosen.keys():
        raise ValueError(
            f"{table.path} has no column with a usual name for images or texts: set --image-column or --text-column "
            f"to one of {', '.join(there)}"
        )
    print(f"{table.path.name}: " + ", ".join(f"{role} from {column!r}" for role, column in chosen.items()))
    return chosen


def _image_folder(table: Table, column: str | None, given: Path | None) -> Path:
    """Return the folder in which at least one image of the table lies.

    Raises:
        FileNotFoundError: there is none.
    """
    candidates = [given] if given else [table.path.parent, table.path.parent / "images"]
    cells = [record.get(column) for record in table.records if record] if column else []
    names = [name for cell in cells if (name := _file_name(_strings(cell)))]
    for folder in candidates:
        if not names or any(os.path.isfile(folder / name) for name in names):
            return folder
    raise FileNotFoundError(
        f"{table.path}: none of its {len(names)} images is there, the first one tried is {candidates[0] / names[0]}; "
        "set --image-folder to the folder that the names are relative to, or --image-column to the column of names"
    )


def _table_row(
    place: str, record: Record | None, columns: dict[str, str], folder: Path, split: str | None, names: Counter[str]
) -> Row | Rejected:
    if record is None or None in record:
        return Rejected(place, "not a JSON object" if record is None else "more cells than columns")
    cells = {role: _strings(record.get(column)) for role, column in columns.items()}
    image = _file_name(cells.get("image", []))
    question, answer, given, group, name = (
        next(iter(cells.get(role, [])), None) for role in ("question", "answer", "split", "group", "id")
    )
    name = name or _numbered(image or place, names)
    if given and given.lower() not in SPLIT_NAMES:
        return Rejected(name, "unknown split", detail=f"{given}: {SPLITS_EXPECTED}")
    labels = [label.strip() for cell in cells.get("label", []) for label in cell.split(";") if label.strip()]
    return {
        "id": name,
        "split": SPLIT_NAMES[given.lower()] if given else split or hash_split(group or image or name),
        "image": folder / image if image else None,
        "text": cells.get("text") or None,
        "labels": labels or None,
        "question": question,
        "answer": answer,
    }


def _strings(cell: Any) -> list[str]:
    """Return the cell of a CSV file, or the value in a JSON one, as strings, none of them empty."""
    values = cell if isinstance(cell, list) else [cell]
    return [text for value in values if value is not None and (text := str(value).strip())]


def _file_name(cells: list[str]) -> str | None:
    return cells[0].replace("\\", "/") if cells else None  # tables written on Windows


def _numbered(name: str, names: Counter[str]) -> str:
    names[name] += 1
    return name if names[name] == 1 else f"{name}-{names[name]}"
