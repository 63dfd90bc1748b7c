"""Pixels of every depth, mode and layout, and what the range of a picture leaves out."""

import struct
from pathlib import Path

import numpy as np
import pytest
from PIL import Image, TiffImagePlugin

from m3ae.pixels import array_to_8bit, to_8bit, value_range

RAMP = np.tile(np.arange(256, dtype=np.uint8), (64, 1))
WIDE = {
    "I;16": RAMP.astype(np.uint16) * 257,
    "I;16B": RAMP.astype(">u2") * 257,
    "I": RAMP.astype(np.int32) * 1000 - 7,
    "F": RAMP.astype(np.float32) / 255,
}


def pixels(image: Image.Image) -> np.ndarray:
    return np.asarray(to_8bit(image)).astype(int)


def tiff(path: Path, array: np.ndarray, change: tuple[int, int] | None = None, **tags: object) -> Image.Image:
    """Write a TIFF; `change` sets a short tag that Pillow does not write otherwise."""
    header = TiffImagePlugin.ImageFileDirectory_v2()
    if "no_data" in tags:
        header[42113] = tags["no_data"]
    if "orientation" in tags:
        header[274] = tags["orientation"]
    Image.fromarray(array).save(path, tiffinfo=header)
    if change is not None:
        content = bytearray(path.read_bytes())
        content[content.find(struct.pack("<HHI", change[0], 3, 1)) + 8] = change[1]
        path.write_bytes(content)
    return Image.open(path)


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


@pytest.mark.parametrize("array", [RAMP, WIDE["I;16"], WIDE["F"]], ids=["8", "16", "float"])
def test_min_is_white_at_every_depth(tmp_path: Path, array: np.ndarray) -> None:
    np.testing.assert_array_equal(pixels(tiff(tmp_path / "a.tif", array, (262, 0))), 255 - RAMP)


@pytest.mark.parametrize("array", [RAMP, WIDE["I;16"], WIDE["I"], WIDE["F"]], ids=["8", "16", "32", "float"])
@pytest.mark.parametrize(("number", "turns"), [(1, 0), (3, 2), (6, -1), (8, 1)])
def test_a_turned_tiff_stands_upright(tmp_path: Path, array: np.ndarray, number: int, turns: int) -> None:
    found = pixels(tiff(tmp_path / "a.tif", array, orientation=number))
    np.testing.assert_array_equal(found, np.rot90(RAMP, turns))


def test_a_turned_min_is_white_tiff(tmp_path: Path) -> None:
    found = pixels(tiff(tmp_path / "a.tif", WIDE["I;16"], (262, 0), orientation=6))
    np.testing.assert_array_equal(found, 255 - np.rot90(RAMP, -1))


def test_unsigned_32_bits_beyond_the_signed_ones(tmp_path: Path) -> None:
    array = (RAMP.astype(np.uint32) * 2**24).view(np.int32)
    np.testing.assert_array_equal(pixels(tiff(tmp_path / "a.tif", array, (339, 1))), RAMP)


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
