"""How far a metric depends on which samples happened to be measured: percentile bootstrap intervals.

As many samples as there are, are drawn with replacement, and the metric is computed of them, again and again; the
interval spans the middle of the values found (Efron & Tibshirani 1993, An Introduction to the Bootstrap, chapter 13).
Where samples belong together (questions about one image, images of one subject), whole groups are drawn: taken for
independent, such samples would give too narrow an interval.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import ArrayLike, NDArray


class Interval(NamedTuple):
    """A metric of all samples, and the limits of its confidence interval; NaN where it is undefined."""

    value: float
    low: float
    high: float


def bootstrap(
    metric: Callable[[NDArray[np.intp]], Mapping[str, float]],
    size: int,
    *,
    groups: Sequence[Any] | None = None,
    resamples: int = 1000,
    confidence: float = 0.95,
    seed: int = 0,
) -> dict[str, Interval]:
    """Return the intervals of any metrics.

    Args:
        metric: Computes the metrics, by name, of the samples at the given positions (N,), with repetitions. For
            instance `lambda rows: multi_label_metrics(scores[rows], labels[rows], names)`.
        size: Number of samples.
        groups: (N,) equal entries name samples that are drawn together; each by itself if None.
        resamples: Number of draws. A metric's draws in which it is undefined (NaN) are left out.
        confidence: Share of the values within the interval.
        seed: Of the draws.

    Raises:
        ValueError: There are no samples, or not as many `groups`.
    """
    codes, number = _group_codes(size, groups)
    members = np.split(np.argsort(codes, kind="stable"), np.cumsum(np.bincount(codes))[:-1])
    values = metric(np.arange(size))
    drawn = [metric(np.concatenate([members[group] for group in draw])) for draw in _draws(number, resamples, seed)]
    samples = {name: np.array([found[name] for found in drawn], dtype=np.float64) for name in values}
    return {name: _interval(value, samples[name], confidence) for name, value in values.items()}


def bootstrap_means(
    values: Mapping[str, ArrayLike],
    *,
    groups: Sequence[Any] | None = None,
    resamples: int = 1000,
    confidence: float = 0.95,
    seed: int = 0,
) -> dict[str, Interval]:
    """Return the intervals of metrics that are means over samples; those of `bootstrap`, much faster.

    Accuracies and recalls are such means. So is what a model gains over another on the same samples: the mean of the
    differences, whose interval leaves out what makes samples easy for both.

    Args:
        values: By name, the values (N,) of the samples; those that are NaN do not count, for instance the right
            (1) and wrong (0) answers to closed questions, NaN for open ones.
        groups: See `bootstrap`.
        resamples: See `bootstrap`.
        confidence: See `bootstrap`.
        seed: See `bootstrap`.

    Raises:
        ValueError: There are no samples, or not as many `groups`, or not as many values of every name.
    """
    matrix = np.stack([np.asarray(own, dtype=np.float64) for own in values.values()], axis=1)  # (N, metrics)
    codes, number = _group_codes(len(matrix), groups)
    counted = ~np.isnan(matrix)
    totals, counts = (np.zeros((number, matrix.shape[1])) for _ in range(2))
    np.add.at(totals, codes, np.where(counted, matrix, 0.0))
    np.add.at(counts, codes, counted)
    weights = (np.bincount(draw, minlength=number) for draw in _draws(number, resamples, seed))
    drawn = np.stack([_ratio(weight @ totals, weight @ counts) for weight in weights])  # (resamples, metrics)
    means = _ratio(totals.sum(0), counts.sum(0))
    return {name: _interval(means[i], drawn[:, i], confidence) for i, name in enumerate(values)}


def _group_codes(size: int, groups: Sequence[Any] | None) -> tuple[NDArray[np.intp], int]:
    """Return the number of each sample's group, in the order of first appearance, and how many groups there are."""
    own = range(size) if groups is None else groups
    if size == 0 or len(own) != size:
        raise ValueError(f"a bootstrap needs samples, and a group for each if any: got {size} and {len(own)} groups")
    numbers: dict[Any, int] = {}
    codes = np.array([numbers.setdefault(group, len(numbers)) for group in own], dtype=np.intp)
    return codes, len(numbers)


def _draws(number: int, resamples: int, seed: int) -> Iterator[NDArray[np.intp]]:
    generator = np.random.default_rng(seed)
    return (generator.integers(number, size=number) for _ in range(resamples))


def _ratio(totals: NDArray[np.float64], counts: NDArray[np.float64]) -> NDArray[np.float64]:
    return np.divide(totals, counts, out=np.full_like(totals, np.nan), where=counts > 0)


def _interval(value: float, drawn: NDArray[np.float64], confidence: float) -> Interval:
    defined = drawn[~np.isnan(drawn)]
    if not len(defined):
        return Interval(float(value), np.nan, np.nan)
    tail = (1 - confidence) / 2
    low, high = np.quantile(defined, (tail, 1 - tail))
    return Interval(float(value), float(low), float(high))
