"""A grid of settings through the command."""

import json
import shutil
from pathlib import Path
from typing import Any

import pytest
import yaml
from click.testing import CliRunner, Result

from m3ae.cli import cli
from m3ae.files import LOCK, only_process
from m3ae.tasks.sweep import SweepResult, SweepRun, plan_sweep, write_sweep
from m3ae.training.config import dump_config
from m3ae.training.progress import read_metrics
from tests.tasks.test_generation import data, run  # noqa: F401 (a fixture)

SIZE = "model.overrides.latent.size"
SPEECH = {"speech": {"kind": "sequence", "shape": [4, 3], "hidden_size": 8}}


@pytest.fixture
def config(data: Path, tmp_path: Path) -> Path:  # noqa: F811
    training = {"max_steps": 1, "validate_every": 1, "mixed_precision": "auto"}
    generation = {"importance_samples": [], "prior_components": 0}
    path = tmp_path / "config.yaml"
    path.write_text(dump_config(run(data, tmp_path / "runs", SPEECH, training=training, generation=generation)))
    return path


def sweep(*arguments: object) -> Result:
    return CliRunner().invoke(cli, ["sweep", *map(str, arguments)])


def test_a_grid_becomes_a_table_and_is_not_repeated(config: Path, tmp_path: Path) -> None:
    axes = ["--over", f"{SIZE}=2", "--over", "training.batch_size=4,99"]
    result = sweep(config, *axes, "--metric", "test/elbo")
    assert result.exit_code == 1, "there are fewer than 99 training rows"
    folder = tmp_path / "runs"
    header, _, *rows = (folder / "sweep.md").read_text().splitlines()
    assert header == "| size | batch_size | test/elbo |" and result.stdout.endswith((folder / "sweep.md").read_text())
    found = json.loads((folder / "sweep.json").read_text())
    assert rows[0] == f"| 2 | 4 | {found[0]['metrics']['test/elbo']:.4g} |" and rows[1] == "| 2 | 99 | – |"
    assert rows[3].startswith("- size=2_batch_size=99 failed: training.batch_size: got 99 for 20 training samples")
    done = folder / "size=2_batch_size=4"
    assert yaml.safe_load((done / "config.yaml").read_text())["model"]["overrides"]["latent"]["size"] == 2
    files = {path: path.stat().st_mtime_ns for path in done.rglob("*")}
    assert sweep(config, *axes).exit_code == 1
    assert files == {path: path.stat().st_mtime_ns for path in done.rglob("*")}
    assert json.loads((folder / "sweep.json").read_text()) == found

    changed = sweep(config, *axes, "optimizer.lr=0.5")
    assert "holds a run with other settings: optimizer.lr is 0.0001 there and 0.5 here" in changed.stdout


def test_a_sweep_is_the_work_of_one_process(config: Path, tmp_path: Path) -> None:
    with only_process(tmp_path / "runs"):
        refused = sweep(config, "--over", "training.seed=1")
    assert refused.exit_code == 2 and "runs is being written by process" in refused.stderr
    assert [path.name for path in (tmp_path / "runs").iterdir()] == []


def test_an_interrupted_run_is_resumed(config: Path, tmp_path: Path) -> None:
    longer = [config, "training.max_steps=3", "training.checkpoint_every=1", "--over", "training.seed=1"]
    stopped = sweep(*longer, "training.max_hours=1e-9")
    assert stopped.exit_code == 75, stopped.output
    folder = tmp_path / "runs" / "seed=1"
    (checkpoint,) = (folder / "checkpoints").iterdir()
    assert checkpoint.name.endswith("1") and not (folder / "model").exists()
    settings = (folder / "config.yaml").read_text()
    (folder / "config.yaml").write_text(settings.replace("max_hours: 1.0e-09", "max_hours: null"))
    assert sweep(*longer).exit_code == 0
    assert [record["step"] for record in read_metrics(folder / "metrics.jsonl")][-1] == 3
    assert len(json.loads((folder / "environment.json").read_text())) == 2, "two starts"
    metrics, pictures = (folder / "metrics.jsonl").read_text(), sorted((folder / "figures").iterdir())
    shutil.rmtree(folder / "figures")
    (folder / LOCK).touch()  # as a kill leaves it that comes after the model and before the figures
    assert sweep(*longer).exit_code == 0
    assert sorted((folder / "figures").iterdir()) == pictures and not (folder / LOCK).exists()
    assert (folder / "metrics.jsonl").read_text() == metrics


@pytest.mark.parametrize(
    ("axes", "message"),
    [
        ([f"{SIZE}"], "expected a key and its values"),
        ([f"{SIZE}="], "expected a key and its values"),
        ([f"{SIZE}=2", f"{SIZE}=3"], "each of another key"),
        ([f"{SIZE}=2,2"], "would have one folder"),
        (["training.max_step=3"], "did you mean training.max_steps"),
    ],
)
def test_bad_axes_are_explained_before_anything_runs(config: Path, axes: list[str], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        plan_sweep(config, axes)


def test_a_table_of_something_else_is_not_replaced(config: Path, tmp_path: Path) -> None:
    (tmp_path / "runs").mkdir()
    (tmp_path / "runs" / "sweep.json").write_text('{"broom": "mine"}')
    result = sweep(config, "--over", "training.seed=0")
    assert result.exit_code == 2 and "sweep.json was not written by m3ae, and would be replaced" in result.output
    assert [path.read_text() for path in (tmp_path / "runs").iterdir()] == ['{"broom": "mine"}']


def test_values_are_lists_and_words_too(config: Path, tmp_path: Path) -> None:
    runs = plan_sweep(config, ["optimizer.betas=[0.9, 0.98],[0.8, 0.9]", "training.tracker=none,wandb"])
    assert [run.name for run in runs] == [
        f"betas={betas}_tracker={tracker}" for betas in ("0.9-0.98", "0.8-0.9") for tracker in ("none", "wandb")
    ]
    assert runs[3].config.optimizer.betas == (0.8, 0.9) and runs[3].config.training.tracker == "wandb"
    assert runs[3].config.output_dir == tmp_path / "runs" / runs[3].name


def test_keys_that_end_alike_are_written_out(config: Path, tmp_path: Path) -> None:
    a, b = SIZE, "model.size"
    (only,) = plan_sweep(config, [f"{a}=2", f"{b}=tiny"])
    assert only.name == f"{a}=2_{b}=tiny"
    metrics: dict[str, Any] = {"test/accuracy": 0.5, "test/loss": 2.0, "validation/accuracy": None}
    results = [SweepResult(only, metrics), SweepResult(SweepRun("x", {a: 3, b: "tiny"}, only.config), {}, "broken")]
    table = write_sweep(tmp_path, results)
    assert table.splitlines() == [
        f"| {a} | {b} | test/accuracy |",
        "|---|---:|---:|",
        "| 2 | tiny | 0.5 |",
        "| 3 | tiny | – |",
        "",
        "- x failed: broken",
    ]
    with pytest.raises(ValueError, match="no run reports 'test/acuracy'; nearest are test/accuracy"):
        write_sweep(tmp_path / "new", results, ["test/acuracy"])
    assert json.loads((tmp_path / "new" / "sweep.json").read_text())[0]["metrics"] == metrics


def test_a_split_that_is_missing_stops_a_run_before_it_trains(config: Path, tmp_path: Path) -> None:
    result = sweep(config, "--over", "training.seed=1", "--split", "tset")
    assert "has no split 'tset': it has train, validation, test" in result.stdout
    assert not (tmp_path / "runs" / "seed=1").exists()


def test_settings_that_no_run_can_have_stop_all_of_them(config: Path, tmp_path: Path) -> None:
    result = sweep(config, "--over", f"{SIZE}=2,0")
    assert "model.overrides: latent.size must be an integer of at least 1, got 0" in result.output
    assert not (tmp_path / "runs").exists()
