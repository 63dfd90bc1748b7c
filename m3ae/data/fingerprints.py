"""Fingerprints of the rows of a prepared folder, by which equal images and texts are recognised.

An image has two: a digest of its pixels, and the 256-bit perceptual hash of the `imagehash` library (signs of the
lowest 16×16 frequencies, Zauner 2010), which a change of size or compression moves by a few bits. They are kept beside
the shards in `fingerprints.npz`, until the shards change.
"""

import io
import json
import zipfile
from collections.abc import Iterator
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

from m3ae.data.parallel import map_in_order, worker_count
from m3ae.data.prepared import Manifest, image_columns, load_manifest
from m3ae.files import digest, only_process, replacing

FINGERPRINTS = "fingerprints.npz"
VERSION = 1
HASH_SIDE = 16
HASH_BITS = HASH_SIDE**2
MAX_DISTANCE = 64  # of near twins: images that have nothing in common are 128 bits apart, give or take 8
PAIRS_AT_ONCE = 2**20  # compared: 100 MB


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
    tasks = [(path, number) for _, path, number in groups]
    results = map_in_order(_fingerprint_group, tasks, worker_count(len(tasks), num_workers))
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

    The bits are dealt out to so many groups that near hashes differ in at most one bit of some group. For every bit of
    every group, hashes are sorted by the other bits of the group, and only those that agree are compared: n log n, as
    in the multi-index hashing of Norouzi et al. 2012. Nothing near is missed.

    Args:
        a: Hashes (n, 32), 8 bits a byte.
        b: Hashes (m, 32); if it is the same array, a hash is not a twin of itself.
        max_distance: The distance in bits, at most 64; with a negative one, nothing has a twin.

    Returns:
        Positions (n,) in `b` and (m,) in `a`; −1 for no twin.

    Raises:
        ValueError: The distance is larger.
    """
    if max_distance > MAX_DISTANCE:
        raise ValueError(f"max_distance: got {max_distance}, expected at most {MAX_DISTANCE} of {HASH_BITS} bits")
    hashes = a if b is a else np.concatenate([a, b])
    is_b = np.arange(len(hashes)) >= len(a)
    words, twins = np.ascontiguousarray(hashes).view(np.uint64), np.full(len(hashes), -1)
    num_groups = max(max_distance // 2 + 1, 8)
    for group in range(num_groups if max_distance >= 0 else 0):
        bits = range(group, HASH_BITS, num_groups)
        values = sum(_bit(hashes, bit) << np.uint64(32 + position) for position, bit in enumerate(bits))
        for position in range(len(bits)):
            keys = np.sort(values & ~np.uint64(1 << 32 + position) | np.arange(len(hashes), dtype=np.uint64))
            for x, y in _pairs(keys, twins):
                near = np.bitwise_count(words[x] ^ words[y]).sum(axis=1, dtype=np.uint16) <= max_distance
                near &= x != y if b is a else is_b[x] != is_b[y]
                twins[x[near]], twins[y[near]] = y[near], x[near]
    return (twins, twins) if b is a else (np.maximum(twins[: len(a)] - len(a), -1), twins[len(a) :])


def _bit(hashes: np.ndarray, bit: int) -> np.ndarray:
    return (hashes[:, bit // 8] >> np.uint8(7 - bit % 8) & np.uint8(1)).astype(np.uint64)


def _pairs(keys: np.ndarray, twins: np.ndarray) -> Iterator[tuple[np.ndarray, np.ndarray]]:
    """Yield blocks of pairs of hashes (p,), (p,) of one key, of which the first has no twin yet.

    Args:
        keys: Sorted keys (n,), with the number of the hash in the lower 32 bits.
        twins: The twin (n,) of each hash, −1 for none; read for every block.
    """
    numbers = (keys & np.uint64(2**32 - 1)).astype(np.int64)
    is_first = np.diff(keys >> np.uint64(32), prepend=np.uint64(2**32)) != 0
    firsts = np.flatnonzero(is_first)
    sizes = np.diff(firsts, append=len(keys))
    runs = (np.cumsum(is_first) - 1)[twins[numbers] < 0]
    rows, runs = numbers[twins[numbers] < 0][sizes[runs] > 1], runs[sizes[runs] > 1]
    ends = np.cumsum(sizes[runs])
    start = 0
    while start < len(rows):
        stop = max(start + 1, int(np.searchsorted(ends, (ends[start - 1] if start else 0) + PAIRS_AT_ONCE)))
        lacking = start + np.flatnonzero(twins[rows[start:stop]] < 0)  # a block before may have found the twin
        counts = sizes[runs[lacking]]
        offsets = firsts[runs[lacking]] - np.cumsum(counts) + counts
        yield rows[lacking].repeat(counts), numbers[np.arange(counts.sum()) + offsets.repeat(counts)]
        start = stop
