"""What can be searched: the images of a folder, or a split of a prepared set, with their texts."""

from __future__ import annotations

import hashlib
import itertools
import sys
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

import numpy as np
from PIL import Image
from tqdm import tqdm

from m3ae.data.tables import TABLE_SUFFIXES
from m3ae.images.files import UnreadableImageError, decode_image, is_image, load_below

if TYPE_CHECKING:
    from m3ae.data.prepared import Rejected

MANIFEST = "manifest.json"


@dataclass(frozen=True)
class Collection:
    """Images and texts, some of which belong together.

    Attributes:
        names: The names of the images.
        texts: All texts.
        owners: The number of the image that each text belongs to; −1 for a text without image.
        fingerprint: A digest that differs whenever the contents do.
        load: Decodes the image with a number; raises an `UnreadableImageError` that has the image's path.
    """

    names: list[str]
    texts: list[str]
    owners: list[int]
    fingerprint: str
    load: Callable[[int], Image.Image]

    def __len__(self) -> int:
        return len(self.names)

    def texts_of(self, row: int) -> list[str]:
        """Return the texts of an image."""
        return self._texts_by_owner.get(row, [])

    @cached_property
    def _texts_by_owner(self) -> dict[int, list[str]]:
        texts: dict[int, list[str]] = {}
        for text, owner in zip(self.texts, self.owners, strict=True):
            texts.setdefault(owner, []).append(text)
        return texts


class FolderRow(NamedTuple):
    """A row of the table of a plain folder, or one of its images."""

    id: str
    image: Path | None
    texts: list[str]


def open_collection(folder: Path, split: str = "test") -> Collection:
    """Open a folder of images, or a split of a prepared set.

    The texts of a plain folder are those that `m3ae prepare folder` would read from its table; a folder without a
    table has images only. Images alone need no extra; tables and prepared sets need the extra `train`.

    Args:
        folder: A prepared or a plain folder.
        split: The split of a prepared set.

    Raises:
        FileNotFoundError: There is no such folder.
        ValueError: The folder holds no image, or the prepared set has no such split.
    """
    if not folder.is_dir():
        raise FileNotFoundError(f"folder {folder} does not exist: expected images, or a set made by m3ae prepare")
    if (folder / MANIFEST).is_file():
        return _open_prepared(folder, split)
    rows, _, digest = read_folder(folder)
    paths = [row.image for row in rows if row.image]
    if not paths:
        raise ValueError(f"{folder} has a table, but no image")
    numbers = itertools.count()
    owners = [next(numbers) if row.image else -1 for row in rows]
    return Collection(
        names=[row.id for row in rows if row.image],
        texts=[text for row in rows for text in row.texts],
        owners=[owner for owner, row in zip(owners, rows, strict=True) for _ in row.texts],
        fingerprint=digest,
        load=lambda number: load_below(paths[number], [folder], str(paths[number])),
    )


def read_folder(folder: Path) -> tuple[list[FolderRow], list[Rejected], str]:
    """Return the rows of a plain folder, the rejected rows of its tables, and a digest of its tables and images.

    Raises:
        ValueError: The folder holds neither a table nor an image, or it is a prepared set that is not finished.
    """
    tables = sorted(path for path in folder.rglob("*") if path.name.lower().endswith(TABLE_SUFFIXES))
    tables += sorted(folder.glob("*.json"))  # a list of records is a table, too
    rejected: list[Rejected] = []
    if tables:
        from m3ae.data.prepared import Rejected
        from m3ae.data.shards import is_progress
        from m3ae.data.sources.folder import rows as table_rows

        if any(table.parent == folder and is_progress(table) for table in tables):
            raise ValueError(f"{folder} is a prepared set that is not finished: run the same m3ae prepare again")
        records = [*table_rows(folder)]
        rejected = [row for row in records if isinstance(row, Rejected)]
        kept = [row for row in records if not isinstance(row, Rejected)]
        rows = [FolderRow(row["id"], row["image"], row["text"] or []) for row in kept]
        for reason, number in Counter(row.reason for row in rejected).items():
            first = next(row.id for row in rejected if row.reason == reason)
            report(f"{number} of the rows: {reason}, such as {first}")
    else:
        rows = [FolderRow(path.relative_to(folder).as_posix(), path, []) for path in sorted(_images_below(folder))]
        if not rows:
            raise ValueError(f"{folder} holds no image (.jpg, .png, .tif, .dcm, …)")
    return rows, rejected, _digest([*tables, *(row.image for row in rows if row.image and row.image.is_file())])


def report(problem: UnreadableImageError | str) -> None:
    """Print on the standard error, without disturbing a progress bar, what is left out."""
    tqdm.write(f"left out: {problem}", file=sys.stderr)


def _open_prepared(folder: Path, split: str) -> Collection:
    import pyarrow as pa
    import pyarrow.compute as pc

    from m3ae.data.prepared import image_columns, load_split

    rows = load_split(folder, split)
    columns = image_columns(rows.features)
    if not columns:
        raise ValueError(f"{folder} has no column of images; it has {', '.join(rows.features)}")
    valid = np.logical_or.reduce([rows.data.column(column).is_valid().to_numpy() for column in columns])
    owners = np.where(valid, valid.cumsum() - 1, -1)
    texts = rows.data.column("text") if "text" in rows.features else pa.chunked_array([[]], pa.string())
    if pa.types.is_list(texts.type):
        owners = owners.repeat(pc.list_value_length(texts).fill_null(0).to_numpy())
        texts = pc.list_flatten(texts)
    filled = pc.greater(pc.binary_length(texts), 0).fill_null(False)
    with_image = valid.nonzero()[0].tolist()

    def load(number: int) -> Image.Image:
        row = rows[with_image[number]]
        return decode_image(next(cell["bytes"] for column in columns if (cell := row[column])), row["id"])

    return Collection(
        names=rows.data.column("id").filter(pa.array(valid)).to_pylist(),
        texts=texts.filter(filled).to_pylist(),
        owners=owners[: len(texts)][filled.to_numpy()].tolist(),
        fingerprint=hashlib.sha256((folder / MANIFEST).read_bytes() + split.encode()).hexdigest(),
        load=load,
    )


def _images_below(folder: Path) -> Iterator[Path]:
    for path in folder.rglob("*"):
        hidden = any(name.startswith(".") for name in path.relative_to(folder).parts)
        if not path.is_dir() and not hidden and is_image(path):
            yield path


def _digest(files: list[Path]) -> str:
    """Return a digest of the names, sizes and times of files."""
    lines = (f"{file}\0{(stat := file.stat()).st_size}\0{stat.st_mtime_ns}\n" for file in files)
    return hashlib.sha256("".join(lines).encode("utf-8", "surrogateescape")).hexdigest()
