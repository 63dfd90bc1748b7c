"""From samples to numbers: rows of all processes, means over them, and how far a metric depends on the sample.

A percentile bootstrap draws as many samples as there are, with replacement, and computes the metric of them, again and
again; the interval spans the middle of the values (Efron & Tibshirani 1993, An Introduction to the Bootstrap, chapter
13). Where samples belong together (questions about one image, images of one subject), whole groups are drawn: taken
for independent, such samples would give too narrow an interval.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any, NamedTuple, TypeVar

import numpy as np
import torch
from accelerate.utils import gather_object
from numpy.typing import ArrayLike, NDArray
from torch import Tensor

RowT = TypeVar("RowT")


def gather_rows(rows: Sequence[RowT]) -> list[RowT]:
    """Return the rows of all P processes in the order of the samples, in every process; each has to call this.

    Process p holds the rows of the samples p, p + P, p + 2P, …, one a sample: `range(process_index, size,
    num_processes)`. No process pads its share, so no sample is counted twice. Rows can be pickled and lie on the CPU.

    Raises:
        ValueError: The processes hold other numbers of rows than such shares have.
    """
    shares = gather_object([list(rows)])
    sizes = [len(share) for share in shares]
    size, processes = sum(sizes), len(shares)
    expected = [len(range(process, size, processes)) for process in range(processes)]
    if sizes != expected:
        raise ValueError(
            f"the processes hold {sizes} rows, expected {expected}: process p of P takes the samples p, p + P, …"
        )
    return [shares[index % processes][index // processes] for index in range(size)]


class MeanMetrics:
    """Running sums and counts by name, so that a mean never depends on how samples were batched or distributed."""

    def __init__(self) -> None:
        self._sums: dict[str, tuple[Tensor, Tensor]] = {}

    def add(self, name: str, values: Tensor, valid: Tensor | None = None) -> None:
        """Count the values, or those where `valid` (of the same shape, bool) is True."""
        valid = torch.ones_like(values, dtype=torch.bool) if valid is None else valid
        total = torch.where(valid, values.double(), 0.0).sum()
        count = valid.sum()
        before = self._sums.get(name, (0.0, 0))
        self._sums[name] = (before[0] + total, before[1] + count)

    def compute(self) -> dict[str, float]:
        """Return the means over all processes, each of which has to call this; a mean of nothing is left out."""
        sums = {name: (float(total), int(count)) for name, (total, count) in self._sums.items()}
        everywhere = gather_object([sums])
        means = {}
        for name in sorted({name for process in everywhere for name in process}):
            totals, counts = zip(*(process[name] for process in everywhere if name in process), strict=True)
            if sum(counts):
                means[name] = sum(totals) / sum(counts)
        return means


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
        groups: (N,) equal entries name samples that are drawn together; if None, each sample is drawn by itself.
        resamples: Number of draws. A metric's draws in which it is undefined (NaN) are left out.
        confidence: Share of the values within the interval.
        seed: Seed of the draws.

    Raises:
        ValueError: There are no samples, or not as many `groups`.
    """
    codes, number = _group_codes(size, groups)
    members = np.split(np.argsort(codes, kind="stable"), np.cumsum(np.bincount(codes))[:-1])
    values = metric(np.arange(size))
    draws = [metric(np.concatenate([members[group] for group in draw])) for draw in _draws(number, resamples, seed)]
    samples = {name: np.array([draw[name] for draw in draws], dtype=np.float64) for name in values}
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
        values: Values (N,) of the samples by name; those that are NaN do not count, for instance the right (1) and
            wrong (0) answers to closed questions, NaN for open ones.
        groups: Groups of samples, as for `bootstrap`; so are the other arguments.
        resamples: Number of draws.
        confidence: Share of the values within the interval.
        seed: Seed of the draws.

    Raises:
        ValueError: There are no samples, or not as many `groups`, or not as many values of every name.
    """
    matrix = np.stack([np.asarray(column, dtype=np.float64) for column in values.values()], axis=1)  # (N, metrics)
    codes, number = _group_codes(len(matrix), groups)
    counted = ~np.isnan(matrix)
    totals, counts = (np.zeros((number, matrix.shape[1])) for _ in range(2))
    np.add.at(totals, codes, np.where(counted, matrix, 0.0))
    np.add.at(counts, codes, counted)
    weights = (np.bincount(draw, minlength=number) for draw in _draws(number, resamples, seed))
    draws = np.stack([_ratio(weight @ totals, weight @ counts) for weight in weights])  # (resamples, metrics)
    means = _ratio(totals.sum(0), counts.sum(0))
    return {name: _interval(means[i], draws[:, i], confidence) for i, name in enumerate(values)}


def _group_codes(size: int, groups: Sequence[Any] | None) -> tuple[NDArray[np.intp], int]:
    """Return the number of each sample's group, in the order of first appearance, and how many groups there are."""
    names = range(size) if groups is None else groups
    if size == 0 or len(names) != size:
        raise ValueError(f"a bootstrap needs samples, and a group for each if any: got {size} and {len(names)} groups")
    numbers: dict[Any, int] = {}
    codes = np.array([numbers.setdefault(group, len(numbers)) for group in names], dtype=np.intp)
    return codes, len(numbers)


def _draws(number: int, resamples: int, seed: int) -> Iterator[NDArray[np.intp]]:
    generator = np.random.default_rng(seed)
    return (generator.integers(number, size=number) for _ in range(resamples))


def _ratio(totals: NDArray[np.float64], counts: NDArray[np.float64]) -> NDArray[np.float64]:
    return np.divide(totals, counts, out=np.full_like(totals, np.nan), where=counts > 0)


def _interval(value: float, draws: NDArray[np.float64], confidence: float) -> Interval:
    defined = draws[~np.isnan(draws)]
    if not len(defined):
        return Interval(float(value), np.nan, np.nan)
    tail = (1 - confidence) / 2
    low, high = np.quantile(defined, (tail, 1 - tail))
    return Interval(float(value), float(low), float(high))
