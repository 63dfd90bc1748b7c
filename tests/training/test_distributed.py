import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from m3ae.training.loop import train
from m3ae.training.metrics_log import read_metrics

from .toy import ToyTask, toy_config

SCRIPT = Path(__file__).with_name("run_toy.py")


def launch(folder: Path, *settings: str) -> subprocess.CompletedProcess[str]:
    command = ["-m", "torch.distributed.run", "--nproc_per_node=2", "--standalone", str(SCRIPT), str(folder)]
    variables = {"ACCELERATE_USE_CPU": "true", "OMP_NUM_THREADS": "1", "PYTHONPATH": str(SCRIPT.parents[2])}
    return subprocess.run(
        [sys.executable, *command, *settings],
        env=os.environ | variables,
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )


def losses(folder: Path) -> list[float]:
    return [record["training/loss"] for record in read_metrics(folder / "metrics.jsonl") if "training/loss" in record]


def test_two_processes_equal_one_with_twice_the_accumulation(tmp_path):
    two, one = tmp_path / "two", tmp_path / "one"
    done = launch(two, "gradient_accumulation_steps=1", "dropout=0", "log_every=1")
    assert done.returncode == 0, done.stderr
    train(toy_config(one, log_every=1), ToyTask(dropout=0))
    assert losses(two) == pytest.approx(losses(one), rel=1e-5)
    expected = load_file(one / "model" / "model.safetensors")
    for name, value in load_file(two / "model" / "model.safetensors").items():
        torch.testing.assert_close(value, expected[name], rtol=1e-5, atol=1e-6)
    # what two processes wrote, one continues: the same names, the same position in the data
    checkpoint = two / "checkpoints" / "step-00000006"
    train(toy_config(tmp_path / "later", log_every=1), ToyTask(dropout=0), resume=checkpoint)
    assert losses(tmp_path / "later") == pytest.approx(losses(one)[6:], rel=1e-5)
