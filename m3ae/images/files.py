"""Image files: read as verified 8-bit pictures, written as compact JPEG, and decoded from prepared rows."""

import io
import os
import re
import warnings
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache
from pathlib import Path

from PIL import Image, UnidentifiedImageError

from m3ae.images.pixels import MAX_ASPECT, MAX_SIDE, orientation, to_8bit

DICOM_SUFFIXES = (".dcm", ".dicom")
HEAD = 132  # bytes; the last four of them mark a DICOM file
OLD_DICOM = re.compile(rb"[\x02\x08]\0.\0|\0\x08\0.", re.DOTALL)  # the first tag of a file without a preamble


class UnreadableImageError(ValueError):
    """An image file that cannot be used.

    Attributes:
        reason: A short fixed phrase; equal reasons are counted together.
        detail: The name of the file, and the message of the decoder.
    """

    def __init__(self, reason: str, detail: str) -> None:
        super().__init__(reason, detail)  # both in `args`: an exception that crosses processes is rebuilt from them
        self.reason = reason
        self.detail = detail

    def __str__(self) -> str:
        return f"{self.reason}: {self.detail}"


def load_image(source: str | os.PathLike[str] | bytes, max_pixels: int | None = None) -> Image.Image:
    """Decode a whole image file, upright, as 8-bit grey ("L") or colour ("RGB"); see `m3ae.images.pixels.to_8bit`.

    Only the first of several frames is read. `m3ae.images.dicom` reads DICOM files.

    Args:
        source: A file, or the bytes of one.
        max_pixels: The largest number of pixels, in all frames of DICOM; by default `PIL.Image.MAX_IMAGE_PIXELS`, 89
            million.

    Raises:
        ImportError: The file is DICOM, and pydicom is not installed.
        UnreadableImageError: The file is missing, empty, truncated, corrupt or no image, or its header announces more
            than `max_pixels`, 65,500 pixels on a side, or a side of over 100 times the other.
    """
    if isinstance(source, bytes):
        file: Path | io.BytesIO = io.BytesIO(source)
        name, suffix, head = "bytes", "", source[:HEAD]
    else:
        file = Path(source)
        name, suffix, head = file.name, file.suffix.lower(), _read_head(file)
    if not head:
        raise UnreadableImageError("image file empty", name)
    if _is_dicom(suffix, head):
        return _load_dicom(file, name, max_pixels)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("error", Image.DecompressionBombWarning)
            opened = Image.open(file)
        with opened as image:
            if max(image.size) > MAX_SIDE:
                raise Image.DecompressionBombError(f"{image.width}x{image.height} pixels, limit {MAX_SIDE} on a side")
            if max_pixels and image.width * image.height > max_pixels:
                size = f"{image.width}x{image.height} pixels"
                raise Image.DecompressionBombError(f"{size}, limit {max_pixels / 1e6:g} million")
            if max(image.size) > MAX_ASPECT * min(image.size):
                raise UnreadableImageError("image too narrow", f"{name}: {image.width}x{image.height} pixels")
            return to_8bit(image)
    except UnreadableImageError:
        raise
    except UnidentifiedImageError as error:
        raise UnreadableImageError("not an image", name) from error
    except (Image.DecompressionBombWarning, Image.DecompressionBombError) as error:
        raise UnreadableImageError("image too large", f"{name}: {error}") from error
    except Exception as error:  # decoders raise whatever their parsers trip over: OSError, SyntaxError, struct.error
        raise UnreadableImageError("image truncated or corrupt", f"{name}: {error}") from error


def load_below(path: Path, folders: Sequence[Path], name: str) -> Image.Image:
    """Decode an image file that lies below one of some folders, once links and `..` are followed.

    Args:
        path: The file.
        folders: The folders; without any, every file passes.
        name: The name of the file in errors.

    Raises:
        UnreadableImageError: The file lies elsewhere, or cannot be read, see `load_image`.
    """
    path_below(path, folders, name)
    try:
        return load_image(path)
    except UnreadableImageError as error:
        raise UnreadableImageError(error.reason, error.detail.replace(path.name, name, 1)) from error


def path_below(path: Path, folders: Sequence[Path], name: str) -> Path:
    """Return a path below one of some folders, as `load_below` does; raise UnreadableImageError for another one."""
    if folders and not any(_leads_into(path, folder) for folder in folders):
        raise UnreadableImageError(
            "path leaves the source folder",
            f"{name}: copy the file into the source folder and name it relative to that, without .. and links",
        )
    return path


def is_image(path: Path) -> bool:
    """Return whether a file is an image by its suffix, in upper or lower case, or DICOM by its first bytes."""
    suffix = path.suffix.lower()
    return suffix in _pillow_suffixes() or (os.path.isfile(path) and _is_dicom(suffix, _read_head(path)))


def encode_image(image: Image.Image, shorter_side: int | None = 384, quality: int = 95) -> bytes:
    """Encode an image as JPEG, shrunk (never enlarged) so that its shorter side is at most `shorter_side` pixels.

    An upright JPEG that is small enough, opened from a file and not changed since, keeps the bytes of that file and
    is not compressed twice. Without `shorter_side`, a PNG keeps its bytes, too.

    Args:
        image: A picture of mode "L" or "RGB", from `load_image`.
        shorter_side: The length in pixels; None never shrinks.
        quality: The quality of the JPEG, 1–95.
    """
    scale = 1.0 if shorter_side is None else shorter_side / min(image.size)
    kept_formats = ("JPEG",) if shorter_side else ("JPEG", "PNG")
    filename = getattr(image, "filename", "")
    unchanged = scale >= 1 and image.mode in ("L", "RGB") and orientation(image) == 1
    if unchanged and filename and image.format in kept_formats:
        return Path(filename).read_bytes()
    if scale < 1:
        width, height = (round(side * scale) for side in image.size)
        image = image.resize((width, height), Image.Resampling.LANCZOS)
    buffer = io.BytesIO()
    image.save(buffer, format="JPEG", quality=quality)
    return buffer.getvalue()


def decode_image(content: bytes, row: str) -> Image.Image:
    """Decode the image of the prepared row of this id; raise ValueError if it is damaged."""
    try:
        image = Image.open(io.BytesIO(content))
        image.load()
        return image
    except Exception as error:  # decoders raise whatever their parsers trip over
        raise ValueError(f"row {row!r}: its image is damaged ({error}); prepare the folder again") from error


@dataclass(frozen=True)
class StoredImage:
    """The image of a prepared row, neither decoded nor resized: its encoded `content`, and the id of its `row`."""

    content: bytes
    row: str

    def decode(self) -> Image.Image:
        """Decode the image; raise ValueError if it is damaged."""
        return decode_image(self.content, self.row)


@dataclass(frozen=True)
class ImageFile:
    """An image file that is not read yet; it must lie below one of the `folders`, if there are any."""

    path: Path
    folders: tuple[Path, ...] = ()

    def decode(self) -> Image.Image:
        """Decode the file; see `load_below`."""
        return load_below(self.path, self.folders, str(self.path))


def _leads_into(path: Path, folder: Path) -> bool:
    try:
        return Path(os.path.realpath(path)).is_relative_to(os.path.realpath(folder))
    except ValueError:  # an embedded NUL
        return False


@cache
def _pillow_suffixes() -> frozenset[str]:
    """Return the suffixes of the formats that Pillow reads."""
    return frozenset(suffix for suffix, name in Image.registered_extensions().items() if name in Image.OPEN)


def _read_head(path: Path) -> bytes:
    if not os.path.isfile(path):  # unlike `Path.is_file`, False for a name that is too long
        raise UnreadableImageError("image missing", path.name)
    try:
        with path.open("rb") as file:
            return file.read(HEAD)
    except OSError as error:
        raise UnreadableImageError("image truncated or corrupt", f"{path.name}: {error}") from error


def _is_dicom(suffix: str, head: bytes) -> bool:
    """Return whether a file is DICOM by its name, the magic bytes behind its preamble, or its first element."""
    is_old = OLD_DICOM.match(head) is not None and suffix not in _pillow_suffixes()
    return suffix in DICOM_SUFFIXES or head[128:] == b"DICM" or is_old


def _load_dicom(file: Path | io.BytesIO, name: str, max_pixels: int | None) -> Image.Image:
    try:
        from m3ae.images.dicom import load_dicom
    except ModuleNotFoundError as error:
        raise ImportError(
            f"{name} is a DICOM file, and the library {error.name} is not installed: pip install 'm3ae[dicom]'"
        ) from error
    return load_dicom(file, max_pixels)
