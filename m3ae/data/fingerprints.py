"""Fingerprints of the rows of a prepared folder, by which equal images and texts are found.

An image has two: a digest of its pixels, the same in whatever format they are stored, and the 256-bit perceptual hash
of the `imagehash` library (signs of the lowest 16×16 frequencies, Zauner 2010), which a change of size or compression
moves by a few bits. They are kept beside the shards in `fingerprints.npz`, which is made again when the shards change.
"""

import io
import json
import zipfile
from contextlib import suppress
from dataclasses import asdict, dataclass, fields
from functools import cache
from pathlib import Path
from typing import Any, NamedTuple

import datasets
import imagehash
import numpy as np
import pyarrow.parquet as pq
from PIL import Image
from tqdm import tqdm

from m3ae.data.parallel import map_in_order
from m3ae.data.prepared import Manifest, image_columns, load_manifest
from m3ae.files import digest, replacing

FINGERPRINTS = "fingerprints.npz"
VERSION = 1
HASH_SIDE = 16
HASH_BITS = HASH_SIDE**2
BLOCK = 4096  # images compared with as many others at once: 64 MiB of distances


class ImageFingerprint(NamedTuple):
    """Digest of the pixels, and the perceptual hash as 32 bytes."""

    pixels: int
    look: bytes


class _RowFingerprint(NamedTuple):
    id: str
    images: list[ImageFingerprint]
    texts: list[int]


class _Group(NamedTuple):
    """A row group of a shard."""

    path: Path
    number: int


@dataclass(frozen=True)
class SplitFingerprints:
    """Fingerprints of a split; an image or text that occurs n times is there n times.

    Attributes:
        ids: (rows,) names of the rows.
        image_rows: (images,) row that each image belongs to.
        pixels: (images,) digests.
        looks: (images, 32) perceptual hashes, 8 bits a byte.
        text_rows: (texts,) row that each text belongs to.
        texts: (texts,) digests of the texts, white space and case aside; a question and its answer are one text.
    """

    ids: np.ndarray
    image_rows: np.ndarray
    pixels: np.ndarray
    looks: np.ndarray
    text_rows: np.ndarray
    texts: np.ndarray


def load_fingerprints(folder: Path, num_workers: int | None = None) -> dict[str, SplitFingerprints]:
    """Return the fingerprints of a prepared folder by split; where they are not there yet, every image is decoded.

    Args:
        folder: The prepared folder.
        num_workers: Processes; by default one per core.

    Raises:
        FileNotFoundError: The folder, its manifest or a shard is missing.
        ValueError: The manifest or an image is damaged.
    """
    manifest = load_manifest(folder)
    key = json.dumps([VERSION, {split: info.shards for split, info in manifest.splits.items()}])
    path = folder / FINGERPRINTS
    if (stored := _read(path, key, list(manifest.splits))) is not None:
        return stored
    found = _fingerprint_folder(folder, manifest, num_workers)
    with suppress(OSError):  # a folder that may not be written is fingerprinted every time
        _write(path, key, found)
    return found


def fingerprint_image(content: bytes) -> ImageFingerprint:
    """Decode an image and return its fingerprint; grey stored as grey and as colour are the same."""
    with Image.open(io.BytesIO(content)) as image:
        pixels = b"%d %d " % image.size + image.convert("RGB").tobytes()
        look = imagehash.phash(image, hash_size=HASH_SIDE).hash
    return ImageFingerprint(digest(pixels), np.packbits(look).tobytes())


def near_twins(a: np.ndarray, b: np.ndarray, max_distance: int) -> tuple[np.ndarray, np.ndarray]:
    """Find for every hash of `a` one of `b` that is at most `max_distance` bits away, and the other way round.

    As vectors of ±1, two hashes of n bits have the inner product n − 2·distance, so that blocks of pairs are compared
    by one matrix product each: 512 operations a pair.

    Args:
        a: (n, 32) bytes.
        b: (m, 32) bytes; if it is the same array, a hash is not its own twin.
        max_distance: In bits; below 0, nothing has a twin.

    Returns:
        Positions (n,) in `b` and (m,) in `a`; −1 where there is none.
    """
    twins_a, twins_b = np.full(len(a), -1), np.full(len(b), -1)
    if max_distance < 0:
        return twins_a, twins_b
    for i in range(0, len(a), BLOCK):
        rows = slice(i, i + BLOCK)
        signs = _signs(a[rows])
        for j in range(i if b is a else 0, len(b), BLOCK):
            columns = slice(j, j + BLOCK)
            near = signs @ _signs(b[columns]).T >= HASH_BITS - 2 * max_distance
            if b is a and i == j:
                np.fill_diagonal(near, False)
            if near.any():  # where b is a, the twins of both sides are the same array
                twins_a[rows] = np.where(near.any(axis=1), j + near.argmax(axis=1), twins_a[rows])
                twins_b[columns] = np.where(near.any(axis=0), i + near.argmax(axis=0), twins_b[columns])
    return (np.maximum(twins_a, twins_b),) * 2 if b is a else (twins_a, twins_b)


def _signs(hashes: np.ndarray) -> np.ndarray:
    """Turn hashes (n, 32) into vectors of ±1 (n, 256)."""
    return 1 - 2 * np.unpackbits(hashes, axis=1).astype(np.float32)


def _fingerprint_folder(folder: Path, manifest: Manifest, num_workers: int | None) -> dict[str, SplitFingerprints]:
    groups = [
        (split, _Group(path, number))
        for split, info in manifest.splits.items()
        for path in (folder / name for name in info.shards)
        for number in range(pq.ParquetFile(path).num_row_groups)
    ]
    rows: dict[str, list[_RowFingerprint]] = {split: [] for split in manifest.splits}
    results = map_in_order(_fingerprint_group, [group for _, group in groups], num_workers)
    total = sum(info.rows for info in manifest.splits.values())
    with tqdm(total=total, desc=f"fingerprints of {folder.name}", unit="row") as bar:
        for (split, _), found in zip(groups, results, strict=True):
            rows[split] += found
            bar.update(len(found))
    return {split: _columns(found) for split, found in rows.items()}


def _fingerprint_group(group: _Group) -> list[_RowFingerprint]:
    file = pq.ParquetFile(group.path)
    features = datasets.Features.from_arrow_schema(file.schema_arrow)
    images = image_columns(features)
    texts = [column for column in ("text", "question", "answer") if column in features]
    fingerprint = cache(fingerprint_image)  # several questions about an image are neighbours
    rows = []
    for row in file.read_row_group(group.number, columns=["id", *images, *texts]).to_pylist():
        try:
            found = [fingerprint(row[column]["bytes"]) for column in images if row[column] is not None]
        except OSError as error:
            raise ValueError(
                f"{group.path}: row {row['id']} holds a damaged image ({error}): prepare the folder again"
            ) from error
        rows.append(_RowFingerprint(row["id"], found, [digest(text.encode()) for text in _texts(row)]))
    return rows


def _texts(row: dict[str, Any]) -> list[str]:
    """Return the texts of a row, each in lower case and with single blanks."""
    question = " ".join(row[column] for column in ("question", "answer") if row.get(column))
    normalised = (" ".join(text.split()).casefold() for text in [*(row.get("text") or []), question])
    return [text for text in normalised if text]


def _columns(rows: list[_RowFingerprint]) -> SplitFingerprints:
    images = [(number, image) for number, row in enumerate(rows) for image in row.images]
    texts = [(number, text) for number, row in enumerate(rows) for text in row.texts]
    return SplitFingerprints(
        ids=np.array([row.id for row in rows], dtype=np.str_),
        image_rows=np.array([number for number, _ in images], dtype=np.int64),
        pixels=np.array([image.pixels for _, image in images], dtype=np.int64),
        looks=np.frombuffer(b"".join(image.look for _, image in images), np.uint8).reshape(-1, HASH_BITS // 8),
        text_rows=np.array([number for number, _ in texts], dtype=np.int64),
        texts=np.array([text for _, text in texts], dtype=np.int64),
    )


def _read(path: Path, key: str, splits: list[str]) -> dict[str, SplitFingerprints] | None:
    """Return what is stored, or None if that is nothing, damaged, or of other shards."""
    names = [field.name for field in fields(SplitFingerprints)]
    try:
        with np.load(path) as stored:
            if str(stored["key"]) == key:
                return {split: SplitFingerprints(**{n: stored[f"{split}.{n}"] for n in names}) for split in splits}
    except (OSError, ValueError, KeyError, EOFError, zipfile.BadZipFile):
        pass
    return None


def _write(path: Path, key: str, found: dict[str, SplitFingerprints]) -> None:
    arrays = {f"{split}.{name}": array for split, part in found.items() for name, array in asdict(part).items()}
    # Processes of several machines may write the same at once: the first one has put it in place.
    with suppress(FileNotFoundError), replacing(path) as temporary, temporary.open("wb") as file:
        np.savez(file, key=np.array(key), **arrays)
