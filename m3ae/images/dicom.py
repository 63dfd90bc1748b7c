"""DICOM files to 8-bit images as a viewer would show them."""

import io
import logging
import re
import sys
import warnings
import zlib
from contextlib import nullcontext
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np
from numpy.typing import NDArray
from PIL import Image
from pydicom import Dataset, FileDataset, dcmread
from pydicom.errors import InvalidDicomError
from pydicom.filereader import read_dataset
from pydicom.multival import MultiValue
from pydicom.pixels.decoders.base import get_decoder
from pydicom.pixels.processing import apply_color_lut
from pydicom.pixels.utils import pixel_array
from pydicom.uid import (
    DeflatedExplicitVRLittleEndian,
    ExplicitVRBigEndian,
    ExplicitVRLittleEndian,
    ImplicitVRLittleEndian,
)

from m3ae.images.files import HEAD, OLD_DICOM, UnreadableImageError
from m3ae.images.pixels import MAX_ASPECT, MAX_SIDE, stretch, value_range

PADDING_KEYWORDS = {  # by the element that holds the pixels
    "PixelData": ("PixelPaddingValue", "PixelPaddingRangeLimit"),
    "FloatPixelData": ("FloatPixelPaddingValue", "FloatPixelPaddingRangeLimit"),
    "DoubleFloatPixelData": ("DoubleFloatPixelPaddingValue", "DoubleFloatPixelPaddingRangeLimit"),
}
LIMITATION = re.compile("does not support|cannot decode|Unable to decode (un)?signed|are supported")  # pydicom's words

logging.getLogger("pydicom").setLevel(logging.CRITICAL)  # it logs whatever it also warns of or raises, for each file


def load_dicom(source: Path | io.BytesIO, max_pixels: int | None = None) -> Image.Image:
    """Decode the first frame of a DICOM file as 8-bit grey ("L") or colour ("RGB").

    Grey values pass the modality LUT and then the first VOI LUT or window. Without a window, or where the window maps
    all values to a single grey, the values are stretched from their range, see `m3ae.images.pixels.value_range`; 8-bit
    values then stay as they are. MONOCHROME1 is inverted: bone is white in either. Padding has no share in the range
    and is shown black (DICOM PS3.3, sections C.7.5.1.1.2, C.7.6.3.1.2, C.11.1 and C.11.2).

    A file may lack its preamble, its transfer syntax if it is not compressed, and elements of its header that have one
    usual value.

    Args:
        source: A file, or the bytes of one.
        max_pixels: The largest number of pixels in all frames; by default `PIL.Image.MAX_IMAGE_PIXELS`.

    Raises:
        UnreadableImageError: The file is missing, no DICOM file or without pixels, truncated or corrupt; or its header
            announces more than `max_pixels`, or a deflated file holds more than two bytes for each of them; or no
            installed package decodes its compression ("image decoder missing").
    """
    limit = max_pixels or Image.MAX_IMAGE_PIXELS or sys.maxsize
    name = source.name if isinstance(source, Path) else "bytes"
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # small deviations from the standard are common and of no use to a reader
            dataset = _read(source, name, limit)
            _require_plausible(dataset, name, limit)
            _complete(dataset)
            return _render(dataset, name)
    except UnreadableImageError:
        raise
    except FileNotFoundError as error:
        raise UnreadableImageError("image missing", name) from error
    except InvalidDicomError as error:
        raise UnreadableImageError("not an image", f"{name}: not a DICOM file") from error
    except Exception as error:  # pydicom and its decoders raise whatever they trip over
        raise UnreadableImageError("image truncated or corrupt", f"{name}: {' '.join(str(error).split())}") from error


def _read(source: Path | io.BytesIO, name: str, limit: int) -> FileDataset:
    with source.open("rb") if isinstance(source, Path) else nullcontext(source) as file:
        _refuse_bomb(file, name, 2 * limit)
    if isinstance(source, io.BytesIO):
        source.seek(0)
    try:
        return dcmread(source)
    except InvalidDicomError:  # no preamble
        content = source.read_bytes() if isinstance(source, Path) else source.getvalue()
        if not OLD_DICOM.match(content):
            raise
        return dcmread(io.BytesIO(content), force=True)


def _refuse_bomb(file: BinaryIO, name: str, limit: int) -> None:
    """Refuse a deflated file that unpacks to more bytes than the limit."""
    file.seek(0)
    file.seek(HEAD if file.read(HEAD)[-4:] == b"DICM" else 0)
    head = read_dataset(file, False, True, stop_when=lambda tag, *_: tag.group != 2)
    if head.get("TransferSyntaxUID") != DeflatedExplicitVRLittleEndian:
        return
    inflater, size = zlib.decompressobj(-zlib.MAX_WBITS), 0
    while not inflater.eof and (chunk := inflater.unconsumed_tail or file.read(2**16)):
        size += len(inflater.decompress(chunk, 2**20))
        if size > limit:
            raise UnreadableImageError("image too large", f"{name}: more than {limit:,} bytes once inflated")


def _require_plausible(dataset: Dataset, name: str, limit: int) -> None:
    """Refuse a file without pixels or with too many, by its header alone."""
    if not dataset.get("Rows") or not dataset.get("Columns"):
        raise UnreadableImageError("not an image", f"{name}: a DICOM file without Rows and Columns")
    if not any(keyword in dataset for keyword in PADDING_KEYWORDS):  # pydicom leaves out an element that is cut off
        raise UnreadableImageError("image truncated or corrupt", f"{name}: no pixel data")
    rows, columns, frames = dataset.Rows, dataset.Columns, int(dataset.get("NumberOfFrames") or 1)
    if max(rows, columns) > MAX_SIDE or rows * columns * frames > limit:
        size = f"{frames} frames of {columns}x{rows} pixels"
        raise UnreadableImageError("image too large", f"{name}: {size}, limit {limit} and {MAX_SIDE} on a side")
    if max(rows, columns) > MAX_ASPECT * min(rows, columns):
        raise UnreadableImageError("image too narrow", f"{name}: {columns}x{rows} pixels")


def _complete(dataset: FileDataset) -> None:
    """Fill in elements that old archives and anonymisers leave out, and those that describe the first frame."""
    if "TransferSyntaxUID" not in dataset.file_meta:
        if "PixelData" in dataset and dataset["PixelData"].is_undefined_length:
            raise ValueError("TransferSyntaxUID (0002,0010) is missing, and the pixels are compressed")
        is_implicit, is_little = dataset.original_encoding
        explicit = ExplicitVRLittleEndian if is_little else ExplicitVRBigEndian
        dataset.file_meta.TransferSyntaxUID = ImplicitVRLittleEndian if is_implicit else explicit
    photometric = dataset.get("PhotometricInterpretation") or "MONOCHROME2"
    is_colour = dataset.get("SamplesPerPixel") == 3 or photometric[:3] in ("RGB", "YBR")
    usual: dict[str, Any] = {"SamplesPerPixel": 1, "PhotometricInterpretation": photometric}
    if is_colour:
        usual = {"SamplesPerPixel": 3, "PlanarConfiguration": 0}
    if "PixelData" in dataset and dataset.get("BitsAllocated"):
        usual |= {"BitsStored": dataset.BitsAllocated, "PixelRepresentation": 0}
    for keyword, value in usual.items():
        if dataset.get(keyword) in (None, ""):
            setattr(dataset, keyword, value)
    for groups in ("SharedFunctionalGroupsSequence", "PerFrameFunctionalGroupsSequence"):
        for macro in ("PixelValueTransformationSequence", "FrameVOILUTSequence"):
            if dataset.get(groups) and (items := dataset[groups][0].get(macro)):
                dataset.update(items[0])


def _decode(dataset: Dataset, name: str) -> NDArray[Any]:
    """Decode the first frame, (height, width[, 3]); YBR becomes RGB."""
    syntax = dataset.file_meta.TransferSyntaxUID
    try:
        decoder = get_decoder(syntax)
    except NotImplementedError as error:
        raise UnreadableImageError(
            "image decoder missing",
            f"{name}: {syntax.name} is not supported by pydicom: convert the file to another transfer syntax",
        ) from error
    needs = "".join(
        line.removeprefix("pylibjpeg - requires ")
        for line in decoder.missing_dependencies
        if line.startswith("pylibjpeg ")  # the only one with a plugin for each compressed transfer syntax
    )
    extra = "dicom-gpl" if "pylibjpeg-libjpeg" in needs else "dicom"
    missing = UnreadableImageError(
        "image decoder missing", f"{name}: {syntax.name} needs {needs}: pip install 'm3ae[{extra}]'"
    )
    if not decoder.is_available:
        raise missing
    try:
        return pixel_array(dataset, index=0)
    except RuntimeError as error:
        if needs and LIMITATION.search(str(error)):
            raise missing from error
        raise


def _render(dataset: Dataset, name: str) -> Image.Image:
    pixels = _decode(dataset, name)
    photometric = dataset.PhotometricInterpretation
    if photometric in ("MONOCHROME1", "MONOCHROME2"):
        is_padding = _is_padding(dataset, pixels)
        grey = np.zeros(pixels.shape, np.uint8)
        grey[~is_padding] = _render_grey(dataset, pixels[~is_padding])
        return Image.fromarray(grey)
    bits = dataset.BitsStored
    if photometric == "PALETTE COLOR":
        pixels = apply_color_lut(pixels, dataset)[..., :3]
        bits = 8 * pixels.itemsize
    if pixels.ndim != 3:
        raise ValueError(f"photometric interpretation {photometric} with one sample per pixel")
    return Image.fromarray((pixels >> max(bits - 8, 0)).astype(np.uint8))


def _is_padding(dataset: Dataset, pixels: NDArray[Any]) -> NDArray[np.bool_]:
    """Return the mask of padding pixels; the header states their stored values."""
    keywords = next(keywords for keyword, keywords in PADDING_KEYWORDS.items() if keyword in dataset)
    bounds = [_first(dataset, keyword, np.nan) for keyword in keywords]
    if np.isnan(bounds[0]):
        return np.zeros(pixels.shape, np.bool_)
    if np.isnan(bounds[1]):
        bounds[1] = bounds[0]
    if "PixelData" in dataset:
        words = 2**dataset.BitsAllocated
        if dataset.PixelRepresentation == 1:  # some write the value of signed pixels as unsigned, others the reverse
            bounds = [(bound + words // 2) % words - words // 2 for bound in bounds]
        else:
            bounds = [bound % words for bound in bounds]
        half = 2 ** (dataset.BitsStored - 1)
        low, high = (-half, half - 1) if dataset.PixelRepresentation == 1 else (0, 2 * half - 1)
        if min(bounds) < low or max(bounds) > high:  # the unused bits, too, tell padding
            pixels = pixel_array(dataset, index=0, correct_unused_bits=False)
    is_padding: NDArray[np.bool_] = (pixels >= min(bounds)) & (pixels <= max(bounds))
    return is_padding


def _render_grey(dataset: Dataset, stored: NDArray[Any]) -> NDArray[np.uint8]:
    """Map stored values (N,) to 8 bits; each different value of 8 or 16 bits is mapped once, which is far faster."""
    if not stored.size:
        return np.zeros(0, np.uint8)
    bounds = value_range(stored)
    if stored.dtype.kind == "f" or stored.itemsize > 2:
        return _to_grey(dataset, stored, bounds)
    low = int(stored.min())
    steps = stored.astype(np.int32) - low
    occurs = np.zeros(steps.max() + 1, np.bool_)
    occurs[steps] = True
    table = np.zeros(occurs.shape, np.uint8)
    table[occurs] = _to_grey(dataset, np.flatnonzero(occurs) + low, bounds)
    return np.take(table, steps)


def _to_grey(dataset: Dataset, stored: NDArray[Any], bounds: tuple[float, float]) -> NDArray[np.uint8]:
    """Map stored values to 8 bits by the range of those within `bounds`."""
    if modality_lut := dataset.get("ModalityLUTSequence"):
        values, _ = _look_up(dataset, modality_lut[0], stored)
    else:
        slope = _first(dataset, "RescaleSlope", 1) or 1  # a slope of zero would leave no picture
        values = stored * slope + _first(dataset, "RescaleIntercept", 0)
    is_inverted = dataset.PhotometricInterpretation == "MONOCHROME1"
    is_measured = (stored >= bounds[0]) & (stored <= bounds[1])
    shares = _shares_shown(dataset, values)
    if shares is not None and np.ptp(shares[is_measured].clip(0, 1)) > 0:
        return stretch(shares, 0, 1, inverted=is_inverted)
    low, high = values[is_measured].min(), values[is_measured].max()
    if dataset.get("BitsStored") == 8 and low >= 0 and high <= 255:
        low, high = 0, 255
    return stretch(values, low, high, inverted=is_inverted)


def _shares_shown(dataset: Dataset, values: NDArray[Any]) -> NDArray[Any] | None:
    """Map values to brightness, 0 to 1 and beyond, by the first VOI LUT or window; return None without either."""
    if voi_lut := dataset.get("VOILUTSequence"):
        entries, bits = _look_up(dataset, voi_lut[0], values)
        shares: NDArray[np.float64] = entries / max(2**bits - 1, 1)
        return shares
    center, width = _first(dataset, "WindowCenter", np.nan), _first(dataset, "WindowWidth", 0)
    function = dataset.get("VOILUTFunction") or "LINEAR"
    if np.isnan(center) or width <= (1 if function == "LINEAR" else 0):
        return None
    return _window(values, center, width, function)


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
    index = np.nan_to_num(np.clip(np.rint(values) - first, 0, len(entries) - 1))
    needed = int(entries.max()).bit_length()  # some files state fewer
    return entries[index.astype(np.int64)], max(bits, needed)


def _first(dataset: Dataset, keyword: str, default: float) -> float:
    """Return the first number of an element of the header, or a default where the element is absent or empty."""
    value = dataset.get(keyword)
    if isinstance(value, MultiValue):
        value = value[0] if value else None
    return default if value in (None, "") else float(value)
