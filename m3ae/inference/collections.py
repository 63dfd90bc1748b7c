"""What can be searched: the images of a folder, or a split of a prepared set, with their texts."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING

from PIL import Image

from m3ae.data.images import UnreadableImageError, decode_image, is_image, load_image
from m3ae.data.tables import TABLE_SUFFIXES

if TYPE_CHECKING:
    import datasets

MANIFEST = "manifest.json"


@dataclass(frozen=True)
class Collection:
    """Images and texts, of which some belong together.

    Attributes:
        names: Of the images.
        sources: Of the images: files, or rows of `rows`.
        texts: All texts.
        owners: The place in `names` of the image that each text belongs to, −1 if it has none.
        fingerprint: Differs whenever the contents do.
        rows: Of a prepared set.
        columns: The columns of `rows` that hold images, of which the first that is there counts.
    """

    names: list[str]
    sources: list[Path | int]
    texts: list[str]
    owners: list[int]
    fingerprint: str
    rows: datasets.Dataset | None = None
    columns: list[str] = field(default_factory=list)

    def __len__(self) -> int:
        return len(self.names)

    def load(self, place: int) -> Image.Image:
        """Decode an image.

        Raises:
            UnreadableImageError: It cannot be read; the error has its path.
        """
        source = self.sources[place]
        if isinstance(source, Path):
            try:
                return load_image(source)
            except UnreadableImageError as error:
                detail = error.detail.replace(source.name, str(source), 1)
                raise UnreadableImageError(error.reason, detail) from error
        assert self.rows is not None
        row = self.rows[source]
        content = next(cell["bytes"] for column in self.columns if (cell := row[column]))
        return decode_image(content, row["id"])

    def texts_of(self, place: int) -> list[str]:
        """Return the texts of an image."""
        return [text for text, owner in zip(self.texts, self.owners, strict=True) if owner == place]


def open_collection(folder: Path, split: str = "test") -> Collection:
    """Open a folder of images, or a split of a prepared set.

    The texts of a plain folder are those that `m3ae prepare folder` would find in its table; a folder without a table
    has images only. Neither DICOM files nor tables are needed for images alone, but tables and prepared sets need the
    extra `train`.

    Args:
        folder: Prepared or plain.
        split: Of a prepared set.

    Raises:
        FileNotFoundError: There is no such folder.
        ValueError: It holds no image, or the prepared set has no such split.
    """
    if not folder.is_dir():
        raise FileNotFoundError(f"folder {folder} does not exist: expected images, or a set made by m3ae prepare")
    if (folder / MANIFEST).is_file():
        return _open_prepared(folder, split)
    if any(path.name.lower().endswith(TABLE_SUFFIXES) for path in folder.rglob("*")):
        return _open_table(folder)
    files = sorted(_images_below(folder))
    if not files:
        raise ValueError(f"{folder} holds no image (.jpg, .png, .tif, .dcm, …)")
    names = [file.relative_to(folder).as_posix() for file in files]
    return Collection(names, [*files], [], [], _digest(files))


def _open_table(folder: Path) -> Collection:
    from m3ae.data.prepared import Rejected
    from m3ae.data.sources.folder import rows

    found = Collection([], [], [], [], "")
    for row in rows(folder):
        if isinstance(row, Rejected):
            continue
        image: Path | None = row["image"]
        if image is not None and image.is_file():
            found.names.append(row["id"])
            found.sources.append(image)
        owner = len(found) - 1 if image is not None and image.is_file() else -1
        found.texts.extend(row["text"] or [])
        found.owners.extend([owner] * len(row["text"] or []))
    if not found.names:
        raise ValueError(f"{folder} has a table, but none of its images is there")
    tables = [path for path in folder.rglob("*") if path.name.lower().endswith(TABLE_SUFFIXES)]
    digest = _digest([*sorted(tables), *(path for path in found.sources if isinstance(path, Path))])
    return Collection(found.names, found.sources, found.texts, found.owners, digest)


def _open_prepared(folder: Path, split: str) -> Collection:
    from m3ae.data.pairs import PairColumns
    from m3ae.data.prepared import image_columns, load_split

    rows = load_split(folder, split)
    columns = image_columns(rows.features)
    if not columns:
        raise ValueError(f"{folder} has no column of images; it has {', '.join(rows.features)}")
    reader = PairColumns.of((), "text" if "text" in rows.features else None)
    valid = [rows.data.column(column).is_valid().to_pylist() for column in columns]  # reads no image
    sources: list[Path | int] = [row for row, cells in enumerate(zip(*valid, strict=True)) if any(cells)]
    places = {row: place for place, row in enumerate(sources)}
    texts, owners = [], []
    for row, cells in enumerate(rows.select_columns([*reader.texts, "id"])):
        own = reader.texts_of(cells) if reader.texts else []
        texts.extend(own)
        owners.extend([places.get(row, -1)] * len(own))
    ids = rows["id"][:]
    digest = hashlib.sha256((folder / MANIFEST).read_bytes() + split.encode()).hexdigest()
    return Collection([ids[row] for row in places], sources, texts, owners, digest, rows, columns)


def _images_below(folder: Path) -> Iterator[Path]:
    for path in folder.rglob("*"):
        hidden = any(part.startswith(".") for part in path.relative_to(folder).parts)
        if path.is_file() and not hidden and is_image(path):
            yield path


def _digest(files: list[Path]) -> str:
    """Return a digest of the names, sizes and times of files."""
    lines = (f"{file}\0{(found := file.stat()).st_size}\0{found.st_mtime_ns}\n" for file in files)
    return hashlib.sha256("".join(lines).encode("utf-8", "surrogateescape")).hexdigest()
