"""Small files in the formats in which the sets of digits are published."""

import gzip
import struct
import wave
from collections.abc import Sequence
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

LabelledImages = Sequence[tuple[int, NDArray[np.uint8]]]


def cdb(images: LabelledImages, image_type: int = 0, side: int = 0) -> bytes:
    """Return a Hoda file of images of 0 and 255."""
    header = struct.pack("<HBBBBI", 2005, 8, 4, side, side, len(images)).ljust(522, b"\0") + bytes([image_type])
    records = []
    for label, image in images:
        runs = b"".join(map(row_runs, image))
        records.append(struct.pack("<BBBBH", 255, label, image.shape[1], image.shape[0], len(runs)) + runs)
    return header.ljust(1024, b"\0") + b"".join(records)


def row_runs(row: NDArray[np.uint8]) -> bytes:
    """Return the lengths of background, ink, background, … in a row of pixels."""
    runs, ink = [0], 0
    for pixel in row:
        if (pixel > 0) != ink:
            runs.append(0)
            ink = not ink
        runs[-1] += 1
    return bytes(runs)


def write_cdb(path: Path, images: LabelledImages) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(cdb(images))
    return path


def idx(array: NDArray[np.uint8]) -> bytes:
    return bytes([0, 0, 8, array.ndim]) + struct.pack(f">{array.ndim}I", *array.shape) + array.tobytes()


def write_kannada(folder: Path, split: str, images: LabelledImages) -> None:
    """Write images (28, 28) gzipped, as published, and their labels plain, as somebody may have unpacked them."""
    folder.mkdir(parents=True, exist_ok=True)
    pixels = np.stack([image for _, image in images])
    labels = np.array([label for label, _ in images], np.uint8)
    (folder / f"X_kannada_MNIST_{split}-idx3-ubyte.gz").write_bytes(gzip.compress(idx(pixels)))
    (folder / f"y_kannada_MNIST_{split}-idx1-ubyte").write_bytes(idx(labels))


def write_wav(path: Path, signal: NDArray[np.float64], rate: int = 8000, channels: int = 1, width: int = 2) -> Path:
    """Write amplitudes in [−1, 1)."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with wave.open(str(path), "wb") as file:
        file.setnchannels(channels)
        file.setsampwidth(width)
        file.setframerate(rate)
        file.writeframes((signal * 2**15).astype("<i2").tobytes())
    return path
