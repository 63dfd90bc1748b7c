"""The README's commands and example run as they are written, the installation excepted."""

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from PIL import Image

import m3ae
from m3ae.training.progress import read_metrics

ROOT = Path(__file__).parents[1]
README = (ROOT / "README.md").read_text(encoding="utf-8")


def block(name: str) -> str:
    found = re.search(rf"<!-- {name} -->\n```\w*\n(.*?)```", README, re.DOTALL)
    assert found, f"README.md has no block marked {name!r}"
    return found.group(1).strip()


def after_installation(command: str) -> str:
    set_up, _, rest = command.partition(" && pip install -e ")
    assert set_up == "python3 -m venv .venv && . .venv/bin/activate" and "\n" not in command
    return rest.partition(" && ")[2]


def run(command: str, cwd: Path) -> subprocess.CompletedProcess[str]:
    environment = {
        **os.environ,
        "PATH": f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}",
        "PYTHONWARNINGS": "default",
        "ACCELERATE_USE_CPU": "true",
    }
    return subprocess.run(command, shell=True, cwd=cwd, env=environment, capture_output=True, text=True, check=False)


@pytest.fixture(scope="module")
def quickstart(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, str]:
    folder = tmp_path_factory.mktemp("checkout")
    for name in ("scripts", "configs"):
        (folder / name).symlink_to(ROOT / name)
    done = run(after_installation(block("pre-training command")), folder)
    assert done.returncode == 0, done.stderr
    return folder, done.stdout


@pytest.mark.slow
@pytest.mark.timeout(900)
def test_the_first_command_pre_trains(quickstart: tuple[Path, str]) -> None:
    folder, printed = quickstart
    results = folder / "runs" / "quickstart"
    records = read_metrics(results / "metrics.jsonl")
    losses = [record["training/loss"] for record in records if "training/loss" in record]
    assert losses[-1] < 0.7 * losses[0]
    assert "validation/mlm_accuracy" in printed and "shuffled" in printed
    for name in ("figures/losses.png", "figures/reconstructions.png", "model/model.safetensors", "model/README.md"):
        assert (results / name).is_file()


@pytest.mark.slow
def test_the_example_runs_on_its_model(quickstart: tuple[Path, str]) -> None:
    folder, _ = quickstart
    Image.new("L", (120, 100), 90).save(folder / "chest.png")
    code = block("example") + "\nassert features.shape == (1, 256), features.shape\n"
    done = subprocess.run([sys.executable, "-c", code], cwd=folder, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr


def test_the_second_command_finds_the_tests() -> None:
    command = after_installation(block("test command"))
    assert command == "pytest"
    done = run(f"{command} --collect-only -q tests/models/test_masking.py", ROOT)
    assert done.returncode == 0 and "test_patchify_and_back" in done.stdout


def test_every_mentioned_file_exists() -> None:
    for name in re.findall(r"\b(?:scripts|configs|tests|docs)/[\w./]+\.\w+", README):
        assert (ROOT / name).is_file(), name


@pytest.mark.timeout(900)
def test_arrays_are_trained_on_in_ten_lines(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    found: dict = {}
    exec(block("arrays example"), found)
    records = read_metrics(Path("runs/arrays/metrics.jsonl"))
    losses = [record["training/loss"] for record in records if "training/loss" in record]
    assert losses[-1] < losses[0] - 100
    model = m3ae.M3AEForGeneration.from_pretrained("runs/arrays/model")
    blood = torch.from_numpy(found["blood"][[1, 2]]).float()
    drawn = model.generate_modalities({"blood": {"values": blood}}, temperature=0.0)["front"][0]
    assert drawn.shape == (2, 1, 12, 16)
    slopes = drawn[:, 0, -1, -1] - drawn[:, 0, 0, 0]
    assert torch.equal(slopes.argsort(), blood[:, 0].argsort())
