"""Metrics of latent spaces whose factors are known, and of what is drawn from some of the factors.

Shapes: N samples, D latent dimensions, A factors, K draws of a query.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray
from scipy.optimize import linear_sum_assignment
from scipy.stats import entropy
from sklearn.base import clone
from sklearn.ensemble import RandomForestClassifier
from sklearn.metrics import confusion_matrix, mutual_info_score

Array = NDArray[Any]
BINS = 20  # of each latent dimension


class Disentanglement(NamedTuple):
    """DCI (Eastwood & Williams 2018): from 0 to 1; informativeness is an accuracy."""

    disentanglement: float  # a dimension tells one factor
    completeness: float  # a factor is told by one dimension
    informativeness: float


def mutual_information_gap(latents: Array, factors: Array) -> float:
    """Return MIG, mean_k (I(z_a; v_k) − I(z_b; v_k)) / H(v_k) (Chen et al. 2018).

    a and b are the two dimensions that tell most of factor k. Each dimension is cut into 20 bins of equal width. A
    factor with one value is left out; NaN without any other.

    Args:
        latents: (N, D), D ≥ 2.
        factors: (N, A) numbers of classes.
    """
    binned = [np.digitize(column, np.histogram_bin_edges(column, BINS)[:-1]) for column in latents.T]
    gaps = []
    for factor in factors.T:
        information = sorted((mutual_info_score(factor, column) for column in binned), reverse=True)
        if total := entropy(np.unique(factor, return_counts=True)[1]):
            gaps.append((information[0] - information[1]) / total)
    return float(np.mean(gaps)) if gaps else math.nan


def dci(learnt: Array, learnt_factors: Array, latents: Array, factors: Array, seed: int = 0) -> Disentanglement:
    """Return DCI by the importances of random forests, which learn from N' training rows and are judged on N rows.

    Args:
        learnt: (N', D).
        learnt_factors: (N', A) numbers of classes.
        latents: (N, D).
        factors: (N, A).
        seed: Seed of the forests.
    """
    columns = range(factors.shape[1])
    # All dimensions stand at each split, or a forest has to use those that tell nothing.
    forest = RandomForestClassifier(30, max_depth=12, max_features=None, random_state=seed)
    forests = [clone(forest).fit(learnt, learnt_factors[:, column]) for column in columns]
    importances = np.stack([forest.feature_importances_ for forest in forests], 1)  # (D, A)
    accuracy = np.mean([forest.score(latents, factors[:, column]) for column, forest in enumerate(forests)])
    return Disentanglement(_concentration(importances), _concentration(importances.T), float(accuracy))


def _concentration(importances: Array) -> float:
    """Return the mean of 1 − H(row) / log(columns), each row weighted by its sum."""
    if importances.shape[1] < 2 or not importances.sum():
        return math.nan
    weights, rows = importances.sum(1), importances[importances.sum(1) > 0]
    scores = 1 - entropy(rows, axis=1) / math.log(importances.shape[1])
    return float(np.average(scores, weights=weights[weights > 0]))


def cluster_classes(clusters: Array, classes: Array, count: int) -> Array:
    """Return the class (count,) of each cluster, one to one, that is right for most samples (N,) (Kuhn 1955)."""
    table = confusion_matrix(clusters, classes, labels=range(count))
    return np.asarray(linear_sum_assignment(-table)[1])


def correctness(predicted: Array, queries: Array) -> float:
    """Return 1 − Hamming distance / number of attributes asked for (Vedantam et al. 2018).

    Args:
        predicted: (N, K, A) classes of what was generated.
        queries: (N, A) classes that were asked for.
    """
    return float((predicted == queries[:, None]).mean())


def coverage(shown: Array, counts: Sequence[int]) -> float:
    """Return the mean of 1 − JS(histogram of K draws, uniform) over attributes not asked for (Vedantam et al. 2018).

    In nats, so that the range is narrow: of 10 draws, one value alone gives .78 for two classes and .47 for ten, and
    a perfect sampler .99 and .84.

    Args:
        shown: (N, K, A) classes of what was drawn.
        counts: Number of classes of each of the A attributes.
    """
    values = []
    for column, count in enumerate(counts):
        histogram = (shown[..., column, None] == np.arange(count)).mean(1)  # (N, classes)
        uniform = np.full(count, 1 / count)
        middle = (histogram + uniform) / 2
        divergence = (entropy(histogram, middle, axis=1) + entropy(uniform[None], middle, axis=1)) / 2
        values.append(1 - divergence.mean())
    return float(np.mean(values))
