"""Decisions from probabilities: thresholds chosen on validation, and whether a probability is a frequency.

Shapes: N samples, A classes or labels, K bins.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any, Literal, NamedTuple

import numpy as np
from numpy.typing import NDArray
from scipy.optimize import minimize_scalar
from sklearn.metrics import precision_recall_curve, roc_curve
from torch import Tensor

Criterion = Literal["f1", "youden"]
BINS = 15
LARGEST = math.log(100)  # logarithm of the largest temperature that is tried; the smallest is its inverse


class Bin(NamedTuple):
    """The samples with a probability in some range: their mean probability, the share of right ones, their number."""

    probability: float
    share: float
    size: int


def reliability(probabilities: NDArray[Any], right: NDArray[Any], bins: int = BINS) -> list[Bin]:
    """Return the bins of equal width, (k − 1)/K < p ≤ k/K, that have samples.

    Args:
        probabilities: (N,) of what was predicted, or of a label.
        right: (N,) 1 or True where the prediction is right, or the sample has the label.
        bins: The number K of bins.
    """
    numbers = np.ceil(probabilities * bins).clip(1, bins)
    groups = ((probabilities[rows], right[rows]) for rows in (numbers == k for k in range(1, bins + 1)) if rows.any())
    return [Bin(float(p.mean()), float(r.mean()), len(p)) for p, r in groups]


def calibration_error(probabilities: NDArray[Any], right: NDArray[Any], bins: int = BINS) -> float:
    """Return the expected calibration error, Σₖ nₖ/N·|shareₖ − probabilityₖ| (Naeini et al. 2015); NaN of nothing."""
    rows = reliability(probabilities, right, bins)
    gaps = [row.size * abs(row.share - row.probability) for row in rows]
    return sum(gaps) / len(probabilities) if rows else math.nan


def choose_threshold(probabilities: NDArray[Any], truth: NDArray[Any], criterion: Criterion) -> float:
    """Return the threshold of a label: samples of at least this probability have the label.

    Args:
        probabilities: (N,) of the label.
        truth: (N,) 1 = has the label, 0 = has not, anything else is unknown and left out.
        criterion: What is largest: F1, or Youden's index, the true minus the false positive rate.

    Returns:
        One of the probabilities; 0.5 if the samples do not differ in the label.
    """
    known = np.isin(truth, (0, 1))
    if len(np.unique(truth[known])) < 2:
        return 0.5
    if criterion == "f1":
        precision, recall, thresholds = precision_recall_curve(truth[known], probabilities[known])
        scores = 2 * precision * recall / np.maximum(precision + recall, np.finfo(float).tiny)
        return float(thresholds[scores[:-1].argmax()])
    false, true, thresholds = roc_curve(truth[known], probabilities[known], drop_intermediate=False)
    return float(thresholds[1:][(true - false)[1:].argmax()])  # the first one, infinity, takes nothing


def fit_temperature(loss: Callable[[Tensor], Tensor], logits: Tensor) -> float:
    """Return the temperature, 0.01 to 100, of logits (N, A) with the smallest loss (Guo et al. 2017).

    Args:
        loss: Returns the loss () of logits.
        logits: The logits.
    """
    optimum = minimize_scalar(
        lambda exponent: float(loss(logits / math.exp(exponent))), bounds=(-LARGEST, LARGEST), method="bounded"
    )
    return math.exp(optimum.x)
