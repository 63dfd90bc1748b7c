"""What can be searched: the images of a folder, or a split of a prepared set, with their texts."""

from __future__ import annotations

import hashlib
import itertools
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from m3ae.images.files import decode_image
from m3ae.inference.rows import MANIFEST, is_prepared, read_folder

if TYPE_CHECKING:
    import pyarrow as pa


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

    names: Sequence[str]
    texts: Sequence[str]
    owners: NDArray[np.int64]
    fingerprint: str
    load: Callable[[int], Image.Image]

    def __len__(self) -> int:
        return len(self.names)

    def texts_of(self, row: int) -> list[str]:
        """Return the texts of an image."""
        first, end = np.searchsorted(self.owners, (row, row + 1), sorter=self._order)
        return [self.texts[number] for number in self._order[first:end]]

    @cached_property
    def _order(self) -> NDArray[np.int64]:
        """The numbers of the texts, those of an image side by side."""
        return np.argsort(self.owners, kind="stable")


class Column(Sequence[str]):
    """Some texts of a column of a prepared set, each of which stays on the disk until it is read."""

    def __init__(self, column: pa.ChunkedArray, is_kept: NDArray[np.bool_]) -> None:
        self._column, self._rows = column, np.flatnonzero(is_kept)

    def __len__(self) -> int:
        return len(self._rows)

    def __getitem__(self, index: Any) -> Any:
        """Return the text with a number, or the texts of a slice."""
        if isinstance(index, slice):
            return [self[number] for number in range(*index.indices(len(self)))]
        return self._column[int(self._rows[index])].as_py()


def open_collection(folder: Path, split: str = "test") -> Collection:
    """Open a folder of images, a table of images, or a split of a prepared set; see `m3ae.inference.rows`.

    Args:
        folder: A prepared or a plain folder, or a table.
        split: The split of a prepared set.

    Raises:
        FileNotFoundError: There is no such folder.
        ValueError: The folder holds no image, or the prepared set has no such split.
    """
    if is_prepared(folder):
        return _open_prepared(folder, split)
    rows, _, digest = read_folder(folder)
    images = [image for row in rows for image in [*row.images.values()][:1]]
    if not images:
        raise ValueError(f"{folder} has a table, but no image")
    with_image = itertools.count()
    owners = [next(with_image) if row.images else -1 for row in rows]
    return Collection(
        names=[row.id for row in rows if row.images],
        texts=[text for row in rows for text in row.texts],
        owners=np.repeat(np.array(owners), [len(row.texts) for row in rows]),
        fingerprint=digest,
        load=lambda number: images[number].decode(),
    )


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
    with_image = np.flatnonzero(valid).tolist()

    def load(number: int) -> Image.Image:
        row = rows[with_image[number]]
        return decode_image(next(cell["bytes"] for column in columns if (cell := row[column])), row["id"])

    return Collection(
        names=Column(rows.data.column("id"), valid),
        texts=Column(texts, filled.to_numpy()),
        owners=owners[: len(texts)][filled.to_numpy()],
        fingerprint=hashlib.sha256((folder / MANIFEST).read_bytes() + split.encode()).hexdigest(),
        load=load,
    )
