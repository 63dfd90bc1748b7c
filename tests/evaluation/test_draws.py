"""Drawn values beside real ones, where the answer is known."""

import numpy as np
import pytest

from m3ae.evaluation.draws import MAX_VALUES, distinct, nearness, told_apart

DRAW = np.random.default_rng(0)


def values(count: int, mean: float = 0.0) -> np.ndarray:
    return DRAW.normal(mean, 1, (count, 4, 3)).astype(np.float32)


def test_equal_distributions_are_not_told_apart_and_others_are() -> None:
    assert told_apart((values(1500), values(1500)), (values(1000), values(1000)), seed=0) == pytest.approx(
        0.5, abs=0.05
    )
    assert told_apart((values(300), values(300, 2)), (values(500), values(100, 2)), seed=0) > 0.98


def test_values_count_once() -> None:
    one, other = values(2)
    assert sorted(distinct(np.stack([one, other, one])).sum((1, 2))) == sorted([one.sum(), other.sum()])
    assert len(distinct(values(MAX_VALUES + 5))) == MAX_VALUES


def test_what_repeats_training_rows_is_near_them() -> None:
    training, real = values(50), values(20)
    assert nearness(training, training[:7], real) == pytest.approx(0, abs=1e-3)
    assert nearness(training, real, real) == 1
    assert nearness(training, training[:7] + 100, real) > 10
