import itertools

import numpy as np
import pytest
import torch
from scipy.linalg import sqrtm

from m3ae.data.collate import drop_modalities
from m3ae.metrics.generation import (
    all_right,
    cross_correlation,
    frechet_distance,
    joint_coherence,
    ssim,
    subset_probabilities,
    within_class_diversity,
)
from m3ae.models.gaussians import subsets


def test_cross_correlation_is_pearsons_and_0_for_a_constant_image() -> None:
    x, y = np.random.default_rng(0).random((2, 3, 1, 4, 5))
    expected = [np.corrcoef(a.ravel(), b.ravel())[0, 1] for a, b in zip(x, y, strict=True)]
    assert cross_correlation(torch.from_numpy(x), torch.from_numpy(y)).numpy() == pytest.approx(expected)
    x = torch.from_numpy(x)
    torch.testing.assert_close(cross_correlation(x, 0.3 - 2 * x), -torch.ones(3, dtype=torch.float64))
    assert cross_correlation(x, torch.ones_like(x)).tolist() == [0, 0, 0]


def test_ssim_of_one_window_is_its_formula() -> None:
    x, y = torch.rand(2, 3, 2, 11, 11, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    position = np.arange(-5, 6)
    weights = np.exp(-(position[:, None] ** 2 + position**2) / (2 * 1.5**2))
    weights /= weights.sum()
    expected = np.zeros(3)
    for row, channel in np.ndindex(3, 2):
        a, b = x[row, channel].numpy(), y[row, channel].numpy()
        mean_a, mean_b = (weights * a).sum(), (weights * b).sum()
        var_a, var_b = (weights * (a - mean_a) ** 2).sum(), (weights * (b - mean_b) ** 2).sum()
        cov = (weights * (a - mean_a) * (b - mean_b)).sum()
        numerator = (2 * mean_a * mean_b + 1e-4) * (2 * cov + 9e-4)
        expected[row] += numerator / ((mean_a**2 + mean_b**2 + 1e-4) * (var_a + var_b + 9e-4)) / 2
    assert ssim(x, y).numpy() == pytest.approx(expected)
    torch.testing.assert_close(ssim(x, x), torch.ones(3, dtype=torch.float64))
    large = torch.rand(2, 1, 28, 28)
    torch.testing.assert_close(ssim(large, 1 - large), ssim(1 - large, large))
    with pytest.raises(ValueError, match="at least 11×11"):
        ssim(large[..., :8, :8], large[..., :8, :8])


def test_frechet_distance_of_known_moments() -> None:
    draw = np.random.default_rng(0)
    a, b = draw.normal(size=(50, 4)), draw.normal(1.0, 2.0, size=(60, 4)) @ draw.normal(size=(4, 4))
    first, second = np.cov(a, rowvar=False), np.cov(b, rowvar=False)
    expected = ((a.mean(0) - b.mean(0)) ** 2).sum() + np.trace(first + second - 2 * sqrtm(first @ second).real)
    assert frechet_distance(a, b) == pytest.approx(expected)
    assert frechet_distance(a, a) == pytest.approx(0, abs=1e-9)
    assert frechet_distance(a, a + 3) == pytest.approx(4 * 9)
    assert frechet_distance(a[:, :1], 2 * a[:, :1]) == pytest.approx(a[:, 0].mean() ** 2 + a[:, 0].var(ddof=1))
    with pytest.raises(ValueError, match="two samples or more, got 1"):
        frechet_distance(a[:1], b)


def test_joint_coherence_asks_all_modalities() -> None:
    assert joint_coherence(np.array([[1, 2, 3, 0], [1, 2, 0, 0], [1, 3, 3, 0]])) == 0.5


def test_diversity_is_a_ratio_of_variances_within_classes() -> None:
    draw = np.random.default_rng(0)
    classes = np.arange(30) % 3
    centres = 10 * draw.normal(size=(3, 2, 4))
    real = centres[classes] + draw.normal(size=(30, 2, 4))
    means = np.stack([real[classes == number].mean(0) for number in range(3)])
    assert within_class_diversity(means[classes], real, classes) == pytest.approx(0)
    assert within_class_diversity(real + 1, real, classes) == pytest.approx(1)
    assert within_class_diversity(means[classes] + (real - means[classes]) / 2, real, classes) == pytest.approx(0.25)
    assert np.isnan(within_class_diversity(real, means[classes], np.arange(30)))
    assert within_class_diversity(np.sort(real, 0), real, classes) > 2, "wrong classes inflate it"


def test_several_labels_are_right_as_often_as_draws_of_them_are() -> None:
    right = np.random.default_rng(0).random((7, 4)) < 0.7
    found = all_right(right)
    for k in (1, 2, 3, 4):
        drawn = [right[:, labels].all(1).mean() for labels in itertools.combinations(range(4), k)]
        assert found[k - 1] == pytest.approx(np.mean(drawn))
    assert found[0] == pytest.approx(right.mean()) and found[3] == pytest.approx(right.all(1).mean())


@pytest.mark.parametrize("rate", [0.0, 0.3, 0.9])
def test_subset_probabilities_are_those_of_dropping(rate: float) -> None:
    points = (torch.arange(60) + 0.5) / 60
    noise = torch.cartesian_prod(points, points, points)
    left = drop_modalities(torch.ones_like(noise, dtype=torch.bool), noise, rate)
    members = subsets(3)
    found = (left[:, None] == members).all(-1).double().mean(0)
    probabilities = subset_probabilities(members, rate)
    assert probabilities.sum() == pytest.approx(1)
    torch.testing.assert_close(probabilities, found, atol=0.02, rtol=0)  # ties of the grid go to several
