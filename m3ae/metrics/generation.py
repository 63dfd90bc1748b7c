"""Metrics of generated samples: likeness, coherence, diversity, and what is expected of any missing rate.

Shapes: N samples, C channels, S side in pixels, F features, M modalities.
"""

from __future__ import annotations

import math

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.nn import functional as F

WINDOW, DEVIATION = 11, 1.5  # px, of the Gaussian window of SSIM
STABILISERS = (0.01**2, 0.03**2)  # for values in [0, 1]


def ssim(images: Tensor, others: Tensor) -> Tensor:
    """Return the structural similarity (Wang et al. 2004) of images (N, C, S, S) in [0, 1], (N,).

    ((2μ_xμ_y + c₁)(2σ_xy + c₂)) / ((μ²_x + μ²_y + c₁)(σ²_x + σ²_y + c₂)) in Gaussian windows of 11×11 pixels that lie
    wholly within the image, averaged over windows and channels. No library that this package needs has it for tensors.

    Raises:
        ValueError: The images are smaller than the window, or the shapes differ.
    """
    if images.shape != others.shape or min(images.shape[-2:]) < WINDOW:
        raise ValueError(
            f"SSIM needs two equal shapes of at least {WINDOW}×{WINDOW} pixels; got {tuple(images.shape)} and "
            f"{tuple(others.shape)}."
        )
    position = torch.arange(WINDOW, dtype=torch.float64) - WINDOW // 2
    window = (-(position**2) / (2 * DEVIATION**2)).exp()
    window = (window / window.sum()).to(images)

    def local_mean(values: Tensor) -> Tensor:
        single = values.flatten(0, 1)[:, None]
        return F.conv2d(F.conv2d(single, window.view(1, 1, -1, 1)), window.view(1, 1, 1, -1))

    mean_x, mean_y = local_mean(images), local_mean(others)
    variance_x = local_mean(images**2) - mean_x**2
    variance_y = local_mean(others**2) - mean_y**2
    covariance = local_mean(images * others) - mean_x * mean_y
    first, second = STABILISERS
    similarity = (2 * mean_x * mean_y + first) * (2 * covariance + second)
    similarity = similarity / ((mean_x**2 + mean_y**2 + first) * (variance_x + variance_y + second))
    return similarity.flatten(1).mean(1).view(images.shape[:2]).mean(1)


def cross_correlation(images: Tensor, others: Tensor) -> Tensor:
    """Return the normalised cross-correlation of images (N, …) without a shift, (N,): Pearson's, over their values.

    0 where one of the two is constant.
    """
    one, other = (values.flatten(1) - values.flatten(1).mean(1, keepdim=True) for values in (images, others))
    return F.cosine_similarity(one, other)


def frechet_distance(features: NDArray[np.float64], others: NDArray[np.float64]) -> float:
    """Return the Fréchet distance of two Gaussians with the moments of features (N, F) and (N', F).

    |μ − μ'|² + tr(Σ + Σ' − 2 (Σ Σ')^½) (Dowson & Landau 1982; FID where the features are Inception's, Heusel et al.
    2017). Comparable only between equal features, and for about equal N. The libraries that have it bring Inception.

    Raises:
        ValueError: Fewer than two samples.
    """
    if min(len(features), len(others)) < 2:
        raise ValueError(f"A Fréchet distance needs two samples or more, got {len(features)} and {len(others)}.")
    difference = features.mean(0) - others.mean(0)
    first, second = np.cov(features, rowvar=False), np.cov(others, rowvar=False)
    # tr (Σ Σ')^½ is the sum of the square roots of the eigenvalues of Σ^½ Σ' Σ^½, which is symmetric.
    values, vectors = np.linalg.eigh(np.atleast_2d(first))
    root = (vectors * np.sqrt(values.clip(0))) @ vectors.T
    overlap = np.sqrt(np.linalg.eigvalsh(root @ np.atleast_2d(second) @ root).clip(0)).sum()
    return float(difference @ difference + np.trace(np.atleast_2d(first + second)) - 2 * overlap)


def joint_coherence(classes: NDArray[np.integer]) -> float:
    """Return the share of N joint samples whose M modalities are all of one class, of classes (M, N)."""
    return float((classes == classes[:1]).all(0).mean())


def all_right(right: NDArray[np.bool_]) -> list[float]:
    """Return for k = 1 … A the probability that k of A labels of a sample, drawn at random, are all right.

    C(r, k) / C(A, k) for a sample with r right ones, averaged over samples: no order of the labels counts.

    Args:
        right: (N, A) whether each label of each sample is right.
    """
    size, counts = right.shape[1], right.sum(1).tolist()
    return [float(np.mean([math.comb(count, k) for count in counts]) / math.comb(size, k)) for k in range(1, size + 1)]


def within_class_diversity(
    generated: NDArray[np.floating], real: NDArray[np.floating], classes: NDArray[np.integer]
) -> float:
    """Return the variance of generated values within a class over that of real ones, summed over elements.

    1 where what is generated varies as reality does, 0 where it is the same for the whole class; samples of a wrong
    class inflate it. NaN where reality does not vary.

    Args:
        generated: (N, …) values that the decoder expects, each from another modality of the sample.
        real: (N, …) values of the modality itself.
        classes: (N,) classes of the samples.
    """
    expected = _within_class(real, classes)
    return _within_class(generated, classes) / expected if expected else math.nan


def _within_class(values: NDArray[np.floating], classes: NDArray[np.integer]) -> float:
    """Return the sum of squared deviations from the means of the classes."""
    flat = values.reshape(len(values), -1).astype(np.float64)
    groups = (flat[classes == number] for number in np.unique(classes))
    return float(sum(((group - group.mean(0)) ** 2).sum() for group in groups))


def subset_probabilities(members: Tensor, rate: float) -> Tensor:
    """Return the probability that `m3ae.data.collate.drop_modalities` leaves each subset of a complete sample.

    A subset S of M modalities is left with probability rate^(M − |S|) (1 − rate)^|S|; a single modality is also left
    in its share of the cases in which all would be dropped, rate^M / M.

    Args:
        members: (2^M − 1, M) bool, from `m3ae.models.gaussians.subsets`.
        rate: Probability that a modality is dropped.

    Returns:
        (2^M − 1,) float64, summing to 1.
    """
    size, total = members.sum(1), members.shape[1]
    rest = torch.where(size == 1, rate**total / total, 0.0)
    return (rate ** (total - size).double()) * ((1 - rate) ** size.double()) + rest
