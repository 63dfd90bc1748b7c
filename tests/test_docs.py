"""What the documents name exists: commands, options, settings, files; and the page of models says what configs say."""

import re
import runpy
import shlex
from collections.abc import Iterator
from pathlib import Path

import click
import pytest

from m3ae import M3AEConfig
from m3ae.cli import cli
from m3ae.commands.options import ConfigFile
from m3ae.commands.training import EVALUATED
from m3ae.options import dotted_keys
from m3ae.training.config import RUNS, load_config

ROOT = Path(__file__).parents[1]
DOCUMENTS = [ROOT / "README.md", *sorted((ROOT / "docs").rglob("*.md"))]
CONFIGS = sorted((ROOT / "configs").rglob("*.yaml"))
SCRIPTS = {"evaluate_model": "evaluate", "convert_checkpoint": "convert", "check_parity": "check-parity"}
SCRIPTS |= {"slurm": "train"}  # the others are called as their command is
LEFT_OUT = re.compile(r"…|\.\.\.|[<>]|^[A-Z]+$")  # stands for what a reader fills in
PROSE = [ROOT / "README.md", ROOT / "CONTRIBUTING.md", ROOT / "benchmarks" / "README.md"]
PROSE += [path for path in DOCUMENTS[1:] if path.stem not in ("changelog", "contributing", "zoo")]
OF_OTHERS = {
    "--signal",
    "--machine_rank",
    "--gpus-per-node",
    "--gpus-per-task",
    "--nodes",
    "--config_file",
    "--multi_gpu",
}


def commands(text: str) -> Iterator[tuple[list[str], bool]]:
    """Yield the arguments of every `m3ae` in a document or a config's header, and whether it is a whole command.

    A command begins with the name of the console script, with a launcher and the module, or with one of the scripts.
    """
    text = re.sub(r"\\\n\s*", "", text)
    lines = re.findall(r"(?m)^#? *(.*(?:m3ae|scripts/\w+\.(?:py|sh)) .*)$", text)
    for span, whole in [
        *((line, True) for line in lines),
        *((part, False) for part in re.findall(r"`([^`\n]+)`", text)),
    ]:
        for part in re.split(r" && | \| ", span):
            found = re.search(r"^(?:m3ae|.*-m m3ae|.*scripts/(\w+)\.(?:py|sh)) +(.+)$", part.strip())
            if found and "`" not in part:
                script = [SCRIPTS.get(found[1], found[1])] if found[1] else []
                yield [*script, *shlex.split(found[2], comments=True)], whole


def leaf(words: list[str]) -> tuple[click.Command, list[str]]:
    """Follow the names of commands; return the last one and what is left of the words."""
    command: click.Command = cli
    context = click.Context(cli)
    if words[:1] == ["--import"]:  # the command may be a part of the reader's file
        return cli, []
    while isinstance(command, click.Group) and words and not LEFT_OUT.search(words[0]):
        name, *words = words
        found = command.get_command(context, name)
        assert found, f"there is no command {name} in {command.name}"
        command = found
    return command, words


def check_command(words: list[str], whole: bool = True) -> None:
    command, rest = leaf(words)
    if isinstance(command, click.Group):  # its command is for the reader to fill in
        return
    options = {name for option in command.params for name in (*option.opts, *option.secondary_opts)} | {"--help"}
    unknown = [word for word in rest if word.startswith("--") and word not in options]
    assert not unknown, f"m3ae {shlex.join(words)}: no option {unknown}"
    if any(LEFT_OUT.search(word) for word in rest) or not rest:
        return
    try:
        context = command.make_context(command.name, [*rest])  # parses all of it, and runs nothing
    except click.MissingParameter:
        assert not whole
        return
    if isinstance(command.params[0].type, ConfigFile):
        first = EVALUATED if command.name == "evaluate" else ()
        load_config(context.params["config"], (*first, *context.params["overrides"]))


@pytest.mark.parametrize("path", [*DOCUMENTS, *CONFIGS], ids=lambda path: path.stem)
def test_every_command_parses(path: Path, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "configs").symlink_to(ROOT / "configs")
    text = path.read_text(encoding="utf-8")
    for title, content in re.findall(r'^```yaml title="(.+)"\n(.*?)^```$', text, re.MULTILINE | re.DOTALL):
        Path(title).write_text(content, encoding="utf-8")
    for image in re.findall(r"--image (\S+)", text):
        Path(image).parent.mkdir(exist_ok=True)
        Path(image).touch()  # the option wants a file that exists
    for words, whole in commands(text):
        if ">" in words:  # a config that `m3ae init` writes
            words, (file,) = words[: words.index(">")], words[words.index(">") + 1 :]
            Path(file).write_text((ROOT / "configs/pretrain/quickstart.yaml").read_text(encoding="utf-8"))
        check_command(words, whole)


def settings(text: str) -> Iterator[str]:
    """Yield the keys of settings that stand alone in a document."""
    sections = "|".join({section for run in RUNS.values() for section in run.model_fields})
    yield from re.findall(rf"`((?:{sections})\.[a-z_.]+)(?:=[^`]*)?`", text)


def check_setting(key: str) -> None:
    if key.startswith("model.overrides."):
        assert hasattr(M3AEConfig(), key.split(".")[2]), f"there is no option {key} of a model"
        return
    keys = {known for run in RUNS.values() for known in dotted_keys(run)}
    leaves = keys - {known.rpartition(".")[0] for known in keys}
    assert key in keys or any(key.startswith(f"{leaf}.") for leaf in leaves), f"there is no setting {key}"


@pytest.mark.parametrize("path", DOCUMENTS, ids=lambda path: path.stem)
def test_every_setting_and_option_exists(path: Path) -> None:
    text = path.read_text(encoding="utf-8")
    for key in settings(text):
        check_setting(key)
    named = set(re.findall(r"`(--[a-z][\w-]+)", text)) - OF_OTHERS
    assert named <= ALL_OPTIONS | {"--help"}, named - ALL_OPTIONS


def options_below(command: click.Command) -> set[str]:
    if not isinstance(command, click.Group):
        return {name for option in command.params for name in (*option.opts, *option.secondary_opts)}
    context = click.Context(command)
    own = {name for option in command.params for name in option.opts}
    below = [command.get_command(context, name) for name in command.list_commands(context)]
    return own.union(*(options_below(found) for found in below if found))


ALL_OPTIONS = options_below(cli)


@pytest.mark.parametrize(
    ("words", "message"),
    [
        ("data shew x", "no command shew"),
        ("data show x --outptu y", "no option"),
        ("train quikstart", "no file quikstart"),
        ("train quickstart training.max_step=3", "training.max_steps"),
    ],
)
def test_what_does_not_exist_is_found(words: str, message: str) -> None:
    ((found, _),) = commands(f"```\nm3ae {words}\n```\n")
    with pytest.raises((AssertionError, ValueError, click.UsageError), match=message):
        check_command(found)
    with pytest.raises(AssertionError, match="no setting"):
        check_setting("training.max_step")


def test_the_page_of_models_says_what_the_configs_say() -> None:
    made = runpy.run_path(str(ROOT / "docs" / "zoo.py"))["page"]()
    assert (ROOT / "docs" / "zoo.md").read_text(encoding="utf-8") == made, "run python docs/zoo.py"
    for path in CONFIGS:
        assert (f"| `{path.stem}` |" in made) == (path.parent.name in ("pretrain", "finetune"))


@pytest.mark.parametrize("path", DOCUMENTS, ids=lambda path: path.stem)
def test_tables_and_paragraphs_of_lists_are_set_as_such(path: Path) -> None:
    """Python-Markdown takes lines below a table as rows, and an item below a paragraph of a list as its text."""
    text = re.sub(r"```.*?```", "", path.read_text(encoding="utf-8"), flags=re.DOTALL)
    for block in re.split(r"\n\s*\n", text):
        lines = block.strip("\n").split("\n")
        assert len({line.startswith("|") for line in lines if not line.startswith("<!--")}) <= 1, block
        assert not re.match(r"    (?!-).*\n- ", block.strip("\n"), re.DOTALL), block
    assert not re.search(r"\n\n {1,3}\S", text)


def sentences(text: str) -> Iterator[str]:
    """Yield the sentences of paragraphs and lists; a span of code counts as one word."""
    text = re.sub(r"<!--.*?-->|```.*?```", "", text, flags=re.DOTALL)
    text = re.sub(r"(?m)^ *[|#!=:].*$|\\A---\n.*?\n---\n", "", text)
    text = re.sub(r"`[^`]*`", "CODE", re.sub(r"\[([^\]]*)\]\([^)]*\)", r"\1", text))
    for block in re.split(r"\n\s*\n|\n *(?:[-*]|\d+\.) ", text):
        yield from re.split(r"(?<=[.!?:])\s+(?=[A-Z(\"*])", " ".join(block.split()))


@pytest.mark.parametrize("path", PROSE, ids=lambda path: f"{path.parent.name}-{path.stem}")
def test_sentences_are_short(path: Path) -> None:
    counts = {text: len(re.findall(r"\w[\w'’.,%–-]*", text)) for text in sentences(path.read_text(encoding="utf-8"))}
    long = [text for text, count in counts.items() if count > 36]
    assert not long
    assert sum(counts.values()) / sum(map(bool, counts.values())) <= 15
