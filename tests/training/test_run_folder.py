import json
import shutil
from pathlib import Path

import pytest
from click.testing import CliRunner

from m3ae.cli import cli
from m3ae.files import LOCK, file_sha256, only_process
from m3ae.training.loop import train
from m3ae.training.run_folder import RunFolder, environment

from .toy import ToyTask, toy_config


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run on data of which there is only the manifest."""
    root = tmp_path_factory.mktemp("run")
    (root / "data").mkdir()
    (root / "data" / "manifest.json").write_text("{}")
    config = toy_config(root / "run")
    data = config.data.model_copy(update={"path": root / "data"})
    train(config.model_copy(update={"data": data}), ToyTask())
    return root


def show(*arguments: object) -> str:
    result = CliRunner().invoke(cli, ["run", "show", *map(str, arguments)])
    assert result.exit_code == 0, result.output
    return result.stdout


def test_a_run_is_shown(finished: Path) -> None:
    data, folder = finished / "data", finished / "run"
    printed = show(folder)
    assert printed.startswith(
        f"{folder}: pretraining, finished, step 8 of 8\ncheckpoints: step-00000006, step-00000008\n"
    )
    digest = file_sha256(data / "manifest.json")
    for line in (
        "start at step 0, 20",
        "  seeds: 0\n",
        f"  {data}: manifest {digest} (unchanged)\n",
        "  max_steps: 8\n",
    ):
        assert line in printed
    changed = shutil.copytree(folder, finished / "copy")
    (data / "manifest.json").write_text("{ }")
    assert "(changed since)" in show(changed)
    (data / "manifest.json").unlink()
    assert "(missing now)" in show(changed)


def test_as_json_it_holds_everything(finished: Path) -> None:
    found = json.loads(show(finished / "run", "--json"))
    assert found == RunFolder(finished / "run").describe()
    assert found["finished"] and found["step"] == 8 and "validation/loss" in found["metrics"]
    assert found["config"]["training"]["seed"] == 0
    assert {"command", "packages", "git_revision", "data", "seeds"} <= found["starts"][0].keys()


def test_the_command_names_files_that_were_imported(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("sys.argv", ["m3ae", "train", "x.yaml"])
    monkeypatch.setenv("M3AE_IMPORT", "parts.py")
    assert environment()["command"] == "M3AE_IMPORT=parts.py m3ae train x.yaml"


@pytest.mark.parametrize("name", ["config.yaml", "metrics.jsonl", "environment.json", "best", "figures"])
def test_a_folder_with_files_of_something_else_is_no_output_dir(tmp_path: Path, name: str) -> None:
    (tmp_path / name).write_text("mine: 1\n")  # a folder of that name is no different
    with pytest.raises(FileExistsError, match=f"{name} (that is not of a run|was not written by m3ae)"):
        RunFolder(tmp_path).starting_points(resume=True)
    assert (tmp_path / name).read_text() == "mine: 1\n"


def test_two_runs_do_not_share_a_folder(tmp_path: Path) -> None:
    config = toy_config(tmp_path, max_steps=1)
    with only_process(tmp_path), pytest.raises(BlockingIOError, match="is being written by process"):
        train(config, ToyTask())
    assert list(tmp_path.iterdir()) == []
    train(config, ToyTask())
    assert not (tmp_path / LOCK).exists()


def test_a_folder_without_a_run_says_so(tmp_path: Path) -> None:
    result = CliRunner().invoke(cli, ["run", "show", str(tmp_path)])
    assert result.exit_code == 2
    assert result.stderr == f"error: {tmp_path} holds no run: expected config.yaml and environment.json in it\n"


def test_changed_data_are_said_when_a_run_goes_on(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "data").mkdir()
    manifest = tmp_path / "data" / "manifest.json"
    manifest.write_text("{}")
    config = toy_config(tmp_path / "run")
    config = config.model_copy(update={"data": config.data.model_copy(update={"path": tmp_path / "data"})})
    train(config, ToyTask())
    train(config, ToyTask(), resume=True)
    assert "has changed" not in capsys.readouterr().out
    manifest.write_text("{ }")
    for output, resume in (("run", True), ("other", tmp_path / "run")):
        changed = config.model_copy(update={"output_dir": tmp_path / output})
        if output == "other":
            manifest.write_text("{  }")
        train(changed, ToyTask(), resume=resume)
        expected = f"warning: {tmp_path / 'data'} has changed since the run's last start: samples differ"
        assert expected in capsys.readouterr().out.splitlines()


@pytest.mark.parametrize(
    ("name", "content"),
    [
        ("environment.json", "{}"),
        ("environment.json", '[{"step": 0}]'),
        ("environment.json", "[" * 100_000),
        ("config.yaml", "a: [b"),
        ("config.yaml", "task: pretraining\n"),
        ("config.yaml", "training: {max_steps: 3}\n"),
        ("config.yaml", "3\n"),
        ("metrics.jsonl", '{"step": 1, "a": "x"}\n'),
        ("metrics.jsonl", "{}\n"),
        ("metrics.jsonl", "3\n"),
    ],
)
def test_a_damaged_record_is_named(finished: Path, tmp_path: Path, name: str, content: str) -> None:
    damaged = shutil.copytree(finished / "run", tmp_path / "run")
    (damaged / name).write_text(content)
    result = CliRunner().invoke(cli, ["run", "show", str(damaged)])
    assert result.exit_code == 2 and f"{damaged / name} is damaged: " in result.stderr
