"""The command `m3ae`. What is heavy is imported by the command that needs it."""

import sys
from importlib import import_module
from pathlib import Path
from typing import Any, NoReturn

import click

from m3ae.commands.app import app
from m3ae.commands.convert import check_parity, convert, export
from m3ae.commands.data import data, prepare, train_tokenizer
from m3ae.commands.generate import generate
from m3ae.commands.options import FILE
from m3ae.commands.predict import predict
from m3ae.commands.reconstruct import reconstruct
from m3ae.commands.search import embed, search
from m3ae.commands.training import env, evaluate, finetune, init, pretrain, run, summarize, sweep, train
from m3ae.commands.zero_shot import zero_shot
from m3ae.data.tables import printable
from m3ae.training import STOPPED_STATUS, TrainingStopped

EXTRAS = {"matplotlib": "figures", "gradio": "app", "peft": "lora", "pydicom": "dicom"}


class Program(click.Group):
    """A group of commands that ends every expected error in one message, without a traceback.

    The exit status is 2 where a command could not do its work, 1 where it did and the result is not acceptable, 75
    where training was asked to stop, as by Ctrl-C, and can be resumed, and 130 after any other Ctrl-C.
    """

    def main(self, *args: Any, **extra: Any) -> NoReturn:
        """Run the command line and exit."""
        try:
            status = super().main(*args, **{"prog_name": "m3ae"} | extra | {"standalone_mode": False})
        except click.UsageError as error:
            hint = f" (see {error.ctx.command_path} --help)" if error.ctx else ""
            status = _fail(error.format_message() + hint, error.exit_code)
        except click.ClickException as error:
            status = _fail(error.format_message(), error.exit_code)
        except click.Abort:
            status = 130
        except TrainingStopped:  # which has printed a message, once for all processes
            status = STOPPED_STATUS
        except ModuleNotFoundError as error:
            extra_name = EXTRAS.get((error.name or "").partition(".")[0], "train")
            status = _fail(f"{error}: install what is needed with pip install 'm3ae[{extra_name}]'", 2)
        except MemoryError as error:
            status = _fail(str(error) or "out of memory", 2)  # Python's own says nothing
        except (OSError, ValueError, ArithmeticError, ImportError) as error:
            status = _fail(str(error), 2)
        sys.exit(status or 0)


def _fail(message: str, status: int) -> int:
    click.echo(f"error: {printable(message)}", err=True)
    return status


@click.group("m3ae", cls=Program, context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 110})
@click.version_option(package_name="m3ae")
@click.option(
    "--import",
    "files",
    type=FILE,
    multiple=True,
    envvar="M3AE_IMPORT",
    show_envvar=True,
    help="Python file that registers kinds, encoders, objectives or sources of yours; may be repeated",
)
def cli(files: tuple[Path, ...]) -> None:
    """Masked multimodal autoencoders for medical images and text.

    \b
    Example, from a downloaded data set to a model:
      m3ae prepare iu_xray --source DOWNLOADS/iu_xray --output data/iu_xray
      m3ae data show data/iu_xray
      m3ae train iu_xray
    """  # noqa: D301
    for file in files:
        _import(file.resolve())


def _import(file: Path) -> None:
    """Import a file of the user as the module of its name, which worker processes can import, too."""
    if str(file.parent) not in sys.path:
        sys.path.append(str(file.parent))
    module = import_module(file.stem)
    if Path(module.__file__ or "").resolve() != file:
        raise ValueError(f"{file} has the name of another module, {module.__name__}: rename the file")


for command in (
    prepare,
    data,
    train_tokenizer,
    init,
    train,
    pretrain,
    finetune,
    evaluate,
    sweep,
    summarize,
    run,
    predict,
    reconstruct,
    search,
    zero_shot,
    embed,
    generate,
    app,
    export,
    convert,
    check_parity,
    env,
):
    cli.add_command(command)
