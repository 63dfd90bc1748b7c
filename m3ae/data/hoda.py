"""The binary files of the Hoda data sets of handwritten Farsi characters (Khosravi and Kabir 2007).

A header of 1,024 bytes gives the number of images, then each record has its label, width, height and the image as
lengths of runs: every row of pixels starts with a run of background, which may be empty, and alternates from there.
"""

import struct
from pathlib import Path
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

HEADER_BYTES = 1024
SIZES = struct.Struct("<4xBBI")  # behind the date: height and width if all images have the same, number of records
IMAGE_TYPE = 522  # place of a byte: 0 = black and white, 1 = grey
RECORD = struct.Struct("<BBBBH")  # mark, label, width, height, number of runs
MARK = 0xFF


class LabelledImage(NamedTuple):
    """A label and (H, W) uint8, ink 255 and background 0."""

    label: int
    image: NDArray[np.uint8]


def read_cdb(path: Path) -> list[LabelledImage]:
    """Read a `.cdb` file of black-and-white images that differ in size.

    Raises:
        ValueError: The file is damaged or incomplete, or of another kind.
    """
    content = path.read_bytes()
    if len(content) < HEADER_BYTES:
        raise ValueError(f"{path} has {len(content)} bytes, expected a header of {HEADER_BYTES}: download it again")
    height, width, count = SIZES.unpack_from(content)
    if height or width or content[IMAGE_TYPE]:
        raise ValueError(
            f"{path} holds grey images or images of one size, expected black-and-white ones of different sizes, as in "
            "the published Hoda sets"
        )
    images, place = [], HEADER_BYTES
    for number in range(count):
        try:
            mark, label, width, height, num_runs = RECORD.unpack_from(content, place)
            if mark != MARK:
                raise ValueError(f"it starts with {mark}, expected {MARK}")
            runs = np.frombuffer(content, np.uint8, num_runs, place + RECORD.size)
            images.append(LabelledImage(label, decode_runs(runs, width, height)))
        except (struct.error, ValueError) as error:
            raise ValueError(
                f"{path} is truncated or damaged at image {number + 1:,} of {count:,} ({error}): download it again"
            ) from error
        place += RECORD.size + num_runs
    return images


def decode_runs(runs: NDArray[np.uint8], width: int, height: int) -> NDArray[np.uint8]:
    """Return the image (H, W) of some run lengths.

    Raises:
        ValueError: The runs do not add up to its rows.
    """
    starts = np.cumsum(runs, dtype=np.int64) - runs
    row = starts // max(width, 1)
    first = np.searchsorted(row, np.arange(height))  # run that starts each row
    row_starts = np.arange(height) * width
    if runs.sum() != width * height or not np.array_equal(starts[first], row_starts):
        raise ValueError(f"its runs do not make {height} rows of {width} pixels")
    is_ink = (np.arange(len(runs)) - first[row]) % 2 == 1
    return np.repeat(np.where(is_ink, 255, 0).astype(np.uint8), runs).reshape(height, width)
