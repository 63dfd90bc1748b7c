"""The benchmark of imputation: what it hides, what it fills in, and that it runs."""

import json
import sys
from pathlib import Path

import imputation
import numpy as np
import pytest

from m3ae.tasks import task_class
from m3ae.tasks.pretraining import PreTraining
from m3ae.training.loop import train
from tests.tasks.test_views import LATENT, folder, run

__all__ = ["folder"]  # a fixture


@pytest.fixture(scope="module")
def runs(folder: Path, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    """A classifier of two views and a report, and a model whose latent head has the same modalities."""
    root = tmp_path_factory.mktemp("runs")
    labels = {"classification": {"label_column": "finding"}, "evaluation": {"controls": False, "resamples": 0}}
    config = run("classification", folder, root / "classifier", **labels)
    train(config, task_class(config.task).from_config(config))
    model = {"size": "tiny", "overrides": {"latent": LATENT}}
    latent = PreTraining.from_config(run("pretraining", folder, root / "latent", model=model))
    latent.save(latent.model, root / "latent" / "model", {})
    return root / "classifier", root / "latent"


def test_a_run_is_measured(runs: tuple[Path, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys) -> None:
    classifier, latent = runs
    file = tmp_path / "figures.json"
    options = ["--run", str(classifier), "--latent", str(latent), "--rates", "0", "0.9", "--draws", "2"]
    monkeypatch.setattr(sys, "argv", ["imputation", *options, "--json", str(file)])
    imputation.main()
    figures = json.loads(file.read_text())
    assert figures["missing"]["0"] == 0 < figures["missing"]["0.9"] < 0.9
    assert figures["absent"]["0"]["accuracy"][1] == 0 and set(figures["imputed"]) == {"0", "0.9"}
    assert "accuracy, mean ± deviation over 2 draws" in capsys.readouterr().out


def test_whole_rows_have_the_scores_of_the_task_and_nothing_leaks(runs: tuple[Path, Path]) -> None:
    config = imputation.load_config(runs[0] / "config.yaml", [f"model={runs[0] / 'model'}"])
    task = task_class(config.task).from_config(config, for_training=False)
    rows = imputation.Rows.of(task, "test")
    assert rows.names == ["frontal", "lateral", "text"] and rows.masks.shape == (7, 3)
    filled = imputation.imputed(rows, runs[1])
    absent, zeros, imputed = rows.scores(task), rows.scores(task, blank=True), rows.scores(task, filled)
    whole = [0, 3]  # the rows that lack no view
    assert [rows.left(6), rows.left(0)] == [whole, [0, 2, 3, 5]]
    expected = task.model(**task.inputs([rows.samples[row] for row in whole])).logits.detach().numpy()
    for scores in (absent, zeros, imputed):
        np.testing.assert_allclose(scores[6, whole], expected, atol=1e-5)
        assert np.isnan(scores[6, 1]).all() and np.isfinite(scores[2]).all()
    assert not np.allclose(absent[2], zeros[2]) and not np.allclose(zeros[2], imputed[2])
    text = rows.masks.tolist().index([False, False, True])
    assert all(set(filled[text, row]) == {"frontal", "lateral"} for row in range(6))
    alone = task.model(**task.inputs([rows.shown(1, text)])).logits.detach().numpy()
    np.testing.assert_allclose(absent[text, 1], alone[0], atol=1e-5)
