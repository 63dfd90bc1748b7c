"""The rows of the built-in data."""

import pickle
from collections import Counter
from itertools import islice

import datasets
import numpy as np
import pytest

from m3ae.data.phantom import FEATURES, rows
from m3ae.data.phantom.render import render
from m3ae.data.phantom.report import Factors

COUNT = 7 * 300


@pytest.fixture(scope="module")
def studies() -> list[dict[str, object]]:
    return list(rows(num_studies=COUNT, seed=3))


def test_rows_have_the_columns_of_the_features_and_encode() -> None:
    row = next(rows(num_studies=1, image_size=32))
    assert row.keys() == FEATURES.keys()
    pictures = {view: row[view]() for view in ("frontal", "lateral")}
    example = datasets.Features(FEATURES).encode_example(row | pictures)
    assert FEATURES.decode_example(example)["lateral"].tobytes() == pictures["lateral"].tobytes()


def test_image_cells_survive_pickling_and_render_the_row(studies: list[dict[str, object]]) -> None:
    row = studies[5]
    factors = Factors(*(row[name] for name in ("finding", "side", "zone", "size", "heart")))
    for view in ("frontal", "lateral"):
        picture = pickle.loads(pickle.dumps(row[view]))()
        assert (picture.mode, picture.size) == ("L", (128, 128))
        assert picture.tobytes() == render(factors, 3, 5, view).tobytes()


def test_on_request_every_study_has_all_factors() -> None:
    drawn = list(rows(num_studies=50, factors="independent"))
    names = ("finding", "side", "zone", "size", "heart")
    assert all(row[name] in row["text"][0] for row in drawn for name in names)
    row = drawn[7]
    assert row["frontal"]().tobytes() == render(Factors(*(row[name] for name in names)), 0, 7, "frontal").tobytes()


def test_a_study_does_not_depend_on_how_many_there_are() -> None:
    def plain(num_studies: int, seed: int) -> list[object]:
        listed = islice(rows(num_studies=num_studies, seed=seed, image_size=32), 4)
        return [row | {view: row[view]().tobytes() for view in ("frontal", "lateral")} for row in listed]

    assert plain(4, seed=0) == plain(40, seed=0)
    assert plain(4, seed=0) != plain(4, seed=1)


def test_splits_are_eighty_ten_ten_and_ids_unique(studies: list[dict[str, object]]) -> None:
    splits = Counter(row["split"] for row in studies)
    assert splits == {"train": 0.8 * COUNT, "validation": 0.1 * COUNT, "test": 0.1 * COUNT}
    assert len({row["id"] for row in studies}) == COUNT


def test_findings_and_what_applies_to_them_are_balanced(studies: list[dict[str, object]]) -> None:
    def shares(factor: str, *findings: str) -> np.ndarray:
        counts = Counter(row[factor] for row in studies if not findings or row["finding"] in findings)
        return np.array(list(counts.values())) / counts.total()

    assert shares("finding") == pytest.approx(np.full(7, 1 / 7), abs=0.03)
    assert shares("side", "nodule", "opacity", "effusion", "pneumothorax", "device") == pytest.approx(
        [0.5] * 2, abs=0.04
    )
    assert shares("zone", "nodule", "opacity") == pytest.approx([1 / 3] * 3, abs=0.06)
    assert shares("size", "nodule", "opacity", "effusion", "cardiomegaly") == pytest.approx([1 / 3] * 3, abs=0.05)


def test_factors_are_independent_of_each_other_and_of_the_split(studies: list[dict[str, object]]) -> None:
    lungs = [row for row in studies if row["finding"] in ("nodule", "opacity")]
    for one, other in (("side", "zone"), ("side", "size"), ("zone", "size"), ("finding", "side"), ("split", "side")):
        joint = Counter((row[one], row[other]) for row in lungs)
        first, second = Counter(row[one] for row in lungs), Counter(row[other] for row in lungs)
        for a, b in joint:
            assert joint[a, b] / len(lungs) == pytest.approx(first[a] * second[b] / len(lungs) ** 2, abs=0.04)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"num_studies": 0}, "num_studies is 0, expected at least 1"),
        ({"seed": -1}, "seed is -1, expected at least 0"),
        ({"image_size": 16}, "image_size is 16, expected at least 32"),
    ],
)
def test_arguments_out_of_range_are_refused(arguments: dict[str, int], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        next(rows(**arguments))
