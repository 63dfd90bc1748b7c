"""What the commands share that use a trained model."""

import json
import sys
from contextlib import redirect_stdout
from pathlib import Path
from typing import Any

import click

PATH = click.Path(path_type=Path)
FILE = click.Path(path_type=Path, exists=True, dir_okay=False)

MODEL = click.option("--model", required=True, metavar="DIR", help="folder of the model or of its run, or a hub name")
DEVICE = click.option("--device", help="such as cuda:1  [default: a GPU if there is one]")


def _only_the_result(context: click.Context, option: click.Parameter, as_json: bool) -> bool:
    """Send whatever a function or a library prints to the standard error, so that the output is JSON alone."""
    if as_json:
        context.meta[STDOUT] = sys.stdout
        context.with_resource(redirect_stdout(sys.stderr))
    return as_json


STDOUT = "m3ae.stdout"
AS_JSON = click.option("--json", "as_json", is_flag=True, callback=_only_the_result, help="print the result as JSON")


def be_quiet() -> None:
    """Let transformers load models without progress bars and notes."""
    from transformers.utils import logging

    logging.disable_progress_bar()
    logging.set_verbosity_error()


def print_json(value: Any) -> None:
    """Print the result of a command that has `AS_JSON`."""
    text = json.dumps(value, indent=2, ensure_ascii=False)
    click.echo(text, file=click.get_current_context().meta[STDOUT])
