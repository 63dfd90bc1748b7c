"""Pixels of any depth, mode and layout to the 8-bit grey or colour that a model sees."""

from __future__ import annotations

from collections.abc import Mapping
from contextlib import suppress
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageChops, ImageOps
from PIL.ExifTags import Base
from PIL.TiffImagePlugin import OPEN_INFO

MAX_SIDE = 65_500  # pixels; the longest that libjpeg writes
MAX_ASPECT = 100  # longer side over shorter; enlarging a narrower image to a model's size would exhaust the memory
WIDE_MODES = ("I", "I;16", "I;16B", "I;16L", "I;16N", "F")
PHOTOMETRIC, SAMPLE_FORMAT, GDAL_NO_DATA = 262, 339, 42113  # tags of TIFF
MIN_IS_WHITE, UNSIGNED = 0, (1,)

LARGEST = np.float64(1e30)  # no detector measures as much: raster formats write ±3.4e38 for no data
NO_DATA = (-9999, -32768, -32767, -99999)  # what programs write instead of a value
STRAY_SHARE, STRAY_GAP, NO_DATA_GAP = 0.02, 10, 0.1  # share of the pixels; distances in spans of all other values


def to_8bit(image: Image.Image) -> Image.Image:
    """Return a picture of Pillow, upright, as 8-bit grey ("L") or colour ("RGB").

    16-bit, 32-bit and float pictures are stretched from their range to 0–255, because a file does not say how many of
    its bits the detector used; see `value_range`. Pixels without a value become black, transparent ones white. The
    polarity and the no-data value of a TIFF file are heeded.
    """
    if image.format == "TIFF":
        image.filename = ""  # type: ignore[attr-defined]  # Pillow garbles what it both maps from a file and turns
    tags: Mapping[int, Any] = getattr(image, "tag_v2", {})  # a turned copy has none
    image.load()
    if orientation(image) != 1:
        image = ImageOps.exif_transpose(image)
    if image.mode in WIDE_MODES:
        return _narrow(image, tags)
    if image.has_transparency_data:
        return _flatten(image)
    if image.mode in ("L", "RGB"):
        return image
    if image.mode == "CMYK" and image.format == "JPEG" and "adobe" not in image.info:
        image = ImageChops.invert(image)  # Pillow takes every CMYK JPEG for one of Adobe's, which are stored inverted
    return image.convert("L" if image.mode == "1" else "RGB")


def array_to_8bit(array: NDArray[Any], channels_last: bool | None = None) -> NDArray[np.uint8]:
    """Return an array as 8-bit values (H, W, C).

    Booleans and floats within [0, 1] are shares of white, and numbers within [0, 255] are 8-bit values, as in
    transformers. Others, such as stored values of DICOM or Hounsfield units, are stretched from their range.

    Args:
        array: Numbers of shape (H, W), (H, W, C) or (C, H, W), with C from 1 (grey) to 4 (colour and opacity).
        channels_last: Whether the channels are the last axis; None decides by the shape.

    Raises:
        ValueError: The array is of another shape, or does not hold real numbers.
    """
    pixels = _channels_last(array, channels_last)
    if pixels.dtype.kind not in "buif":
        raise ValueError(f"got an array of {array.dtype}, expected real numbers")
    if pixels.dtype == np.uint8:
        return pixels
    low, high = value_range(pixels)
    if pixels.dtype.kind in "bf" and low >= 0 and high <= 1:
        low, high = 0, 1
    elif low >= 0 and high <= 255:
        low, high = 0, 255
    return stretch(pixels, low, high)


def value_range(values: NDArray[Any]) -> tuple[float, float]:
    """Return the lowest and the highest value that a detector can have measured; (0, 0) without any.

    Values that are not finite or beyond ±1e30 do not count. A stray lowest or highest value does not count either:
    at most 1 in 50 pixels has it, and its distance from all others is ten times their span. Nor does a mark of
    missing values, such as −9999, that lies apart from the others.
    """
    if values.dtype.kind == "f":
        values = values[np.abs(values) < LARGEST]  # False for NaN
    if not values.size:
        return 0, 0
    for extreme in (float(values.min()), float(values.max())):
        others = values[values != extreme]
        if not others.size:
            break
        low, high = float(others.min()), float(others.max())
        gap = max(low - extreme, extreme - high)
        is_stray = values.size - others.size <= STRAY_SHARE * values.size and gap > STRAY_GAP * (high - low) > 0
        if is_stray or (extreme in NO_DATA and gap > NO_DATA_GAP * (high - low)):
            values = others
    return float(values.min()), float(values.max())


def stretch(values: NDArray[Any], low: float, high: float, *, inverted: bool = False) -> NDArray[np.uint8]:
    """Map `low` to black and `high` to white, or the reverse; NaN, and values without a range, become black."""
    if high <= low:
        return np.zeros(values.shape, np.uint8)
    if values.dtype.kind in "iu" and values.itemsize == 2:  # each of the 65,536 values once
        kind = np.iinfo(values.dtype)
        table = stretch(np.arange(kind.min, kind.max + 1), low, high, inverted=inverted)
        return np.take(table, values.astype(np.int32) - kind.min)
    shares = (np.clip(values, low, high).astype(np.float64) - low) / (high - low)
    grey: NDArray[np.uint8] = np.nan_to_num(255 * (1 - shares if inverted else shares)).round().astype(np.uint8)
    return grey


def orientation(image: Image.Image) -> int:
    """Return the EXIF orientation: 1 is upright, 2–8 are flips and turns."""
    return int(image.getexif().get(Base.Orientation, 1))


def _narrow(image: Image.Image, tags: Mapping[int, Any]) -> Image.Image:
    pixels = np.asarray(image)
    if image.mode == "I" and tags.get(SAMPLE_FORMAT) == UNSIGNED:
        pixels = pixels.view(np.uint32)  # Pillow reads them as signed
    is_transparent = pixels == image.info.get("transparency", np.nan)
    is_empty = is_transparent.copy()
    if GDAL_NO_DATA in tags:
        with suppress(ValueError):  # the tag holds no number
            is_empty |= np.isclose(pixels.astype(np.float64), float(tags[GDAL_NO_DATA]), rtol=1e-6, atol=0)
    grey = stretch(pixels, *value_range(pixels[~is_empty]), inverted=tags.get(PHOTOMETRIC) == MIN_IS_WHITE)
    grey[is_empty] = 0
    grey[is_transparent] = 255
    return Image.fromarray(grey)


def _flatten(image: Image.Image) -> Image.Image:
    layer = image.convert("RGBA")
    white = Image.new("RGBA", layer.size, "white")
    return Image.alpha_composite(white, layer).convert("L" if image.mode in ("1", "L", "LA", "La") else "RGB")


def _channels_last(array: NDArray[Any], is_last: bool | None) -> NDArray[Any]:
    """Return an array of shape (H, W, C)."""
    if array.ndim == 2:
        return array[..., None]
    if array.ndim == 3 and is_last is None and array.shape[0] in (1, 3, 4):
        is_last = False
    pixels = np.moveaxis(array, 0, -1) if is_last is False else array
    if array.ndim != 3 or pixels.shape[-1] not in (1, 2, 3, 4):
        raise ValueError(
            f"got an array of shape {array.shape}, expected (height, width), (height, width, channels) or (channels, "
            "height, width) with 1, 3 or 4 channels; several pictures are a list, or have a first axis more"
        )
    return np.ascontiguousarray(pixels)


def _complete_formats() -> None:
    """Let Pillow open grey TIFF of 16 to 64 bits in either byte order and polarity; it lacks some of the pairs."""
    for order, mark in ((b"II", ""), (b"MM", "B")):
        kinds = {
            (1, 16): (f"I;16{mark}", f"I;16{mark}"),
            (2, 16): ("I", f"I;16{mark}S"),
            (1, 32): ("I", f"I;32{mark}"),
            (2, 32): ("I", f"I;32{mark}S"),
            (3, 32): ("F", f"F;32{mark}F"),
            (3, 64): ("F", f"F;64{mark}F"),
        }
        for (sample_format, bits), modes in kinds.items():
            for polarity in (0, 1):
                OPEN_INFO.setdefault((order, polarity, (sample_format,), 1, (bits,), ()), modes)


_complete_formats()
