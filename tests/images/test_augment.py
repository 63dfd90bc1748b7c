import numpy as np
import pytest
import torch
from PIL import Image

from m3ae.images.augment import affine, augment, centre_crop, fit, fitted_size, jitter, middle, plain, random_crop
from m3ae.models.processing import M3AEImageProcessor

GRADIENT = Image.fromarray((np.add.outer(np.arange(120), np.arange(160)) % 251).astype(np.uint8))


def test_grey_colours_become_grey_and_others_stay() -> None:
    assert plain(GRADIENT) is GRADIENT
    found = plain(GRADIENT.convert("RGB"))
    assert found.mode == "L" and found.tobytes() == GRADIENT.tobytes()
    coloured = GRADIENT.convert("RGB")
    coloured.putpixel((5, 7), (1, 2, 1))
    assert plain(coloured).tobytes() == coloured.tobytes()
    assert plain(GRADIENT.convert("P")).mode == "L"


def test_a_16_bit_row_is_seen_as_preparing_would_show_it() -> None:
    wide = Image.fromarray(np.asarray(GRADIENT).astype(np.uint16) * 257)
    assert plain(wide).mode == "L"
    np.testing.assert_array_equal(np.asarray(plain(wide)), np.round(np.asarray(GRADIENT) * (255 / 250)))


@pytest.mark.parametrize("size", [(160, 120), (97, 131), (64, 64), (30, 20), (64, 65)])
@pytest.mark.parametrize("mode", ["L", "RGB"])
def test_the_centre_crop_has_the_pixels_of_the_processor(size, mode) -> None:
    image = GRADIENT.resize(size).convert(mode)
    processor = M3AEImageProcessor.for_size(64)
    expected = processor([image], return_tensors="pt", do_rescale=False, do_normalize=False)["pixel_values"][0]
    found = torch.from_numpy(np.array(centre_crop(image, 64).convert("RGB"))).permute(2, 0, 1)
    assert torch.equal(found, expected.to(torch.uint8))


def test_the_random_crop_has_the_published_areas_and_shapes() -> None:
    # A pixel holds its own place, so the corners of a crop tell what was cut out.
    across = Image.fromarray(np.tile(np.arange(0, 200, dtype=np.uint8), (200, 1)))
    down = across.transpose(Image.Transpose.TRANSPOSE)
    areas, ratios, places = [], [], []
    for seed in range(300):
        sides = []
        for image in (across, down):
            pixels = np.asarray(random_crop(image, 50, np.random.default_rng(seed), (0.25, 1.0)), dtype=float)
            values = pixels[25] if image is across else pixels[:, 25]
            sides.append((values[40] - values[9]) / 31 * 50)
            places.append(values.mean())
        areas.append(sides[0] * sides[1] / 200**2)
        ratios.append(sides[0] / sides[1])
    assert 0.23 < min(areas) < 0.35 and 0.85 < max(areas) < 1.02
    assert 0.72 < min(ratios) < 0.8 and 1.25 < max(ratios) < 1.38
    assert min(places) < 70 and max(places) > 130


def test_a_shape_that_never_fits_is_cropped_at_the_centre() -> None:
    narrow = GRADIENT.resize((400, 20))
    found = random_crop(narrow, 16, np.random.default_rng(0), (0.9, 1.0))
    assert found.tobytes() == centre_crop(narrow, 16).tobytes()


def test_jitter_moves_and_retones_a_little_and_mirrors_nothing() -> None:
    pixels = np.full((64, 64), 60, dtype=np.uint8)
    pixels[8:16, 40:56] = 200  # bright at the upper right
    for seed in range(50):
        found = np.asarray(jitter(Image.fromarray(pixels), np.random.default_rng(seed)), dtype=float)
        assert found.shape == (64, 64)
        y, x = np.unravel_index(found.argmax(), found.shape)
        assert y < 24 and x > 32
        assert found.max() > np.median(found) + 60
    tones = [np.median(np.asarray(jitter(Image.fromarray(pixels), np.random.default_rng(seed)))) for seed in range(50)]
    assert 35 < min(tones) < 50 and 68 < max(tones) < 90


@pytest.mark.parametrize("augmentation", ["crop", "radiograph", "affine"])
@pytest.mark.parametrize("mode", ["L", "RGB"])
def test_augmentations_depend_on_their_draw_alone(augmentation, mode) -> None:
    image = GRADIENT.convert(mode)
    found = [augment(image, 48, np.random.default_rng(seed), augmentation, (0.5, 1.0)).tobytes() for seed in (1, 1, 2)]
    assert found[0] == found[1] != found[2]
    assert len(found[0]) == 48 * 48 * len(mode)


def test_a_scale_of_one_is_the_centre_crop() -> None:
    found = augment(GRADIENT, 48, np.random.default_rng(0), "crop", (1.0, 1.0))
    assert found.tobytes() == centre_crop(GRADIENT, 48).tobytes()


class Draws:
    """In place of a generator: angle and scale as shares of their ranges, and the shift (2,)."""

    def __init__(self, angle: float, scale: float, shift: tuple[float, float]) -> None:
        self.values = [angle, scale, shift]

    def uniform(self, low: float, high: float, size: int | None = None):
        value = np.asarray(self.values.pop(0))
        return value * high if size else float(value) * high


def test_affine_changes_are_what_the_draw_says() -> None:
    pixels = np.zeros((100, 100), np.uint8)
    pixels[30:40, 60:64] = 255
    image = Image.fromarray(pixels)
    assert affine(image, Draws(0, 0, (0, 0))).tobytes() == image.tobytes()
    moved = np.asarray(affine(image, Draws(0, 0, (1, -1))))
    assert np.array_equal(moved[23:33, 67:71], pixels[30:40, 60:64]), "7 % to the right, 7 % up"

    def centre(found: Image.Image) -> np.ndarray:
        weights = np.asarray(found, dtype=float)
        return np.array([(np.arange(100) + 0.5) @ weights.sum(axis) for axis in (0, 1)]) / weights.sum() - 50

    before = centre(image)
    np.testing.assert_allclose(centre(affine(image, Draws(0, 1, (0, 0)))), 1.12 * before, atol=0.1)
    cos, sin = np.cos(np.radians(12)), np.sin(np.radians(12))
    turned = centre(affine(image, Draws(1, 0, (0, 0))))
    np.testing.assert_allclose(
        turned, [cos * before[0] - sin * before[1], sin * before[0] + cos * before[1]], atol=0.1
    )


def test_sizes_that_fit_keep_the_aspect_ratio_and_one_side() -> None:
    assert [fitted_size(size, 64, 64) for size in ((64, 64), (100, 50), (7, 14), (49, 98), (1000, 1))] == [
        (64, 64),
        (64, 32),
        (32, 64),
        (32, 64),
        (64, 1),
    ]
    assert fitted_size((100, 50), 30, 10) == (20, 10)
    assert middle((8, 9), (4, 9)) == (slice(2, 6), slice(0, 9))
    assert fit(GRADIENT, 32, 16, "stretch").size == (32, 16) and fit(GRADIENT, 32, 16, "pad").size == (21, 16)


@pytest.mark.parametrize("augmentation", ["crop", "radiograph", "affine"])
def test_a_long_image_is_cut_in_its_own_shape_unless_it_is_to_be_square(augmentation) -> None:
    long = GRADIENT.resize((50, 200))
    sizes = {mode: set() for mode in ("crop", "pad", "stretch")}
    for mode, found in sizes.items():
        for seed in range(20):
            found.add(augment(long, 48, np.random.default_rng(seed), augmentation, (0.8, 1.0), mode).size)
    assert sizes["crop"] == sizes["stretch"] == {(48, 48)}
    assert all(height == 48 and 9 <= width <= 16 for width, height in sizes["pad"]) and len(sizes["pad"]) > 1
