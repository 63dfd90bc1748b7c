"""Image files to verified 8-bit images and on to compact JPEG bytes."""

import io
import os
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import numpy as np
from PIL import Image, ImageChops, ImageOps, UnidentifiedImageError
from PIL.ExifTags import Base

from m3ae.limits import MAX_ASPECT, MAX_SIDE

IMAGE_SUFFIXES = (".jpg", ".jpeg", ".png", ".bmp", ".gif", ".tif", ".tiff", ".webp", ".dcm")
WIDE_MODES = ("I", "I;16", "I;16B", "I;16L", "I;16N", "F")


class UnreadableImageError(ValueError):
    """An image file that cannot be used.

    Attributes:
        reason: a short fixed phrase, so that equal reasons can be counted.
        detail: which file, and what the decoder said.
    """

    def __init__(self, reason: str, detail: str) -> None:
        super().__init__(reason, detail)  # both in `args`: an exception that crosses processes is rebuilt from them
        self.reason = reason
        self.detail = detail

    def __str__(self) -> str:
        return f"{self.reason}: {self.detail}"


def load_image(path: Path) -> Image.Image:
    """Decode a whole image file, upright, as 8-bit grey ("L") or colour ("RGB").

    16-bit and float images are stretched from their own range to 0–255, because a PNG does not say how many of its 16
    bits the detector used. Transparent pixels become white; of several frames the first is read. DICOM files are read
    by `m3ae.data.dicom`.

    Raises:
        ImportError: a DICOM file, and pydicom is not installed.
        UnreadableImageError: the file is missing, empty, truncated, corrupt or no image, or its header announces more
            than `PIL.Image.MAX_IMAGE_PIXELS` (89 million) pixels, 65,500 on a side, or a side of over 100 times the
            other.
    """
    if not os.path.isfile(path):  # unlike `Path.is_file`, False for a name that is too long
        raise UnreadableImageError("image missing", path.name)
    if path.stat().st_size == 0:
        raise UnreadableImageError("image file empty", path.name)
    if _is_dicom(path):
        return _load_dicom(path)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("error", Image.DecompressionBombWarning)
            opened = Image.open(path)
        with opened as image:
            if max(image.size) > MAX_SIDE:
                raise Image.DecompressionBombError(f"{image.width}x{image.height} pixels, limit {MAX_SIDE} on a side")
            if max(image.size) > MAX_ASPECT * min(image.size):
                raise UnreadableImageError("image too narrow", f"{path.name}: {image.width}x{image.height} pixels")
            image.load()
            return _to_8bit(ImageOps.exif_transpose(image) if _orientation(image) != 1 else image)
    except UnreadableImageError:
        raise
    except UnidentifiedImageError as error:
        raise UnreadableImageError("not an image", path.name) from error
    except (Image.DecompressionBombWarning, Image.DecompressionBombError) as error:
        raise UnreadableImageError("image too large", f"{path.name}: {error}") from error
    except (
        Exception
    ) as error:  # a decoder raises whatever its parser trips over: OSError, SyntaxError, struct.error, …
        raise UnreadableImageError("image truncated or corrupt", f"{path.name}: {error}") from error


@contextmanager
def damage_named(row: str) -> Iterator[None]:
    """Say which row of a prepared folder it is whose image cannot be opened or decoded in this block.

    Raises:
        ValueError: It cannot.
    """
    try:
        yield
    except Exception as error:  # a decoder raises whatever its parser trips over
        raise ValueError(f"row {row!r}: its image is damaged ({error}); prepare the folder again") from error


def open_image(content: bytes, row: str) -> Image.Image:
    """Open the image of a row of a prepared folder, to be decoded when its pixels are asked for.

    Raises:
        ValueError: It is damaged.
    """
    with damage_named(row):
        return Image.open(io.BytesIO(content))


def decode_image(content: bytes, row: str) -> Image.Image:
    """Decode the image of a row of a prepared folder.

    Raises:
        ValueError: It is damaged.
    """
    with damage_named(row):
        image = Image.open(io.BytesIO(content))
        image.load()
        return image


def encode_image(image: Image.Image, shorter_side: int | None = 384, quality: int = 95) -> bytes:
    """Encode an image as JPEG, shrunk (never enlarged) so that its shorter side is at most `shorter_side` pixels.

    An upright JPEG that is small enough, opened from a file and untouched since, keeps the bytes of that file, so that
    nothing is compressed twice; so does a PNG where nothing is to be shrunk.

    Args:
        image: of mode "L" or "RGB", as `load_image` returns it.
        shorter_side: in pixels; None never shrinks.
        quality: of the JPEG, 1–95.
    """
    scale = 1.0 if shorter_side is None else shorter_side / min(image.size)
    kept_formats = ("JPEG",) if shorter_side else ("JPEG", "PNG")
    filename = getattr(image, "filename", "")
    unchanged = scale >= 1 and image.mode in ("L", "RGB") and _orientation(image) == 1
    if unchanged and filename and image.format in kept_formats:
        return Path(filename).read_bytes()
    if scale < 1:
        width, height = (round(side * scale) for side in image.size)
        image = image.resize((width, height), Image.Resampling.LANCZOS)
    buffer = io.BytesIO()
    image.save(buffer, format="JPEG", quality=quality)
    return buffer.getvalue()


def _is_dicom(path: Path) -> bool:
    """Return whether a file is DICOM by its name or by the magic bytes behind its preamble."""
    if path.suffix.lower() in (".dcm", ".dicom"):
        return True
    try:
        with path.open("rb") as file:
            return file.read(132)[128:] == b"DICM"
    except OSError:
        return False  # Pillow says why it cannot be read


def _load_dicom(path: Path) -> Image.Image:
    try:
        from m3ae.data.dicom import load_dicom
    except ModuleNotFoundError as error:
        raise ImportError(
            f"{path.name} is a DICOM file, and the library {error.name} is not installed: pip install 'm3ae[dicom]'"
        ) from error
    return load_dicom(path)


def _orientation(image: Image.Image) -> int:
    """Return the EXIF orientation: 1 is upright, 2–8 are flips and turns."""
    return int(image.getexif().get(Base.Orientation, 1))


def _to_8bit(image: Image.Image) -> Image.Image:
    if image.mode in WIDE_MODES:
        return _stretch(image)
    if image.has_transparency_data:
        return _flatten(image)
    if image.mode in ("L", "RGB"):
        return image
    if image.mode == "CMYK" and image.format == "JPEG" and "adobe" not in image.info:
        image = ImageChops.invert(image)  # Pillow takes every CMYK JPEG for one of Adobe's, which are stored inverted
    return image.convert("L" if image.mode == "1" else "RGB")


def _stretch(image: Image.Image) -> Image.Image:
    pixels = np.nan_to_num(np.asarray(image, dtype=np.float64))
    low, high = pixels.min(), pixels.max()
    grey = (pixels - low) * (255 / max(high - low, 1e-12))
    return Image.fromarray(grey.round().astype(np.uint8))


def _flatten(image: Image.Image) -> Image.Image:
    layer = image.convert("RGBA")
    white = Image.new("RGBA", layer.size, "white")
    return Image.alpha_composite(white, layer).convert("L" if image.mode in ("1", "L", "LA", "La") else "RGB")
