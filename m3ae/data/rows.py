"""Rows of a source: listed and checked before any image is opened, then finished in worker processes."""

import hashlib
import json
import os
import pickle
from collections import defaultdict
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from functools import lru_cache, partial
from pathlib import Path
from typing import Any, NamedTuple

import datasets
import numpy as np
from PIL import Image

from m3ae.data.prepared import Metadata, PreparedColumns, Rejected
from m3ae.images.files import UnreadableImageError, encode_image, load_below, path_below
from m3ae.words import count_words

Row = dict[str, Any]
Outcome = tuple[Row | None, list[Rejected]]  # the finished row, if it is kept, and everything that was left out of it
ImageCell = Path | bytes | Callable[[], Image.Image]

ROWS_PER_TASK = 16
ROWS_PER_PACK = 1024


class PackedRows:
    """Rows of a source, of which full packs are pickled: a tenth of the memory of dictionaries."""

    def __init__(self) -> None:
        self._packs: list[bytes] = []
        self._last: list[Row] = []

    def __len__(self) -> int:
        return len(self._packs) * ROWS_PER_PACK + len(self._last)

    def append(self, row: Row) -> None:
        """Add a row."""
        self._last.append(row)
        if len(self._last) == ROWS_PER_PACK:
            self._packs.append(pickle.dumps(self._last))
            self._last = []

    def between(self, start: int, stop: int) -> list[Row]:
        """Return the rows from number `start` to before number `stop`."""
        first, end = start // ROWS_PER_PACK, -(-stop // ROWS_PER_PACK)
        rows = [row for pack in self._packs[first:end] for row in pickle.loads(pack)]
        rows += self._last if end > len(self._packs) else []
        return rows[start - first * ROWS_PER_PACK : stop - first * ROWS_PER_PACK]


class Listing(NamedTuple):
    """The entries of a source."""

    rows: dict[str, PackedRows]  # by split
    rejected: list[Rejected]
    metadata: dict[str, Any]
    digest: str  # of all entries, with files by name: no folder is reused for another source
    features: datasets.Features | None  # the columns, if the source has other ones than usual


def list_rows(entries: Iterable[Row | Rejected | Metadata | PreparedColumns], roots: list[Path]) -> Listing:
    """Sort a source's entries into rows by split, rejected rows and metadata; `roots` are the folders it reads."""
    features: datasets.Features | None = None
    encoder = json.JSONEncoder(default=lambda cell: name_below(cell, roots) if isinstance(cell, Path) else None)
    rows: dict[str, PackedRows] = defaultdict(PackedRows)
    rejected: list[Rejected] = []
    metadata: dict[str, Any] = {}
    seen: set[str] = set()
    digest = hashlib.sha256()
    for entry in entries:
        if isinstance(entry, PreparedColumns):
            features = entry.features
            continue
        text = ""
        if isinstance(entry, dict):
            text = encoder.encode(entry)
            entry = _check(entry, seen, may_be_broken="\\ud" in text)
        if isinstance(entry, Rejected):
            rejected.append(entry)
        elif isinstance(entry, Metadata):
            metadata[entry.name] = entry.value
        else:
            rows[entry["split"]].append(entry)
            seen.add(entry["id"])
        digest.update((text if isinstance(entry, dict) else encoder.encode(asdict(entry))).encode())
    return Listing(dict(rows), rejected, metadata, digest.hexdigest(), features)


def _check(row: Row, seen: set[str], may_be_broken: bool) -> Row | Rejected:
    """Reject a row that no folder can hold, or whose id another row has."""
    if may_be_broken and (broken := [column for column, cell in row.items() if not _is_utf8(cell)]):
        return Rejected(row["id"], "text not UTF-8", row["split"], detail=f"{', '.join(broken)}: save it as UTF-8")
    if row["id"].splitlines() != [row["id"]]:
        return Rejected(row["id"], "id not one line", row["split"])
    return Rejected(row["id"], "duplicate id", row["split"]) if row["id"] in seen else row


def _is_utf8(cell: Any) -> bool:
    try:
        json.dumps(cell, default=lambda _: None, ensure_ascii=False).encode()
    except UnicodeEncodeError:
        return False
    return True


def name_below(path: Path, roots: Sequence[Path]) -> str:
    """Return a path relative to the first root above it: results do not depend on the position of the root."""
    text = str(path)
    for root in roots:
        if text.startswith(prefix := f"{root}{os.sep}"):
            return text[len(prefix) :]
        if path.is_relative_to(root):
            return path.relative_to(root).as_posix()
    return text


def cut_tasks(rows: Sequence[Row], image_columns: Sequence[str]) -> list[list[Row]]:
    """Cut rows into tasks; neighbours that share an image stay together, so that the image is decoded once."""
    tasks: list[list[Row]] = []
    for row in rows:
        if tasks and (len(tasks[-1]) < ROWS_PER_TASK or _share_image(row, tasks[-1][-1], image_columns)):
            tasks[-1].append(row)
        else:
            tasks.append([row])
    return tasks


def _share_image(row: Row, other: Row, image_columns: Sequence[str]) -> bool:
    return any(row[column] is not None and row[column] == other[column] for column in image_columns)


@dataclass(frozen=True)
class RowFinisher:
    """A picklable function of some rows that encodes their images and cleans their texts."""

    image_columns: list[str]
    roots: list[Path]  # folders that image files must lie in; none for sources that generate images
    shorter_side: int | None  # in pixels, of larger images; None keeps their size
    quality: int  # of the JPEG
    min_words: int  # shorter texts are left out
    arrays: Mapping[str, tuple[int, ...]] = field(default_factory=dict)  # shape of each column of numbers

    def __call__(self, rows: Sequence[Row]) -> list[Outcome]:
        """Return one outcome per row; a row without a usable cell is None."""
        encode = lru_cache(maxsize=8)(self._encode)  # neighbours share an image that several questions are about
        return [self._finish(dict(row), encode) for row in rows]

    def _finish(self, row: Row, encode: Callable[[ImageCell], bytes]) -> Outcome:
        reject = partial(Rejected, row["id"], split=row["split"])
        left_out: list[Rejected] = []
        for column in self.image_columns:
            try:
                row[column] = None if row[column] is None else encode(row[column])
            except UnreadableImageError as error:
                row[column] = None
                left_out.append(reject(error.reason, column=column, detail=error.detail))
        has_image = any(row[column] is not None for column in self.image_columns)
        if left_out and not has_image:
            details = "; ".join(str(entry.detail) for entry in left_out)
            return None, [reject(left_out[0].reason, detail=details)]
        for column, shape in self.arrays.items():
            if isinstance(cell := row[column], Path) or callable(cell):
                if isinstance(path := getattr(cell, "path", cell), Path):  # also of a volume's file
                    path_below(path, self.roots, name_below(path, self.roots))
                try:
                    row[column] = cell().tolist() if callable(cell) else _load_array(cell, shape)
                except (OSError, ValueError, EOFError) as error:
                    row[column] = None
                    left_out.append(reject("array cannot be used", column=column, detail=str(error)))
        has_array = any(row[column] is not None for column in self.arrays)
        texts, reasons = clean_texts(row.get("text"), self.min_words)
        if not has_image and not has_array and texts is None:
            return None, [reject("neither image nor text", detail="; ".join(reasons) or None)]
        if "text" in row:
            row["text"] = texts
        return row, left_out + [reject(reason, column="text") for reason in reasons]

    def _encode(self, cell: ImageCell) -> bytes:
        if isinstance(cell, bytes):
            return cell
        image = load_below(cell, self.roots, name_below(cell, self.roots)) if isinstance(cell, Path) else cell()
        return encode_image(image, self.shorter_side, self.quality)


def _load_array(path: Path, shape: tuple[int, ...]) -> list[Any]:
    """Return the numbers of a `.npy` file as lists; raise ValueError for other numbers than a column can hold."""
    array = np.load(path, allow_pickle=False)
    if array.shape != shape or not np.isrealobj(array) or not np.isfinite(array).all():
        raise ValueError(f"{path.name}: {array.dtype} of shape {array.shape}, expected finite numbers {shape}")
    numbers: list[Any] = array.astype(np.float32).tolist()
    return numbers


def clean_texts(texts: list[str] | None, min_words: int) -> tuple[list[str] | None, list[str]]:
    """Collapse white space and leave out short texts; return the others, if any, and a reason for each left out."""
    cleaned = [" ".join(text.split()) for text in texts or []]
    kept = [text for text in cleaned if text and count_words(text) >= min_words]
    reasons = ["text too short" if text else "text empty" for text in cleaned if text not in kept]
    return kept or None, reasons
