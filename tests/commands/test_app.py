"""`m3ae app`, up to the server."""

from pathlib import Path
from typing import Any

import pytest

pytest.importorskip("gradio", reason="needs the extra app")

from click.testing import CliRunner

from m3ae.cli import cli


@pytest.fixture
def served(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> list[Any]:
    """What is asked of the server and of training, in an empty folder."""
    monkeypatch.chdir(tmp_path)
    calls: list[Any] = []
    monkeypatch.setattr("m3ae.app.serve", lambda models, sets, **options: calls.append((models, sets, options)))
    monkeypatch.setattr("m3ae.training.loop.train", lambda config, task, resume: calls.append(config.output_dir))
    return calls


def test_without_a_model_the_quickstart_is_trained(served: list[Any]) -> None:
    done = CliRunner().invoke(cli, ["app", "--port", "7000"])
    assert done.exit_code == 0, done.output
    assert "training the quickstart" in done.output
    model, data = Path("runs/quickstart"), Path("data/phantom-1k")
    options = {"split": "test", "host": "127.0.0.1", "port": 7000, "device": None}
    assert served == [model, ((str(model / "model"),), (data,), options)]


def test_a_quickstart_that_is_there_is_not_trained_again(served: list[Any]) -> None:
    model = Path("runs/quickstart/model")
    model.mkdir(parents=True)
    (model / "config.json").write_text("{}")
    assert CliRunner().invoke(cli, ["app"]).exit_code == 0
    assert [call[0] for call in served] == [(str(model),)]


def test_given_models_and_sets_are_served(served: list[Any]) -> None:
    arguments = ["app", "--model", "a", "--model", "b", "--data", "c", "--split", "train", "--host", "0.0.0.0"]
    assert CliRunner().invoke(cli, arguments).exit_code == 0
    options = {"split": "train", "host": "0.0.0.0", "port": 7860, "device": None}
    assert served == [(("a", "b"), (Path("c"),), options)]
