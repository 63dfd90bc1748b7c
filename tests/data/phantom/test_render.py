"""The pictures of the built-in data, measured against the same patient without the finding."""

import functools

import numpy as np
import pytest

from m3ae.data.phantom.render import render
from m3ae.data.phantom.report import SIZES, ZONES, Factors

NONE = Factors("none")
PATIENTS = range(5)
VIEWS = ("frontal", "lateral")


@functools.cache
def picture(factors: Factors, index: int, projection: str) -> np.ndarray:
    return np.asarray(render(factors, 0, index, projection), dtype=np.float64) / 255


def difference(factors: Factors, index: int, projection: str = "frontal") -> np.ndarray:
    """What a finding adds to the brightness of a patient's picture, in [-1, 1]."""
    return picture(factors, index, projection) - picture(NONE, index, projection)


def with_size(finding: str, size: str) -> Factors:
    zone = {"effusion": "lower", "pneumothorax": "upper"}.get(finding, "middle")
    return Factors(finding, None, None, size) if finding == "cardiomegaly" else Factors(finding, "right", zone, size)


@pytest.mark.parametrize("projection", VIEWS)
@pytest.mark.parametrize("image_size", [64, 97])
def test_pictures_are_gray_square_and_use_the_range(projection: str, image_size: int) -> None:
    picture = render(NONE, 0, 0, projection, image_size)
    assert (picture.mode, picture.size) == ("L", (image_size, image_size))
    low, high = picture.getextrema()
    assert low < 10
    assert high > 215


@pytest.mark.parametrize("projection", VIEWS)
def test_the_same_call_gives_the_same_bytes(projection: str) -> None:
    factors = Factors("opacity", "left", "upper", "large")
    first, again, other = (render(factors, 0, index, projection).tobytes() for index in (1, 1, 2))
    assert first == again
    assert first != other


def test_lungs_are_darker_than_heart_and_abdomen() -> None:
    mean = np.mean([picture(NONE, index, "frontal") for index in PATIENTS], axis=0)
    right_lung, left_lung, spine, liver = (
        mean[50:70, 36:44],
        mean[45:60, 88:94],
        mean[60:80, 62:66],
        mean[105:120, 30:60],
    )
    assert max(right_lung.mean(), left_lung.mean()) + 0.2 < min(spine.mean(), liver.mean())


@pytest.mark.parametrize("projection", VIEWS)
def test_a_dilated_heart_is_wider_and_a_slender_one_is_that_of_others(projection: str) -> None:
    lung = dict(zip(("side", "zone", "size"), ("right", "upper", "small"), strict=True))
    for index in PATIENTS:
        untold, slender, dilated = (
            picture(Factors("nodule", **lung, heart=heart), index, projection)
            for heart in (None, "slender", "dilated")
        )
        assert (untold == slender).all()
        brighter = dilated - slender > 0.05
        assert brighter[50:110].mean() > 0.02 and brighter[:30].mean() < 0.002


@pytest.mark.parametrize("finding", ["nodule", "opacity", "effusion", "pneumothorax", "device"])
def test_the_patients_left_is_at_the_images_right(finding: str) -> None:
    zone = None if finding == "device" else with_size(finding, "large").zone
    for index in PATIENTS:
        for side, half in (("left", slice(64, None)), ("right", slice(None, 64))):
            change = np.abs(difference(Factors(finding, side, zone, None if zone is None else "large"), index))
            assert change[:, half].sum() > 0.75 * change.sum()


def test_a_left_opacity_brightens_the_right_half() -> None:
    for index in PATIENTS:
        change = difference(Factors("opacity", "left", "middle", "large"), index)
        assert change[:, 64:].mean() > 0.02
        assert abs(change[:, :64].mean()) < 0.002


@pytest.mark.parametrize("projection", VIEWS)
@pytest.mark.parametrize("finding", ["nodule", "opacity"])
def test_zones_are_ordered_by_height_and_apart(finding: str, projection: str) -> None:
    def height(zone: str, index: int) -> float:
        change = np.abs(difference(Factors(finding, "right", zone, "moderate"), index, projection))
        return float(np.average(np.arange(128), weights=change.sum(axis=1)))

    for index in PATIENTS:
        upper, middle, lower = (height(zone, index) for zone in ZONES)
        assert middle - upper > 10
        assert lower - middle > 10


@pytest.mark.parametrize("projection", VIEWS)
@pytest.mark.parametrize("finding", ["nodule", "opacity", "effusion", "pneumothorax", "cardiomegaly"])
def test_sizes_are_ordered_by_area_and_apart(finding: str, projection: str) -> None:
    sign = -1 if finding == "pneumothorax" else 1  # its extent is that of the air around the lung

    def area(size: str, index: int) -> int:
        change = difference(with_size(finding, size), index, projection)
        return int((sign * change > 0.04).sum())

    for index in PATIENTS:
        small, moderate, large = (area(size, index) for size in SIZES)
        assert small > 25
        assert moderate > 1.3 * small
        assert large > 1.3 * moderate


def test_sizes_are_apart_between_patients_too() -> None:
    def area(size: str) -> list[int]:
        changes = (difference(Factors("nodule", "right", "middle", size), index) for index in range(20))
        return [int((change > 0.06).sum()) for change in changes]

    small, moderate, large = map(area, SIZES)
    assert max(small) < min(moderate)
    assert max(moderate) < min(large)


def test_a_pneumothorax_is_darker_than_lung_and_other_lung_findings_are_brighter() -> None:
    for index in PATIENTS:
        assert difference(with_size("pneumothorax", "large"), index)[20:45].min() < -0.1
        for finding in ("nodule", "opacity", "effusion"):
            change = difference(with_size(finding, "moderate"), index)
            assert change.max() > 0.2 > 0.1 > -change.min()


def test_an_unknown_projection_is_refused() -> None:
    with pytest.raises(ValueError, match="unknown projection 'oblique': expected one of frontal, lateral"):
        render(NONE, 0, 0, "oblique")
