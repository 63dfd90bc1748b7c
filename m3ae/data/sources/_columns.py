"""The role of each column of a table: by its name in any spelling, and by the contents of its cells."""

import os
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

# lower-case letters and digits alone; the first name that a table has counts
USUAL_NAMES = {
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
) -> dict[str, str]:
    """Return the column of each role that a table has one for, and print the choice on standard error.

    A column that is not named is recognised by its usual name. The column of the split counts only if a cell names a
    split. The column of the images may have any name if half of its cells name images.

    Args:
        table: The table.
        wanted: The roles, with the column that the user named for each, or None.
        folders: The folders that names of images may be relative to.
        has_images: Whether the source has any image file.
    """
    columns = table.columns()
    names = {role: _spelt(columns, [name] if name else USUAL_NAMES[role]) for role, name in wanted.items()}
    choices = ", ".join(columns)
    for role, name in wanted.items():
        if name is not None and not names[role]:
            raise ValueError(f"{table.path} has no column {name!r}: set --{role}-column to one of {choices}")
    ends = tuple(f"{who}{number}" for who in PEOPLE for number in NUMBERS)  # anonymized_patient_id
    names["group"] = names["group"] or [column for column in columns if _letters(column).endswith(ends)]
    no_splits = [column for column in names["split"] if not any(map(find_split, table.cells(column)))]
    if wanted["split"] is not None and no_splits:
        raise ValueError(
            f"{table.path}: no cell of {wanted['split']!r} names a split: expected {', '.join(SPLIT_NAMES)}"
        )
    names["split"] = [column for column in names["split"] if column not in no_splits]
    if wanted["image"] is None:
        taken = {names[role][0] for role in names.keys() - {"image", "id"} if names[role]}
        names["image"] = _image_columns(
            table, names["image"], [name for name in columns if name not in taken], folders
        )
    chosen = {role: names[role][0] for role in wanted if names[role]}
    if "image" not in chosen and has_images:
        raise ValueError(
            f"{table.path} has no column that names the images of its folder: set --image-column to one of {choices}, "
            "or move the table to a folder of its own if its rows have no image"
        )
    if not {"image", "text"} & chosen.keys():
        raise ValueError(
            f"{table.path} has no column with a usual name for images or texts: set --image-column or --text-column "
            f"to one of {choices}"
        )
    unused = [repr(column) for column in columns if column not in chosen.values()]
    lines = [", ".join(f"{role} from {column!r}" for role, column in chosen.items())]
    lines += [f"not used: {', '.join(unused)}"] * bool(unused)
    lines += [f"{column!r} names no split, and was not used as one" for column in no_splits]
    for line in lines:
        print(printable(f"{table.name}: {line}"), file=sys.stderr)
    return chosen


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


def _image_columns(table: Table, usual: list[str], others: list[str], folders: Sequence[ImageFiles]) -> list[str]:
    """Return the columns that hold names of images: those of a usual name, or the only other one."""

    def named(column: str) -> Iterator[bool]:
        return (
            is_image(folders[0].folder / cell) or any(folder.find(cell) for folder in folders)
            for cell in table.cells(column)
        )

    if chosen := [column for column in usual if any(named(column))]:
        return chosen
    for column in others:
        images = [*islice(named(column), ROWS_READ)]
        if sum(images) >= max(1, len(images) / 2):
            chosen.append(column)
    if len(chosen) > 1:
        raise ValueError(f"{table.path}: {', '.join(chosen)} all name images: set --image-column to one of them")
    return chosen or [column for column in usual if any(table.cells(column))]
