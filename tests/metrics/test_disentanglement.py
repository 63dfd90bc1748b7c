"""Metrics of latents whose factors are known."""

import math

import numpy as np
import pytest

from m3ae.metrics.disentanglement import (
    cluster_classes,
    correctness,
    coverage,
    dci,
    mutual_information_gap,
)

DRAW = np.random.default_rng(0)
FACTORS = DRAW.integers(0, [2, 3], (600, 2))
NOISE = 0.01 * DRAW.normal(size=(600, 4))
ALIGNED = np.concatenate([FACTORS, np.zeros((600, 2))], 1) + NOISE
TWICE = np.concatenate([FACTORS, FACTORS], 1) + NOISE  # each factor in two dimensions
TURNED = np.array([[1.0, 1.0, 0, 0], [-1.0, 1.0, 0, 0], [0, 0, 1, 0], [0, 0, 0, 1]])
MIXED = (ALIGNED + 0.2 * DRAW.normal(size=(600, 4))) @ TURNED  # each of two dimensions tells both factors


def test_the_gap_is_one_where_a_factor_has_a_dimension_and_none_where_it_has_two() -> None:
    # Noise alone says about (BINS − 1)·(values − 1) / 2N nats of a factor.
    assert mutual_information_gap(ALIGNED, FACTORS) == pytest.approx(1, abs=0.06)
    assert mutual_information_gap(TWICE, FACTORS) == pytest.approx(0, abs=0.01)
    assert mutual_information_gap(MIXED, FACTORS) < 0.5
    assert math.isnan(mutual_information_gap(ALIGNED, np.zeros((600, 1), int)))


def test_dci_tells_one_factor_a_dimension_from_one_dimension_a_factor() -> None:
    aligned, twice, mixed = (dci(z[:400], FACTORS[:400], z[400:], FACTORS[400:]) for z in (ALIGNED, TWICE, MIXED))
    assert aligned.disentanglement > 0.95 and aligned.completeness > 0.95 and aligned.informativeness > 0.99
    assert twice.disentanglement > 0.95 and twice.completeness < 0.6 and twice.informativeness > 0.99
    assert mixed.disentanglement < 0.6 and mixed.informativeness > 0.8


def test_clusters_are_named_one_to_one() -> None:
    clusters, classes = np.array([0, 0, 0, 1, 1, 2, 2]), np.array([2, 2, 0, 0, 0, 2, 1])
    assert cluster_classes(clusters, classes, 3).tolist() == [2, 0, 1]


def test_correctness_and_coverage_are_those_of_the_paper() -> None:
    shown, asked = np.array([[[0, 1], [0, 2]], [[1, 1], [0, 0]]]), np.array([[0, 1], [1, 0]])
    assert correctness(shown, asked) == pytest.approx((2 + 1 + 1 + 1) / 8)
    stuck = [coverage(np.zeros((1, 10, 1), int), [count]) for count in (10, 2, 3, 4)]
    assert stuck == pytest.approx([0.474, 0.784, 0.682, 0.620], abs=1e-3)
    perfect = [coverage(DRAW.integers(0, count, (4000, 10, 1)), [count]) for count in (10, 2, 3, 4)]
    assert perfect == pytest.approx([0.842, 0.986, 0.970, 0.952], abs=2e-3)
    assert coverage(np.arange(10).reshape(1, 10, 1), [10]) == pytest.approx(1)
    both = coverage(np.zeros((1, 10, 2), int), [10, 2])
    assert both == pytest.approx((0.474 + 0.784) / 2, abs=1e-3)
