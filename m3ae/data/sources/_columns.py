"""The role of each column of a table: by its name in any spelling, and by the contents of its cells."""

import os
import re
import sys
from collections import defaultdict
from collections.abc import Iterable, Iterator, Mapping, Sequence
from functools import cached_property
from itertools import islice
from pathlib import Path, PurePosixPath
from typing import Any, NamedTuple
from unicodedata import normalize

from m3ae.data.sources._common import SPLIT_NAMES, find_split
from m3ae.data.tables import Broken, printable
from m3ae.images.files import is_image

PEOPLE = ("patient", "subject", "participant", "person")
WITH_NUMBER = (
    *("pat", "pt", "subj", "study", "case", "exam"),
    *("examination", "accession", "encounter", "visit", "series"),
)
NUMBERS = ("id", "uid", "instanceuid", "no", "nr", "num", "number", "code", "key", "name", "identifier", "index")

ROLES = ("image", "text", "label", "number", "array", "question", "answer", "id", "split", "group")
ONE_VALUE = ("question", "answer", "id", "split", "group")
PREPARED_NAMES = {"image": "image", "text": "text", "label": "labels", "number": "numbers", "array": "array"}
JOINED = ("text", "number")  # of which several columns make one cell
ARRAYS = (".npy", ".nii", ".nii.gz")

# lower-case letters and digits alone; the first name that a table has counts
USUAL_NAMES: dict[str, tuple[str, ...]] = {
    "image": ("image", "filename", "imagepath", "imagefile", "imagename", "img", "path", "file"),
    "text": ("text", "caption", "report", "description", "findings", "impression", "reporttext", "radiologyreport"),
    "label": ("label", "labels", "class", "diagnosis", "findinglabels"),
    "question": ("question",),
    "answer": ("answer",),
    "id": ("id", "uid", "qid"),
    "split": ("split", "subset", "fold", "partition", "set", "datasplit", "phase"),
    "group": (
        "group",
        *(f"{who}{number}" for who in PEOPLE for number in ("", *NUMBERS)),
        *("mrn", "pid", "study"),
        *(f"{what}{number}" for what in WITH_NUMBER for number in NUMBERS),
    ),
}
ROWS_READ = 1000  # of a table, to find out whether a column of no usual name holds the names of images

Record = dict[str, Any]
Chosen = dict[str, dict[str, str]]  # role → column of a table → column of the prepared rows


class Table(NamedTuple):
    """A table of a folder."""

    path: Path
    name: str  # in the ids of its rows
    split: str | None  # in the name of its file or folder
    records: list[Record | Broken]

    def columns(self) -> list[str]:
        """Return the names of all columns that a record has."""
        records = (record for record in self.records if not isinstance(record, Broken))
        return [*dict.fromkeys(column for record in records for column in record)]

    def cells(self, column: str) -> Iterable[str]:
        """Yield the strings in the cells of a column."""
        for record in self.records:
            if not isinstance(record, Broken):
                yield from strings(record.get(column))


def strings(cell: Any) -> list[str]:
    """Return the cell of a CSV file, or the value in a JSON one, as strings, none of them empty."""
    values = cell if isinstance(cell, list) else [cell]
    return [text for value in values if value is not None and value == value and (text := str(value).strip())]


def file_name(cell: str) -> str:
    """Return the name of a file as this system writes it: tables may come from Windows."""
    return cell.replace("\\", "/")


class ImageFiles:
    """The image files of a folder by names as tables write them: case, accents and a missing suffix do not matter."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self._names: dict[str, set[str]] = {}
        self._similar: dict[str, dict[str, list[Path]]] = {}

    def find(self, name: str) -> str | None:
        """Return the name of the file of this name, or of the only one that differs in case, accents or suffix."""
        name = file_name(name)
        below, last = os.path.split(name)  # not by pathlib: this is done for every row
        if below not in self._names:
            self._names[below] = _file_names(self.folder / below)
        names = self._names[below]
        if last in names:
            return name
        if below not in self._similar:
            self._similar[below] = _by_name(self.folder / below / other for other in names)
        candidates = self._similar[below].get(_plain(last), [])
        return os.path.join(below, candidates[0].name) if len(candidates) == 1 else None


class ImageTree(ImageFiles):
    """The files in a folder and below it by their names alone: tables may name folders of another machine."""

    def __init__(self, folder: Path, files: Sequence[Path]) -> None:
        super().__init__(folder)
        self._files = files

    def find(self, name: str) -> str | None:
        """Return the path below the folder of the only file of this name, whatever folder the name says."""
        candidates = self._tree.get(_plain(PurePosixPath(file_name(name)).name), [])
        return candidates[0].relative_to(self.folder).as_posix() if len(candidates) == 1 else None

    @cached_property
    def _tree(self) -> dict[str, list[Path]]:
        return _by_name(self._files)


def _by_name(files: Iterable[Path]) -> dict[str, list[Path]]:
    """Return files by their plain names, those of images with their suffix and without."""
    by_name: dict[str, list[Path]] = defaultdict(list)
    for file in files:
        for key in {_plain(file.name), _plain(file.stem if is_image(file) else file.name)}:
            by_name[key].append(file)
    return by_name


def _file_names(folder: Path) -> set[str]:
    """Return the names of the files in a folder, none if it does not exist."""
    try:
        with os.scandir(folder) as entries:
            return {entry.name for entry in entries if entry.is_file()}
    except (OSError, ValueError):  # ValueError: a name that no folder can have
        return set()


def _plain(name: str) -> str:
    return normalize("NFC", name).casefold()


def choose_columns(
    table: Table, wanted: Mapping[str, str | None], folders: Sequence[ImageFiles], has_images: bool
) -> Chosen:
    """Return the columns of each role that a table has some for, and print the choice on standard error.

    A column that is not named is recognised by its usual name. The column of the split counts only if a cell names a
    split. Columns of images and arrays may have any name if half of their cells name such files.

    Args:
        table: The table.
        wanted: The roles, with what the user named for each: `COLUMN`, `NAME=COLUMN`, several with commas, or None.
        folders: The folders that names of files may be relative to.
        has_images: Whether the source has any image file.
    """
    columns = table.columns()
    named = {role: _named_columns(table, role, option) for role, option in wanted.items() if option}
    names = {role: [*named.get(role, {})] or _spelt(columns, USUAL_NAMES.get(role, ())) for role in wanted}
    ends = tuple(f"{who}{number}" for who in PEOPLE for number in NUMBERS)  # anonymized_patient_id
    names["group"] = names["group"] or [column for column in columns if _letters(column).endswith(ends)]
    no_splits = [column for column in names["split"] if not any(map(find_split, table.cells(column)))]
    if "split" in named and no_splits:
        raise ValueError(
            f"{table.path}: no cell of {wanted['split']!r} names a split: expected {', '.join(SPLIT_NAMES)}"
        )
    names["split"] = [column for column in names["split"] if column not in no_splits]
    taken = {column for several in named.values() for column in several}
    taken |= {names[role][0] for role in names.keys() - {"image", "array", "id"} if names[role]}
    others = [column for column in columns if column not in taken]
    for role in {"image", "array"} & names.keys() - named.keys():
        usual = [column for column in names[role] if column not in taken]
        names[role] = _file_columns(table, usual, others, folders, arrays=role == "array")
    chosen = {role: _prepared_names(role, names[role], named.get(role)) for role in wanted if names[role]}
    _check_choice(table, chosen, has_images)
    _report_choice(table, chosen, no_splits)
    return chosen


def _named_columns(table: Table, role: str, option: str) -> dict[str, str]:
    """Return the columns that an option such as `front=Frontal,Lateral` names, each with its new name or ""."""
    columns, chosen = table.columns(), dict[str, str]()
    for part in [option] if _spelt(columns, [option]) else option.split(","):
        name, _, column = part.rpartition("=")
        if spelt := _spelt(columns, [part.strip()]):
            name = ""
        elif not (spelt := _spelt(columns, [column.strip()])):
            raise ValueError(
                f"{table.path} has no column {column.strip()!r}: set --{role}-column to one of {', '.join(columns)}"
            )
        chosen[spelt[0]] = name.strip()
    if role in ONE_VALUE and (len(chosen) > 1 or any(chosen.values())):
        raise ValueError(f"--{role}-column: got {option!r}, expected the name of one column")
    return chosen


def _prepared_names(role: str, columns: Sequence[str], named: Mapping[str, str] | None) -> dict[str, str]:
    """Return columns with their names in the prepared rows: of several those that they have, in plain letters."""
    if named is None and role not in ("image", "array"):
        columns = columns[:1]
    default = PREPARED_NAMES.get(role, role)
    alone = len(columns) == 1 or role in JOINED
    plain = {column: re.sub(r"\W+", "_", column.casefold()).strip("_") or role for column in columns}
    return {column: (named or {}).get(column) or (default if alone else plain[column]) for column in columns}


def _check_choice(table: Table, chosen: Chosen, has_images: bool) -> None:
    choices = ", ".join(table.columns())
    if "image" not in chosen and "array" not in chosen and has_images:  # slices of DICOM are images, too
        raise ValueError(
            f"{table.path} has no column that names the images of its folder: set --image-column to one of {choices}, "
            "or move the table to a folder of its own if its rows have no image"
        )
    if not {"image", "text", "number", "array"} & chosen.keys():
        raise ValueError(
            f"{table.path} has no column with a usual name for images or texts: set --image-column or --text-column "
            f"to one of {choices}"
        )
    roles: dict[str, list[str]] = {name: [name] for name in ("id", "split", "question", "answer")}
    for role in [role for role in PREPARED_NAMES if role in chosen]:
        names = chosen[role].values()
        for name in dict.fromkeys(names) if role in JOINED else names:
            roles.setdefault(name, []).append(role)
    if clashes := [f"{name} ({', '.join(several)})" for name, several in roles.items() if len(several) > 1]:
        raise ValueError(
            f"{table.path}: several prepared columns would be called {', '.join(clashes)}: name them otherwise, as in "
            "--image-column front=COLUMN"
        )


def _report_choice(table: Table, chosen: Chosen, no_splits: Sequence[str]) -> None:
    used = {column for columns in chosen.values() for column in columns}
    unused = [repr(column) for column in table.columns() if column not in used]
    lines = []
    for role, columns in chosen.items():
        usual = {*columns.values()} == {PREPARED_NAMES.get(role, role)}
        pairs = [repr(column) + ("" if usual else f" as {name}") for column, name in columns.items()]
        lines.append(f"{role} from {' and '.join(pairs)}")
    lines = [", ".join(lines)]
    only_images = not {"text", "label", "number", "array", "question"} & chosen.keys()
    advice = "; --label-column, --text-column or --number-column takes one beside the images" * only_images
    lines += [f"not used: {', '.join(unused)}{advice}"] * bool(unused)
    lines += [f"{column!r} names no split, and was not used as one" for column in no_splits]
    for line in lines:
        print(printable(f"{table.name}: {line}"), file=sys.stderr)


def _spelt(columns: Iterable[str], names: Iterable[str]) -> list[str]:
    """Return the columns that have one of some names, in the order of the names; the exact spelling goes first."""
    by_letters: dict[str, str] = {}
    for column in columns:
        by_letters.setdefault(_letters(column), column)
    by_letters |= {column: column for column in columns}
    spelt = (by_letters.get(name) or by_letters.get(_letters(name) or name) for name in names)
    return [*dict.fromkeys(column for column in spelt if column is not None)]


def _letters(name: str) -> str:
    return "".join(letter for letter in name.casefold() if letter.isalnum())


def _file_columns(
    table: Table, usual: list[str], others: list[str], folders: Sequence[ImageFiles], *, arrays: bool
) -> list[str]:
    """Return the columns that hold names of images or of arrays: the first of a usual name, or all others."""

    def named(column: str) -> Iterator[bool]:
        for cell in table.cells(column):
            if cell.lower().endswith(ARRAYS) or arrays:
                yield arrays and cell.lower().endswith(ARRAYS) and any(folder.find(cell) for folder in folders)
            else:
                yield is_image(folders[0].folder / cell) or any(
                    is_image(folder.folder / name) for folder in folders if (name := folder.find(cell))
                )

    if chosen := next(([column] for column in usual if any(named(column))), None):
        return chosen
    chosen = []
    for column in others:
        files = [*islice(named(column), ROWS_READ)]
        if sum(files) >= max(1, len(files) / 2):
            chosen.append(column)
    return chosen or [column for column in usual if any(table.cells(column))][:1]
