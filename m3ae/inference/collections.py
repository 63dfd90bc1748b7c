"""What can be searched: the images of a folder, or a split of a prepared set, with their texts."""

from __future__ import annotations

import hashlib
import itertools
from collections.abc import Callable
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

import numpy as np
from PIL import Image

from m3ae.images.files import decode_image
from m3ae.inference.rows import MANIFEST, is_prepared, read_folder


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
        owners=[owner for owner, row in zip(owners, rows, strict=True) for _ in row.texts],
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
