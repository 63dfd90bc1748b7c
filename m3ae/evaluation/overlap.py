"""How well volumes are drawn from other modalities: overlap and distance, beside what needs no model.

Shapes: N rows of a split, n of them.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, fields
from typing import TYPE_CHECKING, Annotated, Any

import numpy as np
from numpy.typing import NDArray
from pydantic import BeforeValidator

from m3ae.metrics.overlap import dice, hausdorff95, positive_predictive_value, sensitivity

if TYPE_CHECKING:
    from m3ae.evaluation.passes import Rows
    from m3ae.evaluation.report import SubsetResult

Array = NDArray[Any]
LEVEL = 0.5  # from which on a voxel counts
Number = Annotated[float, BeforeValidator(lambda value: math.nan if value is None else value)]
Spread = tuple[Number, Number]  # mean and standard deviation over the rows


@dataclass(frozen=True)
class OverlapResult:
    """What a volume that is not given has in common with the real one, at 0.5; means and deviations over the rows."""

    dice: Spread
    sensitivity: Spread
    ppv: Spread  # positive predictive value
    hausdorff: Spread  # 95th percentile, in voxels
    nearest: Spread  # Dice of the volume of the training row whose given values are nearest
    average: Spread  # Dice of the mean of the training volumes


def measure_overlap(
    name: str, expected: Array, rows: Array, split: Rows, training: Rows, given: Sequence[str]
) -> OverlapResult:
    """Compare the volumes of a modality that a model expects with the real ones.

    Args:
        name: The modality.
        expected: (n, C, D, H, W) decoded from what is given.
        rows: (n,) numbers of these rows, which have the modality.
        split: The split.
        training: Training rows, for the controls.
        given: The modalities that the volumes are inferred from.
    """
    real, made = split.values[name][rows] > LEVEL, expected > LEVEL
    distances = [hausdorff95(*pair) for pair in zip(made[:, 0], real[:, 0], strict=True)]
    nearest = [math.nan] * len(rows)
    if compared := [other for other in given if other in split.values]:
        candidates = training.having([*compared, name])
        if len(candidates):
            others = np.concatenate([_flat(training.values[other][candidates]) for other in compared], 1)
            queries = np.concatenate([_flat(split.values[other][rows]) for other in compared], 1)
            closest = candidates[(np.square(others).sum(1) / 2 - queries @ others.T).argmin(1)]
            nearest = dice(training.values[name][closest] > LEVEL, real).tolist()
    average = training.values[name][training.present[name]].mean(0) > LEVEL
    return OverlapResult(
        dice=_spread(dice(made, real)),
        sensitivity=_spread(sensitivity(made, real)),
        ppv=_spread(positive_predictive_value(made, real)),
        hausdorff=_spread(distances),
        nearest=_spread(nearest),
        average=_spread(dice(np.broadcast_to(average, real.shape), real)),
    )


def _flat(values: Array) -> Array:
    return values.reshape(len(values), -1)


def _spread(values: Iterable[float]) -> Spread:
    finite = [value for value in values if math.isfinite(value)]
    return (float(np.mean(finite)), float(np.std(finite))) if finite else (math.nan, math.nan)


def by_count(subsets: Sequence[SubsetResult]) -> dict[str, dict[int, OverlapResult]]:
    """Return volume → number of given modalities → the results of all subsets of this size together."""
    joined: dict[str, dict[int, list[OverlapResult]]] = {}
    for subset in subsets:
        for name, result in subset.overlap.items():
            joined.setdefault(name, {}).setdefault(len(subset.given), []).append(result)
    return {
        name: {count: _pooled(members) for count, members in sorted(counts.items(), reverse=True)}
        for name, counts in joined.items()
    }


def overlap_metrics(subsets: Sequence[SubsetResult]) -> dict[str, float]:
    """Return the Dice coefficient of each volume from each number of modalities, by a name."""
    pooled = by_count(subsets).items()
    return {f"dice_{name}_from_{count}": result.dice[0] for name, counts in pooled for count, result in counts.items()}


def _pooled(results: Sequence[OverlapResult]) -> OverlapResult:
    """Join results of equally many rows: the mean of the means, and the deviation of all rows together."""
    spreads = {}
    for field in fields(OverlapResult):
        means, deviations = np.array([getattr(result, field.name) for result in results]).T
        spreads[field.name] = (float(means.mean()), float(np.sqrt(np.square(deviations).mean() + means.var())))
    return OverlapResult(**spreads)


HEADERS = (
    "given",
    "Dice",
    "sensitivity",
    "PPV",
    "Hausdorff 95 %, voxels",
    "Dice: nearest training row",
    "mean volume",
)


def overlap_rows(subsets: Sequence[SubsetResult]) -> dict[str, list[list[str]]]:
    """Return volume → the lines of its table under `HEADERS`: each subset, and all subsets of a size together."""
    lines: dict[str, list[list[str]]] = {}
    for subset in subsets:
        for name, result in subset.overlap.items():
            lines.setdefault(name, []).append([" + ".join(subset.given), *_cells(result)])
    for name, counts in by_count(subsets).items():
        lines[name] += [[f"any {count}", *_cells(result)] for count, result in counts.items()]
    return lines


def _cells(result: OverlapResult) -> list[str]:
    spreads = {field.name: getattr(result, field.name) for field in fields(result)}
    return [
        ""
        if math.isnan(mean)
        else f"{mean:.2f} ± {deviation:.2f}"
        if name == "hausdorff"
        else f"{100 * mean:.1f} ± {100 * deviation:.1f}"
        for name, (mean, deviation) in spreads.items()
    ]
