"""What the commands share that use a trained model."""

import json
from pathlib import Path
from typing import Any

import click

PATH = click.Path(path_type=Path)
FILE = click.Path(path_type=Path, exists=True, dir_okay=False)

MODEL = click.option("--model", required=True, metavar="DIR", help="folder of the model or of its run, or a hub name")
DEVICE = click.option("--device", help="such as cuda:1  [default: a GPU if there is one]")
AS_JSON = click.option("--json", "as_json", is_flag=True, help="print the result as JSON")


def be_quiet() -> None:
    """Let transformers load models without progress bars and notes."""
    from transformers.utils import logging

    logging.disable_progress_bar()
    logging.set_verbosity_error()


def print_json(value: Any) -> None:
    """Print a value as JSON."""
    click.echo(json.dumps(value, indent=2, ensure_ascii=False))
