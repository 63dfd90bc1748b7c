import math

import numpy as np
import pytest
import torch

from m3ae.metrics.calibration import calibration_error, choose_threshold, fit_temperature, reliability
from m3ae.models.finetuned import class_loss, multi_label_loss


def test_bins_and_their_error() -> None:
    probabilities = np.array([0.1, 0.2, 0.25, 0.9, 1.0, 0.0])
    right = np.array([0, 1, 0, 1, 1, 0])
    low, mid, high = reliability(probabilities, right, bins=4)[:1], [], reliability(probabilities, right, bins=4)[1:]
    assert [(row.size, row.share) for row in low + mid + high] == [(4, 0.25), (2, 1.0)], "0 and edges go below"
    assert low[0].probability == pytest.approx(0.1375) and high[0].probability == pytest.approx(0.95)
    assert calibration_error(probabilities, right, bins=4) == pytest.approx(4 / 6 * 0.1125 + 2 / 6 * 0.05)
    assert calibration_error(np.full(10, 0.7), np.arange(10) < 7) == pytest.approx(0)
    assert math.isnan(calibration_error(np.zeros(0), np.zeros(0)))


def test_thresholds_by_hand() -> None:
    probabilities, truth = np.array([0.1, 0.2, 0.3, 0.4, 0.5, 0.6]), np.array([0, 0, 0, 1, 0, 1])
    # from 0.4 on: 2 of 3 right, all found, F1 0.8; from 0.6 on: F1 2/3
    assert choose_threshold(probabilities, truth, "f1") == 0.4
    truth = np.array([0, 0, 1, 0, 0, 1])
    # Youden from 0.6 on: 1/2 - 0; from 0.3 on: 1 - 2/4, as good; the higher one; F1 from 0.3: 2/3, from 0.6: 2/3
    assert choose_threshold(probabilities, truth, "youden") == 0.6
    assert choose_threshold(probabilities, np.array([0, 0, -100, 0, 0, 1]), "youden") == 0.6
    assert choose_threshold(probabilities, np.zeros(6), "f1") == 0.5, "nothing to learn of one class"
    assert choose_threshold(probabilities, np.full(6, -100), "f1") == 0.5


@pytest.mark.parametrize("exclusive", [True, False])
def test_the_temperature_makes_probabilities_frequencies(exclusive: bool) -> None:
    """Logits of one size, right three times out of four: the probability of 3/4 has the logit log 3."""
    size = 6.0
    if exclusive:
        logits, labels = torch.tensor([[size, 0.0]] * 4), torch.tensor([0, 0, 0, 1])
    else:
        logits, labels = torch.tensor([[size]] * 4), torch.tensor([[1], [1], [1], [0]])
    loss = class_loss if exclusive else multi_label_loss
    assert fit_temperature(lambda scaled: loss(scaled, labels), logits) == pytest.approx(size / math.log(3), rel=1e-3)
