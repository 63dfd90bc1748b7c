import json
from pathlib import Path

import pytest
import yaml
from click.testing import CliRunner, Result

from m3ae.cli import cli
from m3ae.tasks.summary import final_metrics, summarize, summarize_runs
from m3ae.training.progress import MetricsLog


def finished_run(folder: Path, seed: int, **report: float) -> Path:
    (folder / "model").mkdir(parents=True)
    config = {"task": "classification", "output_dir": str(folder), "training": {"seed": seed, "max_steps": 2}}
    (folder / "config.yaml").write_text(yaml.safe_dump(config))
    log = MetricsLog(folder / "metrics.jsonl", lines=0)
    log.write(1, {"training/loss": 3.0})
    log.write(2, {"validation/accuracy": 0.1})
    log.write(2, {f"test/{name}": value for name, value in report.items()})
    return folder


def test_the_final_metrics_are_the_last_line(tmp_path):
    run = finished_run(tmp_path / "run", 0, accuracy=0.5, auroc=float("nan"))
    assert final_metrics(run) == {"test/accuracy": 0.5, "test/auroc": None}
    (run / "model").rmdir()
    with pytest.raises(FileNotFoundError, match="holds no finished run"):
        final_metrics(run)


def test_spread_by_hand():
    results = [{"a": 0.5, "b": None}, {"a": 0.7, "b": 2.0}, {"a": 0.6, "c": float("nan")}]
    summary = summarize(results)
    assert summary == {"a": pytest.approx((0.6, 0.1, 3)), "b": (2.0, None, 1)}


def test_a_summary_tells_how_the_runs_differ(tmp_path):
    runs = [finished_run(tmp_path / str(seed), seed, accuracy=0.5 + seed / 10) for seed in (0, 1)]
    summary = summarize_runs(runs)
    assert summary.metrics["test/accuracy"] == pytest.approx((0.55, 0.0707107, 2))
    written = json.loads(summary.to_json())
    assert written["differing_settings"] == {"training.seed": [0, 1]}
    assert written["runs"][str(runs[1])] == {"test/accuracy": 0.6}
    assert written["metrics"]["test/accuracy"] == summary.metrics["test/accuracy"]._asdict()


def command(*arguments: object) -> Result:
    return CliRunner().invoke(cli, ["summarize", *map(str, arguments)])


def test_the_command_prints_a_row_for_the_readme(tmp_path):
    reports = ({"accuracy": 0.5, "open_accuracy": 0.3}, {"accuracy": 0.7, "open_accuracy": 0.3})
    runs = [
        finished_run(tmp_path / f"seed_{seed}", seed, loss=1.5, accuracy_low=0.4, accuracy_high=0.6, **report)
        for seed, report in enumerate(reports)
    ]
    result = command(*runs, "--json", tmp_path / "all.json")
    assert result.output.splitlines() == [
        "| 2 runs | accuracy | open accuracy |",
        "|---|---:|---:|",
        "| seed_0 | 60.0 ± 14.1 | 30.0 ± 0.0 |",
        "training.seed: 0, 1",
    ]
    assert json.loads((tmp_path / "all.json").read_text())["metrics"]["test/loss"] == {"mean": 1.5, "sd": 0, "runs": 2}
    chosen = command(runs[0], "--name", "ours", "--metric", "test/accuracy", "--metric", "test/loss")
    assert chosen.output.splitlines() == [
        "| one run | accuracy | loss |",
        "|---|---:|---:|",
        "| ours | 50.0 (40.0–60.0) | 1.5 |",
    ]


def test_the_command_explains_what_it_cannot_summarize(tmp_path):
    run = finished_run(tmp_path / "run", 0, accuracy=0.5)
    unknown = command(run, "--metric", "test/acuracy")
    assert unknown.exit_code == 2
    assert unknown.stderr == "error: no run reports 'test/acuracy'; nearest are test/accuracy\n"
    assert command(tmp_path).stderr.startswith(f"error: {tmp_path} holds no finished run: expected metrics.jsonl")
