"""The command line as users meet it: help, errors, exit statuses."""

import ast
import inspect
import io
import json
import subprocess
import sys
from collections.abc import Iterator
from functools import wraps
from pathlib import Path
from typing import Any

import click
import pyarrow.parquet as pq
import pytest
from click.testing import CliRunner, Result
from PIL import Image

from m3ae.cli import cli
from m3ae.commands.data import data, describe_arguments, function_options, parse_module
from m3ae.data.leaks import MAX_DISTANCE
from m3ae.data.pictures import draw_pictures
from m3ae.data.prepare import prepare
from m3ae.data.sources import SOURCES, source_module
from m3ae.transfer.text_encoders import load_tokenizer


def run(*arguments: object) -> Result:
    return CliRunner().invoke(cli, [*map(str, arguments)])


def error(*arguments: object, status: int = 2) -> str:
    """Run a command that fails; return its one message, beside the progress bar."""
    result = run(*arguments)
    assert result.exit_code == status, result.output
    (line,) = [line for line in result.stderr.splitlines() if line and not line.startswith("prepare:")]
    return line


SOURCE = '''"""Toys.

More.
"""

from pathlib import Path
from typing import Literal

import datasets

import m3ae

STRING = datasets.Value("string")
FEATURES = datasets.Features(
    {"id": STRING, "split": STRING, "image": datasets.Image(), "text": datasets.List(STRING)}
)
MOST = 3
ROWS = []


def rows(
    source: Path, *, order: Literal["up", "down"] = "up", shout: bool = False, most: int | None = MOST, by: str = "x"
):
    """Yield rows.

    Args:
        source: where they are not.
        order: of the rows, as long
            as there are some.
        shout: in `capitals`.
        most: rows at most.
        by: the Author.

    Returns:
        Nothing else.
    """
    for row in ROWS if order == "up" else ROWS[::-1]:
        yield row | {"text": [text.upper() if shout else text for text in row["text"]]}


m3ae.register_source("toy", __name__)
'''


@pytest.fixture
def source(
    tmp_path_factory: pytest.TempPathFactory, monkeypatch: pytest.MonkeyPatch
) -> Iterator[list[dict[str, Any]]]:
    """The rows of a source named `toy`, which a file of the user registers, to be filled by the test."""
    file = tmp_path_factory.mktemp("parts") / "toys_of_mine.py"
    file.write_text(SOURCE, encoding="utf-8")
    monkeypatch.setattr("sys.path", [*sys.path])
    monkeypatch.setenv("M3AE_IMPORT", str(file))
    assert "toy" in run("prepare", "--help").stdout
    yield sys.modules["toys_of_mine"].ROWS
    del sys.modules["toys_of_mine"], SOURCES["toy"]


def row(id: str, text: str = "one two three") -> dict[str, Any]:
    return {"id": id, "split": "train", "image": lambda: Image.new("L", (8, 8)), "text": [text]}


def test_prepare_takes_the_options_of_the_source_and_prints_the_summary(
    tmp_path: Path, source: list[dict[str, Any]]
) -> None:
    source += [row("a"), row("b", "one")]
    out = tmp_path / "out"
    arguments = ("--source", tmp_path, "--output", out, "--shorter-side", 4, "--min-words", 2, "--order", "down")
    result = run("prepare", "toy", *arguments, "--shout")
    assert result.exit_code == 0, result.output
    assert result.stdout.splitlines() == [
        "split  rows  image  texts  rejected",
        "train     2      2      1         0",
        "rejected rows: 0",
        "dropped cells: 1 (1 text: text too short)",
    ]
    first, second = pq.read_table(out / "train-00000-of-00001.parquet").to_pylist()
    assert (first["id"], first["text"], second["text"]) == ("b", None, ["ONE TWO THREE"])
    assert Image.open(io.BytesIO(first["image"]["bytes"])).size == (4, 4)


def test_too_many_rejected_rows_end_with_status_1(tmp_path: Path, source: list[dict[str, Any]]) -> None:
    source += [row("a"), row("a"), row("a"), row("b\nc")]
    arguments = ("prepare", "toy", "--source", tmp_path, "--output", tmp_path / "out")
    message = (
        "error: 75% of the rows were rejected (2 duplicate id, 1 id not one line); what could be used is written: "
        f"see {tmp_path / 'out' / 'rejected.jsonl'}, and raise --max-rejected if this is as it should be"
    )
    assert error(*arguments, status=1) == message
    assert json.loads((tmp_path / "out" / "manifest.json").read_text())["splits"]["train"]["rows"] == 1
    reused = run(*arguments)
    assert (reused.exit_code, reused.stderr.splitlines()[-1]) == (1, message), "a folder that is reused is no better"
    assert run(*arguments, "--max-rejected", 0.75).exit_code == 0
    sys.modules["toys_of_mine"].LEFT_OUT_BY_CHOICE = ("duplicate id",)
    assert run(*arguments).exit_code == 0, "half of what nobody chose to leave out is there"
    source.clear()
    assert error(*arguments[:-1], tmp_path / "none", status=1) == "error: the source has no rows"


def test_errors_are_one_line_and_say_what_to_do(tmp_path: Path, source: list[dict[str, Any]]) -> None:
    absent, out = tmp_path / "absent", tmp_path / "out"
    toy = ("prepare", "toy", "--output", out)
    assert error("prepare", "iu_xray", "--source", absent, "--output", out) == (
        f"error: folder {absent} does not exist: expected the unpacked IU X-ray folder with its CSV files"
    )
    assert error("prepare", "iu-xray").startswith(
        "error: unknown source 'iu-xray': expected one of digits, folder, iu_xray"
    )
    assert error(*toy) == "error: Missing option '--source'. (see m3ae prepare toy --help)"
    assert "'sideways' is not one of 'up', 'down'" in error(*toy, "--source", "x", "--order", "sideways")
    assert error("train", absent).startswith("error: ")
    broken = tmp_path / "br\udcfcst"
    assert error("prepare", "iu_xray", "--source", broken, "--output", out).startswith("error: folder")


def test_a_missing_library_is_named(tmp_path: Path, source: list[Any], monkeypatch: pytest.MonkeyPatch) -> None:
    @wraps(sys.modules["toys_of_mine"].rows)
    def rows(**options: Any) -> Iterator[Any]:
        import not_installed  # noqa: F401

        yield {}

    monkeypatch.setattr(sys.modules["toys_of_mine"], "rows", rows)
    expected = "error: No module named 'not_installed': install what is needed with pip install 'm3ae[train]'"
    assert error("prepare", "toy", "--source", tmp_path, "--output", tmp_path / "out") == expected


def test_too_little_memory_is_named(tmp_path: Path, source: list[dict[str, Any]]) -> None:
    def large() -> Image.Image:
        raise MemoryError

    source += [row("a") | {"image": large}]
    assert error("prepare", "toy", "--source", tmp_path, "--output", tmp_path / "out") == "error: out of memory"


def test_ctrl_c_says_how_to_continue(tmp_path: Path, source: list[dict[str, Any]]) -> None:
    def interrupted() -> Image.Image:
        raise KeyboardInterrupt

    source += [row("a") | {"image": interrupted}]
    result = run("prepare", "toy", "--source", tmp_path, "--output", tmp_path / "out")
    assert result.exit_code == 130
    assert "interrupted after 0 of 1 shards: run the same again to continue" in result.stderr


def test_help_comes_from_signature_and_docstring(source: list[Any]) -> None:
    help = " ".join(run("prepare", "toy", "--help").stdout.split())
    assert "Toys. More." in help and "m3ae prepare toy --source DOWNLOADS/toy --output data/toy" in help
    assert "--source PATH where they are not [required] --output PATH" in help
    assert "--order [up|down] of the rows, as long as there are some [default: up]" in help
    assert "--shout in capitals --most INTEGER rows at most [default: 3] --by TEXT the Author [default: x]" in help
    assert "--shorter-side INTEGER" in help


@pytest.mark.parametrize("name", SOURCES)
def test_every_option_of_every_source_is_described(name: str) -> None:
    common = function_options(parse_module("m3ae.data.prepare"), "prepare", skip=("name", "source", "options"))
    options = function_options(parse_module(source_module(name)), "rows")
    assert all(option.help for option in [*common.values(), *options.values()])
    assert not common.keys() & options.keys()


def test_a_function_without_docstring_has_no_descriptions() -> None:
    assert describe_arguments("") == {}


def test_a_source_without_rows_or_with_options_of_other_types_is_refused() -> None:
    for annotation in ("", ": list[str]"):
        with pytest.raises(ValueError, match=r"labels: an option cannot have the type .*; expected Literal or str"):
            function_options(ast.parse(f"def rows(labels{annotation}): ..."), "rows")
    with pytest.raises(ValueError, match="the source has no function rows; it has row"):
        function_options(ast.parse("def row(): ..."), "rows")


def test_the_options_of_check_are_those_of_the_function() -> None:
    defaults = {option.name: option.default for option in data.commands["check"].params}
    assert defaults["max_distance"] == MAX_DISTANCE
    (show,) = (option for option in data.commands["show"].params if option.name == "num_rows")
    assert show.default == inspect.signature(draw_pictures).parameters["num_rows"].default


def test_a_file_with_the_name_of_another_module_is_not_imported(tmp_path: Path) -> None:
    (tmp_path / "click.py").write_text("")
    assert "has the name of another module, click: rename the file" in error("--import", tmp_path / "click.py", "data")


HEAVY = {"datasets", "matplotlib", "numpy", "pyarrow", "sklearn", "timm", "torch", "torchvision", "transformers"}


def imported(*arguments: object) -> set[str]:
    """Run a command in a process of its own; return the names of the modules that it has imported."""
    code = "import sys, m3ae_command\ntry: m3ae_command.main()\nfinally: print(*sys.modules)"
    command = [sys.executable, "-c", code, *map(str, arguments)]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    return set(done.stdout.splitlines()[-1].split())


def commands(group: click.Group, words: tuple[str, ...] = ()) -> Iterator[tuple[str, ...]]:
    """Yield the words of every command of a group, itself included."""
    yield words
    with click.Context(group) as context:
        for name in group.list_commands(context):
            command = group.get_command(context, name)
            yield from commands(command, (*words, name)) if isinstance(command, click.Group) else [(*words, name)]


def test_help_imports_nothing_heavy() -> None:
    assert ("prepare", "folder") in [*commands(cli)]
    code = "\n".join(
        [
            "import sys, m3ae_command",
            "from m3ae.cli import cli",
            "from click.testing import CliRunner",
            f"for words in {[*commands(cli)]}:",
            "    result = CliRunner().invoke(cli, [*words, '--help'])",
            "    assert result.exit_code == 0 and 'Usage: m3ae' in result.stdout, (words, result.output)",
            f"    assert not {HEAVY} & sys.modules.keys(), words",
        ]
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    as_module = [sys.executable, "-X", "importtime", "-m", "m3ae", "prepare", "folder", "--help"]
    done = subprocess.run(as_module, capture_output=True, text=True, check=True)
    assert "--text-column" in done.stdout and "m3ae.commands.data" in done.stderr
    assert not HEAVY & {line.split("|")[-1].strip() for line in done.stderr.splitlines()}


def test_commands_on_data_import_no_model(tmp_path: Path) -> None:
    Image.new("L", (8, 8)).save(tmp_path / "a.png")
    (tmp_path / "a.txt").write_text("one two three", encoding="utf-8")
    for arguments in (
        ("prepare", "folder", "--source", tmp_path, "--output", tmp_path / "data"),
        ("data", "check", tmp_path / "data"),
        ("data", "show", tmp_path / "data"),
    ):
        assert not {"m3ae.models", "timm", "torch", "transformers"} & imported(*arguments), arguments


def test_models_are_registered_by_importing_the_package_and_timm_waits_for_an_image_encoder() -> None:
    code = (
        "import sys, m3ae; from transformers import AutoConfig, AutoModel; "
        "config = AutoConfig.for_model('m3ae'); assert type(config) is m3ae.M3AEConfig and 'timm' not in sys.modules; "
        "assert AutoModel._model_mapping[type(config)] is m3ae.M3AEModel"
    )
    for run_first in ("", "import m3ae_command; import m3ae; m3ae.M3AEModel; "):
        subprocess.run([sys.executable, "-c", run_first + code], check=True)


def test_a_tokenizer_is_trained_on_a_prepared_folder(
    tmp_path: Path, source: list[dict[str, Any]], monkeypatch: pytest.MonkeyPatch, full_disk: Any
) -> None:
    monkeypatch.setattr("datasets.config.HF_DATASETS_CACHE", tmp_path / "cache")
    source += [row("a", "small left nodule"), row("b", "large left nodule")]
    prepare("toy", tmp_path / "data", source=tmp_path)
    result = run("train-tokenizer", tmp_path / "data", "--output", tmp_path / "tokenizer", "--vocab-size", 270)
    assert result.exit_code == 0, result.output
    assert result.stdout.startswith(f"{tmp_path / 'tokenizer'}: 270 tokens from 2 texts, ")
    assert len(load_tokenizer(str(tmp_path / "tokenizer"))) == 270
    message = error("train-tokenizer", tmp_path / "data", "--output", tmp_path / "t", "--text-column", "report")
    assert "has no column 'report'; it has id, split, image, text. Set --text-column." in message
    assert not (tmp_path / "t").exists()
    message = error("train-tokenizer", tmp_path / "data", "--output", tmp_path / "data", "--vocab-size", 270)
    assert message.endswith(f"{tmp_path / 'data'} holds manifest.json already: choose a new or an empty folder")
    with full_disk(1000):
        message = error("train-tokenizer", tmp_path / "data", "--output", tmp_path / "t", "--vocab-size", 270)
    assert "No space left on device" in message and not (tmp_path / "t").exists()


def test_leaks_and_pictures_of_prepared_folders(
    tmp_path: Path, source: list[dict[str, Any]], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("datasets.config.HF_DATASETS_CACHE", tmp_path / "cache")
    source += [row("a"), row("b", "four five six") | {"split": "test"}]
    prepare("toy", tmp_path / "data", source=tmp_path)
    result = run("data", "check", tmp_path / "data", "--json", tmp_path / "leaks.json", "--num-workers", 1)
    assert result.exit_code == 1, "both rows show the same image"
    assert "LEAK: 1 of the 1 images of data/test are in data/train" in result.stdout
    assert json.loads((tmp_path / "leaks.json").read_text())["leaks"]
    result = run("data", "show", tmp_path / "data", "--output", tmp_path / "pictures", "--num-rows", 1)
    assert result.exit_code == 0 and "replaced" not in result.stderr, result.output
    assert str(tmp_path / "pictures" / "contact_sheet.png") in result.stdout.splitlines()
    result = run("data", "show", tmp_path / "data", "--output", tmp_path / "pictures", "--num-rows", 1)
    assert f"{tmp_path / 'pictures'}: replaced contact_sheet.png" in result.stderr
    assert "nowhere" in error("data", "check", tmp_path / "nowhere")
    assert "--num-rows" in run("data", "show", "--help").stdout and "check" in run("data", "--help").stdout


def test_the_installed_command_and_the_script_run() -> None:
    for command in ([str(Path(sys.executable).with_name("m3ae"))], [sys.executable, "scripts/prepare.py"]):
        done = subprocess.run([*command, "--help"], cwd=Path(__file__).parents[1], capture_output=True, text=True)
        assert done.returncode == 0 and "m3ae prepare iu_xray --source" in done.stdout, done.stderr


def test_env_prints_what_a_bug_report_needs() -> None:
    done = run("env")
    assert done.exit_code == 0 and "precision: " in done.output and "GPUs: " in done.output
    facts = json.loads(run("env", "--json").output)
    assert facts["packages"]["m3ae"] and isinstance(facts["processor"], list)
    assert f"torch {facts['packages']['torch']}" in done.output
