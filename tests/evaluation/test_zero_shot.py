"""Zero-shot classification of a prepared set, with classifiers whose scores are known."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from sklearn.metrics import roc_auc_score

from m3ae import M3AEForPreTraining
from m3ae.evaluation.zero_shot import measure_zero_shot, zero_shot_metrics
from m3ae.inference import ZeroShotClassifier, load_model
from tests.tasks.tiny_finetuning import save_model, write_splits

DARK, BRIGHT = 20, 230


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Any:
    folder = tmp_path_factory.mktemp("model")
    return load_model(save_model(folder, M3AEForPreTraining, ["dark", "bright"], itc_weight=1.0), [M3AEForPreTraining])


@pytest.fixture(autouse=True)
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("datasets.config.HF_DATASETS_CACHE", tmp_path / "cache")


def by_brightness(model: Any, negatives: list[str], monkeypatch: pytest.MonkeyPatch) -> ZeroShotClassifier:
    """A classifier that scores the classes dark and bright by the first pixel."""
    classifier = ZeroShotClassifier(*model, ["dark", "bright"], negative_templates=negatives)

    def scores(images: Any) -> torch.Tensor:
        pixels = torch.tensor([float(np.asarray(image).flat[0]) for image in images])
        return torch.stack([100 - pixels, pixels - 100], dim=1)

    monkeypatch.setattr(classifier, "scores", scores)
    return classifier


def test_classes_that_exclude_each_other(model: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    rows = [
        {"id": str(n), "image": BRIGHT if n % 4 else DARK, "label": "bright" if n % 4 else "dark"} for n in range(8)
    ]
    rows += [{"id": "wrong", "image": DARK, "label": "bright"}, {"id": "blank", "image": None, "label": "dark"}]
    rows += [{"id": "other", "image": DARK, "label": "grey"}, {"id": "unknown", "image": DARK, "label": None}]
    data = write_splits(tmp_path / "data", {"test": rows})
    report = measure_zero_shot(by_brightness(model, [], monkeypatch), data, "test", "label", resamples=20)
    assert report.left_out == 3 and [row["id"] for row in report.rows] == [*map(str, range(8)), "wrong"]
    assert report.rows[0] == {
        "id": "0",
        "truth": ["dark"],
        "scores": {"dark": pytest.approx(1), "bright": pytest.approx(0)},
    }
    metrics = report.metrics
    assert metrics["accuracy"] == pytest.approx(8 / 9) and metrics["dark_recall"] == 1
    assert metrics["bright_recall"] == pytest.approx(6 / 7)
    assert metrics["accuracy_low"] <= metrics["accuracy"] <= metrics["accuracy_high"]
    # Grey, the mean of the normalisation, is brighter than 100 for this classifier.
    assert metrics["blank_accuracy"] == metrics["majority_accuracy"] == pytest.approx(7 / 9)
    assert metrics["chance_accuracy"] == 0.5


def test_labels(model: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    grey = [10, 60, 140, 220, 90]
    labels = [["dark"], ["dark", "bright"], ["bright"], [], None]
    uncertain = [["bright"], [], [], ["dark"], []]
    rows = [{"id": str(n), "image": grey[n], "labels": labels[n], "labels_uncertain": uncertain[n]} for n in range(5)]
    data = write_splits(tmp_path / "data", {"test": rows})
    report = measure_zero_shot(by_brightness(model, ["no {}"], monkeypatch), data, "test", "labels", resamples=0)
    assert report.left_out == 1 and [row["truth"] for row in report.rows] == labels[:4]
    dark, bright = [1, 1, 0], [1, 1, 0]  # rows 0, 1, 2; and rows 1, 2, 3
    assert report.metrics["dark_auroc"] == roc_auc_score(dark, [90, 40, -40])
    assert report.metrics["bright_auroc"] == roc_auc_score(bright, [-40, 40, 120])
    assert report.metrics["macro_auroc"] == (1 + 0) / 2 and "blank_accuracy" not in report.metrics


def test_a_shuffled_image_is_at_chance_for_a_perfect_classifier() -> None:
    truth = np.random.default_rng(1).choice(3, size=3000, p=[0.5, 0.3, 0.2])
    scores = np.eye(3)[truth]
    metrics = zero_shot_metrics("abc", scores, truth, scores[:1], range(3000), resamples=0)
    assert metrics["accuracy"] == 1 and metrics["majority_accuracy"] == (truth == 0).mean()
    assert metrics["shuffled_accuracy"] == pytest.approx(0.25 + 0.09 + 0.04, abs=0.03)
    labels = np.random.default_rng(2).integers(0, 2, (3000, 2))
    metrics = zero_shot_metrics("ab", labels + 0.0, labels, np.zeros((1, 2)), range(3000), resamples=0)
    assert metrics["macro_auroc"] == 1 and metrics["shuffled_macro_auroc"] == pytest.approx(0.5, abs=0.03)
    every = zero_shot_metrics([*"abcdefgh"], np.eye(8), np.arange(8), np.eye(8)[:1], range(8), resamples=0)
    assert every["shuffled_accuracy"] == 0, "no row keeps its image"


def test_aurocs_are_scikit_learn_s() -> None:
    draw = np.random.default_rng(0)
    truth, scores = draw.integers(0, 2, (60, 3)), draw.normal(size=(60, 3))
    metrics = zero_shot_metrics("abc", scores, truth, scores[:1], range(60), resamples=10)
    for column, name in enumerate("abc"):
        expected = roc_auc_score(truth[:, column], scores[:, column])
        assert metrics[f"{name}_auroc"] == expected
        assert metrics[f"{name}_auroc_low"] < expected < metrics[f"{name}_auroc_high"]


def test_rows_that_cannot_be_measured(model: Any, tmp_path: Path) -> None:
    rows = [{"id": "a", "image": DARK, "label": "grey", "labels": ["dark", "bright"]}]
    data = write_splits(tmp_path / "data", {"test": rows})
    classifier = ZeroShotClassifier(*model, ["dark", "bright"])
    with pytest.raises(ValueError, match="test, has an image and one of the classes dark, bright in 'label'"):
        measure_zero_shot(classifier, data, "test", "label")
    with pytest.raises(ValueError, match="row 'a' has 2 labels in 'labels', expected one"):
        measure_zero_shot(classifier, data, "test", "labels")
    with pytest.raises(ValueError, match="has no column 'finding'; it has id, image, label, labels"):
        measure_zero_shot(classifier, data, "test", "finding")
    with pytest.raises(ValueError, match="has no split 'train'"):
        measure_zero_shot(classifier, data, "train", "label")
    with pytest.raises(ValueError, match="has no column 'side'"):
        measure_zero_shot(classifier, data, "test", "label", image_columns=["side"])
