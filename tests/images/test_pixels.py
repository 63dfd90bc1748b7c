"""Pixels of every depth, mode and layout, and what the range of a picture leaves out."""

import io
import struct
from pathlib import Path

import numpy as np
import pytest
from PIL import Image, TiffImagePlugin

from m3ae.images.pixels import array_to_8bit, to_8bit, value_range

RAMP = np.tile(np.arange(256, dtype=np.uint8), (64, 1))
WIDE = {
    "I;16": RAMP.astype(np.uint16) * 257,
    "I;16B": RAMP.astype(">u2") * 257,
    "I": RAMP.astype(np.int32) * 1000 - 7,
    "F": RAMP.astype(np.float32) / 255,
}


def pixels(image: Image.Image) -> np.ndarray:
    return np.asarray(to_8bit(image)).astype(int)


def tiff(path: Path, array: np.ndarray, **tags: object) -> Image.Image:
    header = TiffImagePlugin.ImageFileDirectory_v2()
    for number, name in ((42113, "no_data"), (274, "orientation")):
        if name in tags:
            header[number] = tags[name]
    Image.fromarray(array).save(path, tiffinfo=header)
    return Image.open(path)


def raw_tiff(array: np.ndarray, polarity: int, orientation: int = 1) -> Image.Image:
    """A TIFF of any byte order, kind of number and polarity, which Pillow does not write."""
    order = ">" if array.dtype.byteorder == ">" else "<"
    kind = {"u": 1, "i": 2, "f": 3}[array.dtype.kind]
    tags = {256: array.shape[1], 257: array.shape[0], 258: 8 * array.itemsize, 259: 1, 262: polarity, 273: 146}
    tags |= {274: orientation, 277: 1, 278: array.shape[0], 279: array.nbytes, 339: kind}
    entries = b"".join(struct.pack(f"{order}HHII", number, 4, 1, value) for number, value in tags.items())
    start = (b"MM" if order == ">" else b"II") + struct.pack(f"{order}HIH", 42, 8, len(tags))
    return Image.open(io.BytesIO(start + entries + bytes(4) + array.tobytes()))


@pytest.mark.parametrize("mode", WIDE)
def test_wide_modes_are_stretched(mode: str) -> None:
    image = (
        Image.frombytes("I;16B", (256, 64), WIDE[mode].tobytes()) if mode == "I;16B" else Image.fromarray(WIDE[mode])
    )
    assert image.mode == mode
    np.testing.assert_array_equal(pixels(image), RAMP)


@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf, -3.4028235e38, 1e35, -9999, -32768, 1e6])
def test_one_pixel_without_a_value_does_not_change_the_others(value: float) -> None:
    for array in (WIDE["F"].copy(), 4000 * WIDE["F"]):
        array[0, 0] = value
        found = pixels(Image.fromarray(array))
        np.testing.assert_array_equal(found[1:], RAMP[1:])
        assert found[0, 0] == (255 if value > 0 else 0)


@pytest.mark.parametrize(
    ("values", "expected"),
    [
        ([0, 1000, 4000], (0, 4000)),  # no value of three is a stray one
        ([7, 7, 7], (7, 7)),
        ([], (0, 0)),
        ([np.nan, np.inf], (0, 0)),
        ([*range(100), 5000], (0, 99)),
        ([*range(100), *[5000] * 20], (0, 5000)),  # a region, not a stray pixel
        ([*[0] * 100, 5000], (0, 5000)),  # nothing to compare the distance with
        ([*[-9999] * 50, *range(3000)], (0, 2999)),
        ([*range(-9999, -9000)], (-9999, -9001)),  # one value among others
        ([-32768, *range(-32767, 32768, 5)], (-32768, 32763)),
    ],
)
def test_the_range_is_that_of_plausible_values(values: list[float], expected: tuple[float, float]) -> None:
    assert value_range(np.array(values)) == expected


def test_the_no_data_value_of_a_file_is_black_and_outside_the_range(tmp_path: Path) -> None:
    for stated, value in (("-9999", -9999.0), ("0.5", 0.5), ("-1.7976931348623157e+308", np.nan), (" nan", np.nan)):
        array = 3 + WIDE["F"]
        array[:8] = value
        found = pixels(tiff(tmp_path / "a.tif", array, no_data=stated))
        np.testing.assert_array_equal(found[8:], RAMP[8:])
        assert not found[:8].any()
    sixteen = WIDE["I;16"] // 16 + 1
    sixteen[:32] = 65535
    np.testing.assert_array_equal(pixels(tiff(tmp_path / "b.tif", sixteen, no_data="65535"))[32:], RAMP[32:])
    np.testing.assert_array_equal(pixels(tiff(tmp_path / "c.tif", WIDE["F"], no_data="none")), RAMP)


@pytest.mark.parametrize("orientation", [1, 6])
@pytest.mark.parametrize("order", "<>")
@pytest.mark.parametrize("kind", ["u1", "u2", "i2", "u4", "i4", "f4", "f8"])
def test_tiff_of_every_byte_order_number_and_polarity(kind: str, order: str, orientation: int) -> None:
    scale, offset = {"u1": (1, 0), "i2": (200, -25000), "i4": (10**6, -(10**8)), "u4": (2**24, 0)}.get(kind, (200, 7))
    array = (RAMP.astype(np.int64) * scale + offset).astype(order + kind)
    expected = np.rot90(RAMP, -1) if orientation == 6 else RAMP
    np.testing.assert_array_equal(pixels(raw_tiff(array, 1, orientation)), expected)
    np.testing.assert_array_equal(pixels(raw_tiff(array, 0, orientation)), 255 - expected)


@pytest.mark.parametrize("array", [RAMP, WIDE["I;16"], WIDE["I"], WIDE["F"]], ids=["8", "16", "32", "float"])
@pytest.mark.parametrize(("number", "turns"), [(1, 0), (3, 2), (6, -1), (8, 1)])
def test_a_turned_tiff_stands_upright(tmp_path: Path, array: np.ndarray, number: int, turns: int) -> None:
    found = pixels(tiff(tmp_path / "a.tif", array, orientation=number))
    np.testing.assert_array_equal(found, np.rot90(RAMP, turns))


def test_a_transparent_16_bit_value_is_white(tmp_path: Path) -> None:
    array = WIDE["I;16"] // 2 + 100
    array[:8] = 65535
    Image.fromarray(array).save(tmp_path / "a.png", transparency=65535)
    found = pixels(Image.open(tmp_path / "a.png"))
    np.testing.assert_array_equal(found[8:], RAMP[8:])
    assert (found[:8] == 255).all()


@pytest.mark.parametrize(
    ("image", "expected"),
    [
        (Image.new("1", (2, 2), 1), 255),
        (Image.new("LA", (2, 2), (10, 0)), 255),
        (Image.new("LA", (2, 2), (10, 255)), 10),
        (Image.new("RGBA", (2, 2), (10, 20, 30, 255)), (10, 20, 30)),
        (Image.new("RGBA", (2, 2), (10, 20, 30, 0)), (255, 255, 255)),
        (Image.new("CMYK", (2, 2), (0, 255, 255, 0)), (255, 0, 0)),
        (Image.new("F", (2, 2), 7.5), 0),
        (Image.new("YCbCr", (2, 2), (76, 85, 255)), (254, 0, 0)),
    ],
    ids=lambda value: getattr(value, "mode", None),
)
def test_the_other_modes(image: Image.Image, expected: int | tuple[int, ...]) -> None:
    found = to_8bit(image)
    assert found.mode == ("L" if isinstance(expected, int) else "RGB")
    assert found.getpixel((1, 1)) == expected


COLOUR = np.stack([RAMP, RAMP[:, ::-1], RAMP // 2], axis=-1)


@pytest.mark.parametrize(
    ("array", "expected"),
    [
        (RAMP, RAMP),
        (RAMP // 4, RAMP // 4),  # 8 bits are what they are
        (RAMP[..., None], RAMP),
        (RAMP[None], RAMP),
        (RAMP > 9, 255 * (RAMP > 9)),
        (RAMP.astype(np.int64) // 2, RAMP // 2),
        (RAMP / 255, RAMP),
        (RAMP // 2 / np.float32(255), RAMP // 2),
        (RAMP // 2 * 1.0, RAMP // 2),
        ((RAMP / 255).astype(np.float16), RAMP),
        (RAMP * 16.0 - 1024, RAMP),  # Hounsfield units
        (RAMP.astype(np.uint16) * 16, RAMP),
        (RAMP.astype(np.int16) * 16 - 1024, RAMP),
        (RAMP / 127.5 - 1, RAMP),
        (COLOUR, COLOUR),
        (COLOUR.transpose(2, 0, 1), COLOUR),
        (COLOUR / 255, COLOUR),
        (np.dstack([COLOUR, RAMP]), np.dstack([COLOUR, RAMP])),
        (np.dstack([RAMP, RAMP]) / 255, np.dstack([RAMP, RAMP])),
    ],
)
def test_arrays(array: np.ndarray, expected: np.ndarray) -> None:
    np.testing.assert_array_equal(array_to_8bit(array), np.atleast_3d(expected))


def test_one_bad_number_does_not_change_the_rest_of_an_array() -> None:
    for scale in (1, 255):
        for value in (np.nan, np.inf, -np.inf, -9999):
            array = RAMP / 255 * scale
            array[0, 0] = value
            np.testing.assert_array_equal(array_to_8bit(array)[1:, :, 0], RAMP[1:])


def test_channels_are_where_they_are_said_to_be() -> None:
    square = np.arange(27, dtype=np.uint8).reshape(3, 3, 3)
    np.testing.assert_array_equal(array_to_8bit(square, channels_last=True), square)
    np.testing.assert_array_equal(array_to_8bit(square, channels_last=False), square.transpose(1, 2, 0))


@pytest.mark.parametrize("shape", [(8,), (5, 8, 8), (8, 8, 6), (2, 3, 8, 8)])
def test_an_array_of_another_shape_is_refused_by_its_shape(shape: tuple[int, ...]) -> None:
    with pytest.raises(ValueError, match=rf"got an array of shape \({shape[0]},.* expected \(height, width\)"):
        array_to_8bit(np.zeros(shape))


@pytest.mark.parametrize("dtype", [complex, object, "U3"])
def test_an_array_without_real_numbers_is_refused(dtype: object) -> None:
    with pytest.raises(ValueError, match="expected real numbers"):
        array_to_8bit(np.zeros((8, 8), dtype))
