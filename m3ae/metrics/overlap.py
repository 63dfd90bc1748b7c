"""Metrics of segmented volumes. Shapes: N volumes, then any dimensions."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
from numpy.typing import NDArray
from scipy.ndimage import binary_erosion
from scipy.spatial import KDTree

Mask = NDArray[np.bool_]


def dice(predicted: Mask, real: Mask) -> NDArray[np.float64]:
    """Return 2 TP / (2 TP + FP + FN) of each volume (N, …), (N,); NaN where both are empty."""
    return _share(2 * _count(predicted & real), _count(predicted) + _count(real))


def sensitivity(predicted: Mask, real: Mask) -> NDArray[np.float64]:
    """Return TP / (TP + FN) of each volume (N, …), (N,); NaN where the real one is empty."""
    return _share(_count(predicted & real), _count(real))


def positive_predictive_value(predicted: Mask, real: Mask) -> NDArray[np.float64]:
    """Return TP / (TP + FP) of each volume (N, …), (N,); NaN where the predicted one is empty."""
    return _share(_count(predicted & real), _count(predicted))


def hausdorff95(predicted: Mask, real: Mask) -> float:
    """Return the Hausdorff distance of the surfaces of two volumes, in voxels; NaN if one is empty.

    It is the larger of the 95th percentiles of the distances from each surface to the other. A surface is what an
    erosion by the nearest neighbours takes away.
    """
    surfaces = [np.argwhere(mask & ~binary_erosion(mask)) for mask in (predicted, real)]
    if not all(map(len, surfaces)):
        return math.nan
    pairs = (surfaces, surfaces[::-1])
    return max(float(np.percentile(KDTree(other).query(one)[0], 95)) for one, other in pairs)


def _count(masks: Mask) -> NDArray[Any]:
    counts: NDArray[Any] = masks.reshape(len(masks), -1).sum(1)
    return counts


def _share(part: NDArray[Any], whole: NDArray[Any]) -> NDArray[np.float64]:
    shares: NDArray[np.float64] = np.divide(part, whole, out=np.full(len(part), np.nan), where=whole > 0)
    return shares
