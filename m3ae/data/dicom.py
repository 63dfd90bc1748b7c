"""DICOM files to 8-bit images as a viewer would show them."""

import logging
import warnings
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image
from pydicom import Dataset, dcmread
from pydicom.errors import InvalidDicomError
from pydicom.multival import MultiValue
from pydicom.pixels.decoders.base import get_decoder
from pydicom.pixels.processing import apply_color_lut
from pydicom.pixels.utils import pixel_array

from m3ae.data.images import UnreadableImageError
from m3ae.limits import MAX_ASPECT, MAX_SIDE

PIXEL_KEYWORDS = ("PixelData", "FloatPixelData", "DoubleFloatPixelData")

logging.getLogger("pydicom").setLevel(logging.CRITICAL)  # it logs whatever it also warns of or raises, for each file


def load_dicom(path: Path) -> Image.Image:
    """Decode the first frame of a DICOM file as 8-bit grey ("L") or colour ("RGB").

    Grey values pass the modality LUT and then the first VOI LUT or window. Without one, or where the window maps all
    of them to a single grey, they are stretched from their own range; 8-bit values then stay as they are. MONOCHROME1
    is inverted, so that bone is white in either (DICOM PS3.3, sections C.7.6.3.1.2, C.11.1 and C.11.2).

    Raises:
        UnreadableImageError: the file is missing, no DICOM file or without pixels, truncated or corrupt; or its header
            announces more than `PIL.Image.MAX_IMAGE_PIXELS` pixels in all frames; or it is compressed in a way that
            no installed package decodes ("image decoder missing").
    """
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # small deviations from the standard are common and of no use to a reader
            dataset = dcmread(path)
            _require_decodable(dataset, path.name)
            return _render(dataset)
    except UnreadableImageError:
        raise
    except FileNotFoundError as error:
        raise UnreadableImageError("image missing", path.name) from error
    except InvalidDicomError as error:
        raise UnreadableImageError("not an image", f"{path.name}: not a DICOM file") from error
    except Exception as error:  # pydicom and its decoders raise whatever they trip over
        raise UnreadableImageError(
            "image truncated or corrupt", f"{path.name}: {' '.join(str(error).split())}"
        ) from error


def _require_decodable(dataset: Dataset, name: str) -> None:
    """Refuse, by the header alone, what cannot or should not be decoded."""
    if "Rows" not in dataset or "Columns" not in dataset:
        raise UnreadableImageError("not an image", f"{name}: a DICOM file without Rows and Columns")
    if not any(keyword in dataset for keyword in PIXEL_KEYWORDS):  # pydicom leaves out an element that is cut off
        raise UnreadableImageError("image truncated or corrupt", f"{name}: no pixel data")
    rows, columns, frames = dataset.Rows, dataset.Columns, int(dataset.get("NumberOfFrames") or 1)
    limit = Image.MAX_IMAGE_PIXELS
    if max(rows, columns) > MAX_SIDE or (limit is not None and rows * columns * frames > limit):
        size = f"{frames} frames of {columns}x{rows} pixels"
        raise UnreadableImageError("image too large", f"{name}: {size}, limit {limit} and {MAX_SIDE} on a side")
    if max(rows, columns) > MAX_ASPECT * min(rows, columns):
        raise UnreadableImageError("image too narrow", f"{name}: {columns}x{rows} pixels")
    syntax = dataset.file_meta.TransferSyntaxUID
    try:
        decoder = get_decoder(syntax)
    except NotImplementedError as error:
        raise UnreadableImageError("image decoder missing", f"{name}: {syntax.name} is not supported") from error
    if not decoder.is_available:
        packages = "; ".join(decoder.missing_dependencies)
        raise UnreadableImageError(
            "image decoder missing", f"{name}: {syntax.name} needs pip install python-gdcm, or another of: {packages}"
        )


def _render(dataset: Dataset) -> Image.Image:
    pixels = pixel_array(dataset, index=0)  # (height, width[, 3]); YBR becomes RGB
    photometric = dataset.PhotometricInterpretation
    if photometric in ("MONOCHROME1", "MONOCHROME2"):
        return Image.fromarray(_render_grey(dataset, pixels))
    bits = dataset.BitsStored
    if photometric == "PALETTE COLOR":
        pixels = apply_color_lut(pixels, dataset)[..., :3]
        bits = 8 * pixels.itemsize
    if pixels.ndim != 3:
        raise ValueError(f"photometric interpretation {photometric} with one sample per pixel")
    return Image.fromarray((pixels >> max(bits - 8, 0)).astype(np.uint8))


def _render_grey(dataset: Dataset, pixels: NDArray[Any]) -> NDArray[np.uint8]:
    """Map stored values to 8 bits: each possible value once where they are of 8 or 16 bits, which is far faster."""
    if pixels.dtype.kind == "f" or pixels.itemsize > 2:
        return _to_grey(dataset, np.nan_to_num(pixels))
    low = int(pixels.min())
    table = _to_grey(dataset, np.arange(low, int(pixels.max()) + 1))
    return np.take(table, pixels.astype(np.int32) - low)


def _to_grey(dataset: Dataset, stored: NDArray[Any]) -> NDArray[np.uint8]:
    if modality_lut := dataset.get("ModalityLUTSequence"):
        values, _ = _look_up(dataset, modality_lut[0], stored)
    else:
        values = stored * _first(dataset, "RescaleSlope", 1) + _first(dataset, "RescaleIntercept", 0)
    shares = np.clip(_display_shares(dataset, values), 0, 1)
    if dataset.PhotometricInterpretation == "MONOCHROME1":
        shares = 1 - shares
    grey: NDArray[np.uint8] = (255 * shares).round().astype(np.uint8)
    return grey


def _display_shares(dataset: Dataset, values: NDArray[Any]) -> NDArray[Any]:
    """Map values to brightness, 0 to 1 and beyond."""
    shares: NDArray[Any]
    if voi_lut := dataset.get("VOILUTSequence"):
        entries, bits = _look_up(dataset, voi_lut[0], values)
        shares = entries / max(2**bits - 1, 1)
        return shares
    center, width = _first(dataset, "WindowCenter", 0), _first(dataset, "WindowWidth", 0)
    function = dataset.get("VOILUTFunction") or "LINEAR"
    if "WindowCenter" in dataset and width > (1 if function == "LINEAR" else 0):
        shares = _window(values, center, width, function)
        if np.ptp(shares.clip(0, 1)) > 0:
            return shares
    low, high = values.min(), values.max()
    if dataset.get("BitsStored") == 8 and low >= 0 and high <= 255:
        low, high = 0, 255
    shares = (values - low) / max(high - low, 1e-12)
    return shares


def _window(values: NDArray[Any], center: float, width: float, function: str) -> NDArray[Any]:
    """Apply a VOI LUT function of DICOM PS3.3, section C.11.2.1: LINEAR, LINEAR_EXACT or SIGMOID."""
    if function == "LINEAR":
        center, width = center - 0.5, width - 1
    scaled: NDArray[Any] = (values - center) / width
    return 1 / (1 + np.exp(-4 * scaled)) if function == "SIGMOID" else scaled + 0.5


def _look_up(dataset: Dataset, lut: Dataset, values: NDArray[Any]) -> tuple[NDArray[Any], int]:
    """Return the entries of a modality or VOI LUT for some values, and the bits of an entry.

    pydicom's own functions wrap around where entries have fewer bits than the values.
    """
    count, first, bits = lut.LUTDescriptor
    entries = lut.LUTData
    if isinstance(entries, bytes):
        order = "<" if dataset.original_encoding[1] else ">"
        entries = np.frombuffer(entries, f"{order}u{len(entries) // (count or 2**16)}")
    entries = np.atleast_1d(entries)
    index = np.clip(np.rint(values) - first, 0, len(entries) - 1)
    return entries[index.astype(np.int64)], bits


def _first(dataset: Dataset, keyword: str, default: float) -> float:
    """Return a number of the header, the first of several, or a default where it is absent or empty."""
    value = dataset.get(keyword)
    if isinstance(value, MultiValue):
        value = value[0] if value else None
    return default if value is None else float(value)
