"""What the wheel holds works without the repository; shipped configs are found by name."""

import os
import subprocess
import sys
import tarfile
import zipfile
from pathlib import Path

import pytest
import yaml
from click.testing import CliRunner
from hatchling.builders.sdist import SdistBuilder
from hatchling.builders.wheel import WheelBuilder

import m3ae
from m3ae.cli import cli
from m3ae.commands.options import CONFIGS
from m3ae.commands.training import evaluate, finetune, pretrain, sweep, train

ROOT = Path(__file__).parents[1]


@pytest.fixture(scope="module")
def installed(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The unpacked wheel that is built from the source distribution."""
    folder = tmp_path_factory.mktemp("wheel")
    (archive,) = SdistBuilder(str(ROOT)).build(directory=str(folder), versions=["standard"])
    with tarfile.open(archive) as file:
        file.extractall(folder, filter="data")
    (source,) = (path for path in folder.iterdir() if path.is_dir())
    (wheel,) = WheelBuilder(str(source)).build(directory=str(folder), versions=["standard"])
    zipfile.ZipFile(wheel).extractall(folder / "site-packages")
    return folder / "site-packages"


def test_the_wheel_holds_all_configs_and_modules(installed: Path) -> None:
    for shipped, source, suffix in (("m3ae/configs", "configs", ""), ("m3ae", "m3ae", ".py")):
        expected, found = (
            {path.relative_to(folder) for path in folder.rglob(f"*{suffix}")}
            for folder in (ROOT / source, installed / shipped)
        )
        assert found == expected
    assert (installed / "m3ae" / "py.typed").is_file()
    assert {path.name.partition("-")[0] for path in installed.iterdir()} == {"m3ae", "m3ae_command.py"}


def test_there_is_one_version(installed: Path) -> None:
    citation = yaml.safe_load((ROOT / "CITATION.cff").read_text(encoding="utf-8"))
    assert citation["version"] == m3ae.__version__
    assert (installed / f"m3ae-{m3ae.__version__}.dist-info").is_dir()


def test_a_shipped_config_is_found_from_the_wheel(installed: Path, tmp_path: Path) -> None:
    command = [sys.executable, "-m", "m3ae", "train", "quickstart", "training.max_steps=7", "--print-config"]
    environment = os.environ | {"PYTHONPATH": str(installed)}
    done = subprocess.run(command, cwd=tmp_path, env=environment, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    printed = yaml.safe_load(done.stdout)
    assert (printed["output_dir"], printed["training"]["max_steps"]) == ("runs/quickstart", 7)


def test_names_of_shipped_configs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for command, name, expected in (
        (pretrain, "vqa_rad_small", "pretrain/vqa_rad_small"),
        (finetune, "vqa_rad_small", "finetune/vqa_rad_small"),
        (evaluate, "vqa_rad_small", "finetune/vqa_rad_small"),
        (evaluate, "pretrain/vqa_rad_small", "pretrain/vqa_rad_small"),
        (train, "finetune/vqa_rad_small", "finetune/vqa_rad_small"),
        (train, "digits", "pretrain/digits"),
        (sweep, "vqa_rad", "finetune/vqa_rad"),
    ):
        assert command.params[0].type.convert(name, None, None) == CONFIGS / f"{expected}.yaml"
    monkeypatch.chdir(tmp_path)
    Path("mine").touch()
    config = train.params[0]
    assert config.type.convert("mine", None, None) == Path("mine")
    for name, message in (
        ("quikstart", "no file quikstart, and no shipped config of that name: pretrain/base, pretrain/digits, "),
        (
            "vqa_rad_small",
            "vqa_rad_small may be pretrain/vqa_rad_small or finetune/vqa_rad_small: name the folder, too",
        ),
    ):
        result = CliRunner().invoke(cli, ["train", name])
        assert result.exit_code == 2 and result.stderr.startswith(f"error: Invalid value for 'CONFIG': {message}")
    completed = [item.value for item in config.type.shell_complete(None, config, "vqa_rad")]
    assert completed == ["vqa_rad_small", "vqa_rad"]
