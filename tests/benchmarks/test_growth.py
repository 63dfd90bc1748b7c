"""The straight lines are those of the figures, and the command runs."""

import json
import sys
from pathlib import Path

import growth
import pretrain_step
import pytest

from m3ae import M3AEConfig
from tests.benchmarks.conftest import running_here
from tests.models.tiny import tiny_config


def test_straight_lines() -> None:
    rows = [
        {"samples": count, "joint": {"seconds": 1.5 + 0.25 * count, "memory_bytes": 2e9 + 3e8 * count}}
        for count in (1, 2, 8)
    ]
    assert growth.straight_lines(rows, "joint") == ["1.50 s + 0.250 s a sample", "2.00 GB + 0.300 GB a sample"]


def test_the_command_varies_one_thing_at_a_time(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    def config(setting: pretrain_step.Setting, *, latent: bool = False) -> M3AEConfig:
        return tiny_config(schedule=setting.schedule, image_config={"image_size": setting.image_size})

    monkeypatch.setattr(pretrain_step.Setting, "config", config)
    monkeypatch.setattr(pretrain_step, "LONGEST", 16)
    monkeypatch.setattr(growth, "running", running_here)
    monkeypatch.setattr(growth, "matrix_peak", lambda setting: 1e9)
    monkeypatch.setattr(growth, "MODALITIES", (2, 3))
    command = "growth.py --dtype float32 --samples 2 4 --image-size 32 48 --tokens 8 16 --steps 1 --threads 1 --json"
    monkeypatch.setattr(sys, "argv", [*command.split(), str(tmp_path / "figures.json")])
    growth.main()
    figures = json.loads((tmp_path / "figures.json").read_text())
    assert figures["middle"] == {"samples": 4, "image_size": 48, "tokens": 16}
    points = [
        [tuple(row[name] for name in growth.Point._fields) for row in figures[axis]] for axis in growth.Point._fields
    ]
    assert points == [[(2, 48, 16), (4, 48, 16)], [(4, 32, 16), (4, 48, 16)], [(4, 48, 8), (4, 48, 16)]]
    for schedule in ("separate", "joint"):
        few, many = (row[schedule]["needed_flops"] for row in figures["samples"])
        assert many == 2 * few > 0
        assert all(row[schedule]["seconds"] > 0 for row in figures["samples"])
    assert [row["modalities"] for row in figures["modalities"]] == [2, 3]
    assert "GB a sample" in capsys.readouterr().out
