"""Options that several commands share, and what commands with these options do alike."""

import json
import sys
from collections.abc import Iterable
from contextlib import redirect_stdout
from pathlib import Path
from typing import Any

import click
from click.shell_completion import CompletionItem

PACKAGE = Path(__file__).parents[1]
CONFIGS = next(folder for folder in (PACKAGE / "configs", PACKAGE.parent / "configs") if folder.is_dir())
STDOUT = "m3ae.stdout"

PATH = click.Path(path_type=Path)
FILE = click.Path(path_type=Path, exists=True, dir_okay=False)
MODEL = click.option("--model", required=True, metavar="DIR", help="folder of the model or of its run, or a hub name")
DEVICE = click.option("--device", help="such as cuda:1  [default: a GPU if there is one]")
SEED = click.IntRange(0, 2**32 - 1)  # what NumPy takes
OVERRIDES = click.argument("overrides", nargs=-1, metavar="[KEY=VALUE]...")


class ConfigFile(click.Path):
    """A parameter that is a YAML file, or the name of a shipped one: `pretrain/quickstart`, or `quickstart` alone.

    Args:
        preferred: The folder whose file is meant where two folders hold a file of one name; None refuses such a name.
    """

    def __init__(self, preferred: str | None = None) -> None:
        super().__init__(path_type=Path)
        self.preferred = preferred

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> Path:
        """Return the file; a file of the user comes before a shipped one."""
        path = Path(value)
        if path.is_file():
            return path
        shipped = shipped_configs()
        named = [name for name in shipped if str(path) in (name, name.partition("/")[2])]
        if len(named) > 1 and self.preferred is None:
            return self.fail(f"{path} may be {' or '.join(named)}: name the folder, too", param, ctx)
        if not named:
            return self.fail(f"no file {path}, and no shipped config of that name: {', '.join(shipped)}", param, ctx)
        return shipped[min(named, key=lambda name: name.partition("/")[0] != self.preferred)]

    def shell_complete(self, ctx: click.Context, param: click.Parameter, incomplete: str) -> list[CompletionItem]:
        """Complete names, and leave files to the shell."""
        shipped = shipped_configs()
        names = [*shipped, *dict.fromkeys(name.partition("/")[2] for name in shipped)]
        completions = [CompletionItem(name) for name in names if name.startswith(incomplete)]
        return completions or super().shell_complete(ctx, param, incomplete)


def shipped_configs() -> dict[str, Path]:
    """Return the files of the shipped configurations of runs, by their folder and name."""
    paths = (path for folder in ("pretrain", "finetune") for path in sorted((CONFIGS / folder).glob("*.yaml")))
    return {f"{path.parent.name}/{path.stem}": path for path in paths}


class OutputFile(click.Path):
    """A file that the command writes; the user learns at once that an older file of this name will be replaced."""

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> Path:
        """Return the path."""
        path = Path(value)
        if path.is_file():
            click.echo(f"{path} exists, and will be replaced", err=True)
        return path


OUTPUT_FILE = OutputFile()


def _only_the_result(context: click.Context, option: click.Parameter, as_json: bool) -> None:
    """Send whatever a function or a library prints to the standard error, so that the output is JSON alone."""
    if as_json:
        context.meta[STDOUT] = sys.stdout
        context.with_resource(redirect_stdout(sys.stderr))


AS_JSON = click.option(
    "--json", is_flag=True, expose_value=False, callback=_only_the_result, help="print the result as JSON"
)


def print_result(value: Any, lines: Iterable[object]) -> None:
    """Print the result of a command that has `AS_JSON`: with that option as JSON, else as lines that are not None."""
    meta = click.get_current_context().meta
    if STDOUT in meta:
        click.echo(json.dumps(value, indent=2, ensure_ascii=False), file=meta[STDOUT])
        return
    for line in lines:
        if line is not None:
            click.echo(line)


def be_quiet() -> None:
    """Let transformers load models without progress bars and notes."""
    from transformers.utils import logging

    logging.disable_progress_bar()
    logging.set_verbosity_error()
