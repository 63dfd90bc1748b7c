"""Fingerprints of the rows of a prepared folder, by which equal images and texts are recognised.

An image has two: a digest of its pixels, and the 256-bit perceptual hash of the `imagehash` library (signs of the
lowest 16×16 frequencies, Zauner 2010), which a change of size or compression moves by a few bits. They are kept beside
the shards in `fingerprints.npz`, until the shards change.
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
from m3ae.files import digest, only_process, replacing

FINGERPRINTS = "fingerprints.npz"
VERSION = 1
HASH_SIDE = 16
HASH_BITS = HASH_SIDE**2
BLOCK = 4096  # images compared with as many others at once: 64 MiB of distances


@dataclass(frozen=True)
class Fingerprints:
    """Fingerprints of a split; an image or text that occurs n times has n entries."""

    ids: np.ndarray  # (rows,) names
    image_rows: np.ndarray  # (images,) row of each image
    pixels: np.ndarray  # (images,) digests, which do not depend on the format of the file
    looks: np.ndarray  # (images, 32) perceptual hashes, 8 bits a byte
    text_rows: np.ndarray  # (texts,) row of each text
    texts: np.ndarray  # (texts,) digests, white space and case aside; a question and its answer are one text


def load_fingerprints(folder: Path, num_workers: int | None = None) -> dict[str, Fingerprints]:
    """Return the fingerprints of a prepared folder by split; where the folder has none, every image is decoded."""
    manifest = load_manifest(folder)
    key = json.dumps([VERSION, {split: info.shards for split, info in manifest.splits.items()}])
    path = folder / FINGERPRINTS
    names = [field.name for field in fields(Fingerprints)]
    with suppress(OSError, ValueError, KeyError, EOFError, zipfile.BadZipFile), np.load(path) as stored:
        if str(stored["key"]) == key:  # else they are those of other shards
            return {split: Fingerprints(*(stored[f"{split}.{name}"] for name in names)) for split in manifest.splits}
    prints = _fingerprint_folder(folder, manifest, num_workers)
    arrays = {f"{split}.{name}": array for split, some in prints.items() for name, array in asdict(some).items()}
    # A folder that is read-only is fingerprinted every time. Machines may write at once: the first one wins.
    with suppress(OSError), only_process(folder), replacing(path) as temporary, temporary.open("wb") as file:
        np.savez(file, key=np.array(key), **arrays)
    return prints


class _RowFingerprint(NamedTuple):
    id: str
    images: list[tuple[int, bytes]]
    texts: list[int]


def _fingerprint_folder(folder: Path, manifest: Manifest, num_workers: int | None) -> dict[str, Fingerprints]:
    groups = [
        (split, path, number)
        for split, info in manifest.splits.items()
        for path in (folder / name for name in info.shards)
        for number in range(pq.ParquetFile(path).num_row_groups)
    ]
    rows: dict[str, list[_RowFingerprint]] = {split: [] for split in manifest.splits}
    results = map_in_order(_fingerprint_group, [(path, number) for _, path, number in groups], num_workers)
    total = sum(info.rows for info in manifest.splits.values())
    with tqdm(total=total, desc=f"fingerprints of {folder.name}", unit="row") as bar:
        for (split, *_), group_rows in zip(groups, results, strict=True):
            rows[split] += group_rows
            bar.update(len(group_rows))
    return {split: _columns(split_rows) for split, split_rows in rows.items()}


def _fingerprint_group(group: tuple[Path, int]) -> list[_RowFingerprint]:
    """Return the fingerprints of the rows of one row group of a shard."""
    path, number = group
    file = pq.ParquetFile(path)
    features = datasets.Features.from_arrow_schema(file.schema_arrow)
    images = image_columns(features)
    texts = [column for column in ("text", "question", "answer") if column in features]
    fingerprint = cache(fingerprint_image)  # several questions about an image are neighbours
    rows = []
    for row in file.read_row_group(number, columns=["id", *images, *texts]).to_pylist():
        try:
            prints = [fingerprint(row[column]["bytes"]) for column in images if row[column] is not None]
        except OSError as error:
            raise ValueError(
                f"{path}: row {row['id']} holds a damaged image ({error}): prepare the folder again"
            ) from error
        rows.append(_RowFingerprint(row["id"], prints, [digest(text.encode()) for text in _texts(row)]))
    return rows


def fingerprint_image(content: bytes) -> tuple[int, bytes]:
    """Return the digest of an image's pixels, equal for grey stored as colour, and its perceptual hash (32 bytes)."""
    with Image.open(io.BytesIO(content)) as image:
        pixels = b"%d %d " % image.size + image.convert("RGB").tobytes()
        look = imagehash.phash(image, hash_size=HASH_SIDE).hash
    return digest(pixels), np.packbits(look).tobytes()


def _texts(row: dict[str, Any]) -> list[str]:
    """Return the texts of a row, each in lower case and with single blanks."""
    question = " ".join(row[column] for column in ("question", "answer") if row.get(column))
    normalised = (" ".join(text.split()).casefold() for text in [*(row.get("text") or []), question])
    return [text for text in normalised if text]


def _columns(rows: list[_RowFingerprint]) -> Fingerprints:
    images = [(number, *image) for number, row in enumerate(rows) for image in row.images]
    texts = [(number, text) for number, row in enumerate(rows) for text in row.texts]
    return Fingerprints(
        ids=np.array([row.id for row in rows], dtype=np.str_),
        image_rows=np.array([number for number, _, _ in images], dtype=np.int64),
        pixels=np.array([pixels for _, pixels, _ in images], dtype=np.int64),
        looks=np.frombuffer(b"".join(look for *_, look in images), np.uint8).reshape(-1, HASH_BITS // 8),
        text_rows=np.array([number for number, _ in texts], dtype=np.int64),
        texts=np.array([text for _, text in texts], dtype=np.int64),
    )


def near_twins(a: np.ndarray, b: np.ndarray, max_distance: int) -> tuple[np.ndarray, np.ndarray]:
    """Find for every hash of `a` one of `b` that is at most `max_distance` bits away, and the other way round.

    As vectors of ±1, two hashes of n bits have the inner product n − 2·distance: one matrix product compares a block
    of pairs, 512 operations a pair.

    Args:
        a: Hashes (n, 32), 8 bits a byte.
        b: Hashes (m, 32); if it is the same array, a hash is not a twin of itself.
        max_distance: The distance in bits; with a negative one, nothing has a twin.

    Returns:
        Positions (n,) in `b` and (m,) in `a`; −1 for no twin.
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
