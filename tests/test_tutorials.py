"""The blocks of "Get started" and of the tutorials run as they are written, in one process where they can."""

import re
import shlex
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest
from accelerate.state import AcceleratorState
from click.testing import CliRunner
from PIL import Image

from m3ae.cli import cli
from tests.test_readme import run as run_in_shell

ROOT = Path(__file__).parents[1]
TUTORIALS = sorted((ROOT / "docs" / "tutorials").glob("*.md"))
PAGES = [ROOT / "docs" / "get_started.md", *TUTORIALS]
BLOCK = re.compile(r'^(<!-- not run: .+ -->\n)?^```(\w*)(?: title="(.+)")?\n(.*?)^```$', re.MULTILINE | re.DOTALL)


def blocks(text: str) -> Iterator[tuple[str, str | None, str]]:
    """Yield language, file name and content of each block that is not marked as not to be run."""
    for skipped, language, title, content in BLOCK.findall(text):
        if not skipped:
            yield language, title or None, content


def m3ae(arguments: list[str]) -> str:
    """Run a command as a process of its own would."""
    result = CliRunner().invoke(cli, arguments)
    AcceleratorState._reset_state(reset_partial_state=True)
    assert result.exit_code == 0, f"m3ae {shlex.join(arguments)}\n{result.output}"
    return result.stdout


@pytest.fixture(scope="module")
def quickstart(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder in which the README's first command has run, shortened."""
    folder = tmp_path_factory.mktemp("tutorials")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("ACCELERATE_USE_CPU", "true")
        patch.chdir(folder)
        short = ["data.prepare.num_studies=120", "training.max_steps=10", "evaluation.retrieval_pairs=0"]
        m3ae(["pretrain", "quickstart", *short])
    Image.new("L", (120, 100), 90).save(folder / "chest.png")
    return folder


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore:'pin_memory' argument is set:UserWarning")  # by Trainer's defaults, on CPUs
@pytest.mark.parametrize("path", PAGES, ids=lambda path: path.stem)
def test_a_tutorial_runs_as_it_is_written(path: Path, quickstart: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(quickstart)
    for language, title, content in blocks(path.read_text(encoding="utf-8")):
        if title:
            Path(title).parent.mkdir(exist_ok=True)
            Path(title).write_text(content, encoding="utf-8")
        elif language == "python":
            exec(compile(content, path.name, "exec"), {})
        else:
            for line in content.replace("\\\n", " ").splitlines():
                if line.startswith("m3ae "):
                    command, _, file = line.partition(" > ")
                    printed = m3ae(shlex.split(command)[1:])
                    if file:
                        Path(file).write_text(printed, encoding="utf-8")
                else:
                    done: subprocess.CompletedProcess[str] = run_in_shell(line, quickstart)
                    assert done.returncode == 0, f"{line}\n{done.stderr}"


def test_tutorials_are_short_and_all_in_the_navigation() -> None:
    navigation = (ROOT / "mkdocs.yml").read_text(encoding="utf-8")
    for path in TUTORIALS:
        assert len(path.read_text(encoding="utf-8").splitlines()) <= 110
        assert f"tutorials/{path.name}" in navigation
