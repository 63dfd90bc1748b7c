"""Drawn values beside real ones: whether a classifier tells them apart, and whether they repeat training rows.

Shapes: n values of a modality of each kind.
"""

from __future__ import annotations

import numpy as np
import torch

from m3ae.data.samples import evenly
from m3ae.evaluation.passes import Array
from m3ae.evaluation.probes import RealDataClassifier

MAX_VALUES = 2000  # of each kind


def distinct(values: Array) -> Array:
    """Return the distinct ones of values (n, …), at most `MAX_VALUES`: few recordings make many rows."""
    rows = np.array([*{value.tobytes(): row for row, value in enumerate(values)}.values()], int)
    chosen: Array = values[rows[evenly(len(rows), MAX_VALUES)]]
    return chosen


def told_apart(learnt: tuple[Array, Array], judged: tuple[Array, Array], seed: int) -> float:
    """Return the accuracy of a classifier of real and drawn values; 0.5 is chance (Lopez-Paz & Oquab 2017).

    Args:
        learnt: Real and drawn values (n, …) that the classifier learns from.
        judged: Real and drawn values that it tells apart; both kinds count equally.
        seed: Seed of the classifier.
    """
    is_drawn = np.repeat([0, 1], [len(values) for values in learnt])[:, None]
    classifier = RealDataClassifier(np.concatenate(learnt), is_drawn, seed)
    real, drawn = (classifier.predict(values)[:, 0] for values in judged)
    return float(0.5 * (real == 0).mean() + 0.5 * (drawn == 1).mean())


def nearness(training: Array, drawn: Array, real: Array) -> float:
    """Return how far drawn values are from the nearest training value, over how far real ones are, on average.

    Far below 1, what is drawn repeats training rows.
    """
    known = torch.from_numpy(training).flatten(1).float()
    far = [
        float(torch.cdist(torch.from_numpy(values).flatten(1).float(), known).amin(1).mean())
        for values in (drawn, real)
    ]
    return far[0] / far[1] if far[1] else float("nan")
