"""Volumes drawn from other modalities: the controls, the deviations over subsets, the report."""

from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch

from m3ae.evaluation.latent import LatentEvaluator
from m3ae.evaluation.overlap import OverlapResult, by_count, measure_overlap, overlap_rows
from m3ae.evaluation.passes import Rows
from m3ae.evaluation.report import markdown_report
from m3ae.training.config import GenerationConfig
from tests.models.tiny_latent import DIGITS, digits_batch, latent_model


def rows_of(views: list[float], depths: list[int]) -> Rows:
    """Rows whose view is one number, and whose volume has ones in its first slices."""
    volumes = np.zeros((len(depths), 1, 8, 4, 4), np.float32)
    for volume, depth in zip(volumes, depths, strict=True):
        volume[0, :depth] = 1
    present = {name: np.ones(len(depths), bool) for name in ("view", "scan")}
    return Rows([], present, {"view": np.array(views, np.float32)[:, None], "scan": volumes}, {}, [], ["scan"])


def test_the_controls_are_the_nearest_training_row_and_the_mean() -> None:
    training, split = rows_of([0.0, 1.0, 2.0], [2, 4, 4]), rows_of([0.2, 1.9], [2, 8])
    result = measure_overlap("scan", split.values["scan"], np.arange(2), split, training, ["view"])
    assert result.dice == result.sensitivity == result.ppv == (1, 0) and result.hausdorff == (0, 0)
    assert result.nearest == pytest.approx(((1 + 2 / 3) / 2, 1 / 6)), "slices 2 of 2, and 4 of 8"
    assert result.average == pytest.approx((2 / 3, 0)), "the mean has four slices: 2 and 4 of 8"
    alone = measure_overlap("scan", split.values["scan"][1:], np.array([1]), split, training, ["label"])
    assert np.isnan(alone.nearest).all() and alone.dice == (1, 0)


def test_subsets_of_a_size_are_pooled() -> None:
    def result(mean: float, deviation: float) -> OverlapResult:
        return OverlapResult(*[(mean, deviation)] * 6)

    spreads = {"a": (0.6, 0.0), "b": (0.8, 0.0), "ab": (0.9, 0.1)}
    results: Any = [
        SimpleNamespace(given=[*given], overlap={"scan": result(*spread)}) for given, spread in spreads.items()
    ]
    pooled = by_count(results)["scan"]
    assert list(pooled) == [2, 1]
    assert pooled[1].dice == pytest.approx((0.7, 0.1)) and pooled[2].dice == pytest.approx((0.9, 0.1))
    lines = overlap_rows(results)["scan"]
    assert [line[0] for line in lines] == ["a", "b", "a + b", "any 2", "any 1"]
    assert lines[-1][1] == "70.0 ± 10.0" and lines[-1][4] == "0.70 ± 0.10"


def test_the_report_has_the_overlap_of_volumes_that_are_not_given() -> None:
    scan = {"kind": "volume", "shape": [1, 8, 8, 8], "hidden_size": 16, "num_layers": 1, "likelihood": "bernoulli"}
    model = latent_model({"glyph": DIGITS["glyph"], "speech": DIGITS["speech"], "scan": scan}, kind="poe")
    batches = []
    for seed in range(2):
        batch = {name: value for name, value in digits_batch(6, seed).items() if name != "label"}
        batch["scan"] = {"values": (torch.rand(6, 1, 8, 8, 8) > 0.7).float()}
        for tensors in batch.values():
            tensors["present"] = torch.ones(6, dtype=torch.bool)
        batches.append(batch)
    report = LatentEvaluator(model, batches, batches, GenerationConfig(importance_samples=[])).evaluate()
    shown = {tuple(subset.given): set(subset.overlap) for subset in report.subsets}
    assert shown[("glyph",)] == shown[("glyph", "speech")] == {"scan"} and shown[("glyph", "scan")] == set()
    assert report.subsets[0].overlap["scan"].nearest == (1, 0), "the rows are those of training"
    metrics = report.main_metrics()
    assert metrics["dice_scan_from_2"] == report.subsets[[*shown].index(("glyph", "speech"))].overlap["scan"].dice[0]
    assert "## Overlap of scan" in markdown_report("tiny", report)
