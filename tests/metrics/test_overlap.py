import math

import numpy as np
import pytest

from m3ae.metrics.overlap import dice, hausdorff95, positive_predictive_value, sensitivity


def boxes(*slices: slice) -> np.ndarray:
    masks = np.zeros((len(slices), 12, 6, 6), dtype=bool)
    for mask, rows in zip(masks, slices, strict=True):
        mask[rows] = True
    return masks


def test_shares_of_boxes() -> None:
    real, predicted = (
        boxes(slice(0, 4), slice(0, 4), slice(0, 4), slice(0, 0)),
        boxes(*[slice(2, 8)] * 2, *[slice(0, 0)] * 2),
    )
    predicted[1] = real[1]
    assert dice(predicted, real)[:3].tolist() == [pytest.approx(2 * 2 / (4 + 6)), 1, 0]
    assert sensitivity(predicted, real)[:3].tolist() == [0.5, 1, 0]
    assert positive_predictive_value(predicted, real)[:2].tolist() == [pytest.approx(1 / 3), 1]
    assert np.isnan([dice(predicted, real)[3], sensitivity(predicted, real)[3]]).all()
    assert np.isnan(positive_predictive_value(predicted, real)[2])


def test_the_distance_is_the_larger_percentile_of_both_surfaces() -> None:
    small, large = boxes(slice(3, 6), slice(3, 9))
    assert hausdorff95(small, small) == 0 and hausdorff95(small, large) == hausdorff95(large, small) == 3
    assert hausdorff95(small, np.roll(small, 2, 0)) == 2
    stray = small.copy()
    stray[11, 0, 0] = True
    assert hausdorff95(stray, small) == 0, "one voxel of a hundred is no 95th percentile"
    assert math.isnan(hausdorff95(small, ~(small | True)))
