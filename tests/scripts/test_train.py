"""The script itself, as users start it."""

import os
import subprocess
import sys
from pathlib import Path

import pytest
import yaml

from m3ae.tasks.pretraining import PreTraining
from m3ae.training.config import dump_config
from m3ae.training.loop import train
from m3ae.training.progress import read_metrics
from tests.tasks.tiny import tiny_run

ROOT = Path(__file__).parents[2]
SCRIPT = str(ROOT / "scripts" / "train.py")
QUICKSTART = str(ROOT / "configs" / "pretrain" / "quickstart.yaml")


def run(*arguments: str) -> subprocess.CompletedProcess[str]:
    environment = os.environ | {"ACCELERATE_USE_CPU": "true"}
    return subprocess.run([sys.executable, *arguments], env=environment, capture_output=True, text=True, check=False)


def test_two_processes_give_the_losses_of_one(tmp_path: Path) -> None:
    training = {"gradient_accumulation_steps": 1, "max_steps": 3}
    no_dropout = {"hidden_dropout_prob": 0.0, "attention_probs_dropout_prob": 0.0}  # each process draws its own
    model = {"overrides": no_dropout | {"text_config": no_dropout}}
    two = tiny_run(tmp_path / "data", tmp_path / "two", training=training, model=model)
    one_training = training | {"gradient_accumulation_steps": 2}
    one = tiny_run(tmp_path / "data", tmp_path / "one", training=one_training, model=model)
    train(one, PreTraining.from_config(one))
    (tmp_path / "two.yaml").write_text(dump_config(two))
    done = run("-m", "torch.distributed.run", "--standalone", "--nproc_per_node=2", SCRIPT, str(tmp_path / "two.yaml"))
    assert done.returncode == 0, done.stderr
    records = [read_metrics(folder / "metrics.jsonl") for folder in (one.output_dir, two.output_dir)]
    for name in ("training/loss", "training/mim", "training/mlm", "training/itm", "grad_norm"):
        expected, measured = ([record[name] for record in run_records if name in record] for run_records in records)
        assert len(expected) == 3 and measured == pytest.approx(expected, rel=1e-5)
    final = [run_records[-1] for run_records in records]
    for name in ("validation/mim_loss", "validation/mlm_accuracy", "test/shuffled_mlm_loss"):
        assert final[1][name] == pytest.approx(final[0][name], rel=1e-4)


def test_unknown_key_names_the_nearest() -> None:
    done = run(SCRIPT, QUICKSTART, "optimizer.lrr=1")
    assert done.returncode == 2 and "Traceback" not in done.stderr
    assert "optimizer.lrr" in done.stderr and "optimizer.lr" in done.stderr


def test_print_config_is_a_config() -> None:
    done = run(SCRIPT, QUICKSTART, "training.max_steps=7", "--print-config")
    assert done.returncode == 0
    assert yaml.safe_load(done.stdout)["training"]["max_steps"] == 7


def test_a_missing_data_folder_is_one_message(tmp_path: Path) -> None:
    done = run(SCRIPT, QUICKSTART, f"data.path={tmp_path / 'nowhere'}", "data.prepare=null", f"output_dir={tmp_path}")
    assert done.returncode == 2 and "Traceback" not in done.stderr
    assert "nowhere does not exist: make it with m3ae prepare" in done.stderr
