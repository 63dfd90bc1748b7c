"""Hostile and unusual image files, each generated here."""

import io
import pickle
import struct
import sys
import zlib
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
from PIL import Image

from m3ae.images.files import UnreadableImageError, decode_image, encode_image, is_image, load_image


def gradient(width: int = 32, height: int = 16) -> Image.Image:
    return Image.fromarray(np.tile(np.linspace(0, 255, width).astype(np.uint8), (height, 1)))


def saved(image: Image.Image, path: Path, **options: object) -> Path:
    image.save(path, **options)
    return path


@pytest.mark.parametrize(
    ("name", "content", "reason"),
    [
        ("absent.jpg", None, "image missing"),
        ("empty.jpg", b"", "image file empty"),
        ("text.jpg", b"no image at all, only text", "not an image"),
    ],
)
def test_what_is_no_image_is_refused_with_its_reason(
    tmp_path: Path, name: str, content: bytes | None, reason: str
) -> None:
    if content is not None:
        (tmp_path / name).write_bytes(content)
    with pytest.raises(UnreadableImageError) as caught:
        load_image(tmp_path / name)
    assert (caught.value.reason, caught.value.detail) == (reason, name)


@pytest.mark.parametrize("suffix", ["jpg", "png"])
def test_a_truncated_file_is_refused(tmp_path: Path, suffix: str) -> None:
    path = saved(gradient(256, 256).convert("RGB"), tmp_path / f"cut.{suffix}")
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])
    with pytest.raises(UnreadableImageError, match=rf"^image truncated or corrupt: cut\.{suffix}: "):
        load_image(path)


def test_the_row_of_a_damaged_image_is_named() -> None:
    buffer = io.BytesIO()
    gradient().save(buffer, "PNG")
    content = buffer.getvalue()
    assert decode_image(content, "x7").tobytes() == gradient().tobytes()
    for damaged in (b"no image", content[:60]):
        with pytest.raises(ValueError, match=r"row 'x7': its image is damaged \(.*\); prepare the folder again"):
            decode_image(damaged, "x7")


def test_a_folder_is_no_image(tmp_path: Path) -> None:
    with pytest.raises(UnreadableImageError, match="image missing"):
        load_image(tmp_path)


@pytest.mark.parametrize(("width", "height"), [(30_000, 30_000), (10_000, 10_000), (70_000, 1)])
def test_a_decompression_bomb_is_refused_by_its_header(tmp_path: Path, width: int, height: int) -> None:
    def chunk(kind: bytes, body: bytes) -> bytes:
        return struct.pack(">I", len(body)) + kind + body + struct.pack(">I", zlib.crc32(kind + body))

    header = chunk(b"IHDR", struct.pack(">IIBBBBB", width, height, 8, 0, 0, 0, 0))
    path = tmp_path / "bomb.png"
    path.write_bytes(b"\x89PNG\r\n\x1a\n" + header + chunk(b"IDAT", zlib.compress(b"")) + chunk(b"IEND", b""))
    with pytest.raises(UnreadableImageError, match=r"^image too large: bomb\.png"):
        load_image(path)


def test_a_reason_survives_the_way_back_from_a_worker() -> None:
    error = pickle.loads(pickle.dumps(UnreadableImageError("not an image", "a.jpg")))
    assert (error.reason, error.detail, str(error)) == ("not an image", "a.jpg", "not an image: a.jpg")


def test_16_bits_are_stretched_to_8_from_the_range_in_use(tmp_path: Path) -> None:
    twelve_bits = np.array([[0, 1000, 2000, 4000]], dtype=np.uint16)
    image = load_image(saved(Image.fromarray(twelve_bits), tmp_path / "12_in_16.png"))
    assert image.mode == "L"
    assert np.asarray(image).tolist() == [[0, 64, 128, 255]]


def test_a_constant_16_bit_image_is_black(tmp_path: Path) -> None:
    image = load_image(saved(Image.fromarray(np.full((2, 2), 700, dtype=np.uint16)), tmp_path / "constant.png"))
    assert np.asarray(image).tolist() == [[0, 0], [0, 0]]


def test_cmyk_becomes_rgb(tmp_path: Path) -> None:
    image = load_image(saved(Image.new("CMYK", (8, 8), (0, 255, 255, 0)), tmp_path / "cmyk.jpg"))
    assert image.mode == "RGB"
    red, green, blue = image.getpixel((4, 4))
    assert red > 240 and green < 16 and blue < 16


def test_cmyk_of_other_programs_is_not_inverted(tmp_path: Path) -> None:
    red = saved(Image.new("CMYK", (8, 8), (255, 0, 0, 255)), tmp_path / "cmyk.jpg").read_bytes()
    start = red.index(b"\xff\xee")  # the marker by which Adobe's programs, and Pillow, say that they invert
    length = 2 + int.from_bytes(red[start + 2 : start + 4], "big")
    (tmp_path / "plain.jpg").write_bytes(red[:start] + red[start + length :])
    assert np.allclose(load_image(tmp_path / "plain.jpg").getpixel((4, 4)), (255, 0, 0), atol=16)


def test_transparency_is_flattened_onto_white(tmp_path: Path) -> None:
    palette = Image.new("P", (2, 1))
    palette.putpalette([0, 0, 0, 200, 0, 0])
    palette.putpixel((1, 0), 1)
    path = saved(palette, tmp_path / "palette.png", transparency=0)
    assert [load_image(path).getpixel((x, 0)) for x in (0, 1)] == [(255, 255, 255), (200, 0, 0)]

    grey = load_image(saved(Image.new("LA", (2, 2), (10, 0)), tmp_path / "grey_alpha.png"))
    assert (grey.mode, grey.getpixel((0, 0))) == ("L", 255)


def test_exif_rotation_is_applied(tmp_path: Path) -> None:
    exif = Image.Exif()
    exif[0x0112] = 6  # shown turned by 90 degrees clockwise
    path = saved(gradient(32, 16), tmp_path / "rotated.jpg", exif=exif)
    image = load_image(path)
    assert image.size == (16, 32)
    assert image.getpixel((8, 0)) < 20 and image.getpixel((8, 31)) > 235

    encoded = encode_image(image)
    assert encoded != path.read_bytes()
    assert Image.open(io.BytesIO(encoded)).size == (16, 32)
    assert encode_image(Image.open(path)) != path.read_bytes(), "the bytes of a rotated file would lie on their side"


@pytest.mark.parametrize("mode", ["L", "RGB"])
def test_a_small_jpeg_keeps_its_bytes(tmp_path: Path, mode: str) -> None:
    path = saved(gradient().convert(mode), tmp_path / "small.jpg", quality=40)
    image = load_image(path)
    assert image.mode == mode
    assert encode_image(image, shorter_side=16) == path.read_bytes()


@pytest.mark.parametrize(("suffix", "mode"), [("jpg", "RGB"), ("png", "L")])
def test_originals_keep_their_bytes_whatever_their_size(tmp_path: Path, suffix: str, mode: str) -> None:
    path = saved(gradient(600, 500).convert(mode), tmp_path / f"large.{suffix}")
    assert encode_image(load_image(path), shorter_side=None) == path.read_bytes()
    grey16 = saved(Image.fromarray(np.array([[0, 4000]], dtype=np.uint16)), tmp_path / "16.png")
    encoded = Image.open(io.BytesIO(encode_image(load_image(grey16), shorter_side=None)))
    assert (encoded.size, encoded.mode, encoded.format) == ((2, 1), "L", "JPEG")


def test_quality_is_that_of_the_jpeg(tmp_path: Path) -> None:
    image = load_image(saved(gradient(64, 64), tmp_path / "image.png"))
    assert encode_image(image, quality=95) == encode_image(image) != encode_image(image, quality=40)


def test_dicom_is_read_by_suffix_or_by_its_magic_bytes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    fake = SimpleNamespace(load_dicom=lambda path, max_pixels: Image.new("L", (3, 2), 77))
    monkeypatch.setitem(sys.modules, "m3ae.images.dicom", fake)
    (tmp_path / "a.DCM").write_bytes(b"?")
    (tmp_path / "image").write_bytes(bytes(128) + b"DICM" + bytes(9))
    for name in ("a.DCM", "image"):
        assert load_image(tmp_path / name).getpixel((0, 0)) == 77
    monkeypatch.delitem(sys.modules, "m3ae.images.dicom")
    monkeypatch.setitem(sys.modules, "pydicom", None)
    with pytest.raises(ImportError, match=r"a\.DCM is a DICOM file, .* not installed: pip install 'm3ae\[dicom\]'"):
        load_image(tmp_path / "a.DCM")


def test_files_are_images_by_suffix_or_as_dicom(tmp_path: Path) -> None:
    suffixes = ("JPG", "jpe", "jfif", "jp2", "avif", "pgm", "ppm", "tga", "webp", "TIFF", "bmp", "gif", "DICOM", "dcm")
    images = [f"a.{suffix}" for suffix in suffixes]
    for name in [*images, "notes.txt", "README", "a.nii.gz", "1.2.840.10008", "IM0001", "old"]:
        (tmp_path / name).touch()
    (tmp_path / "1.2.840.10008").write_bytes(bytes(128) + b"DICM")
    (tmp_path / "IM0001").write_bytes(b"\x02\x00\x00\x00UL\x04\x00")
    (tmp_path / "old").write_bytes(b"\x08\x00\x05\x00\x0a\x00\x00\x00")
    found = {path.name for path in tmp_path.iterdir() if is_image(path)}
    assert found == {*images, "1.2.840.10008", "IM0001", "old"}


@pytest.mark.parametrize("suffix", ["jp2", "tga", "ppm", "bmp", "gif", "tif", "webp", "sgi"])
def test_bytes_are_read_like_their_file(tmp_path: Path, suffix: str) -> None:
    path = saved(gradient(), tmp_path / f"a.{suffix}", **({"lossless": True} if suffix == "webp" else {}))
    for source in (path, str(path), path.read_bytes()):
        np.testing.assert_array_equal(np.asarray(load_image(source).convert("L")), np.asarray(gradient()))
    with pytest.raises(UnreadableImageError, match="not an image: bytes"):
        load_image(b"no image at all")
    with pytest.raises(UnreadableImageError, match="image file empty: bytes"):
        load_image(b"")


def test_a_larger_image_is_shrunk_to_the_shorter_side_and_never_enlarged(tmp_path: Path) -> None:
    path = saved(gradient(90, 40), tmp_path / "large.jpg")
    shrunk = Image.open(io.BytesIO(encode_image(load_image(path), shorter_side=20)))
    assert (shrunk.size, shrunk.mode, shrunk.format) == ((45, 20), "L", "JPEG")
    png = saved(gradient(30, 10), tmp_path / "small.png")
    assert Image.open(io.BytesIO(encode_image(load_image(png), shorter_side=20))).size == (30, 10)


def test_the_number_of_pixels_may_be_limited_further(tmp_path: Path) -> None:
    Image.new("L", (300, 200)).save(tmp_path / "a.png")
    assert load_image(tmp_path / "a.png", max_pixels=60_000).size == (300, 200)
    with pytest.raises(UnreadableImageError, match=r"image too large: a.png: 300x200 pixels, limit 0.05 million"):
        load_image(tmp_path / "a.png", max_pixels=50_000)
