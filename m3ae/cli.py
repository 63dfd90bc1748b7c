"""The command `m3ae`. What is heavy is imported by the command that needs it."""

import sys
from pathlib import Path
from typing import Any, NoReturn

import click

from m3ae.commands.answer import answer
from m3ae.commands.app import app
from m3ae.commands.configs import ConfigFile
from m3ae.commands.convert import check_parity, convert
from m3ae.commands.data import DataGroup
from m3ae.commands.embed import embed
from m3ae.commands.export import export
from m3ae.commands.generate import generate
from m3ae.commands.prepare import SourceGroup
from m3ae.commands.reconstruct import reconstruct
from m3ae.commands.run import run
from m3ae.commands.search import search
from m3ae.commands.summarize import summarize
from m3ae.commands.sweep import sweep
from m3ae.data.tables import printable
from m3ae.training.safety import STOPPED_STATUS, TrainingStopped

PATH = click.Path(path_type=Path)
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
        except TrainingStopped:  # it has said so itself, once for all processes
            status = STOPPED_STATUS
        except ModuleNotFoundError as error:
            needed = EXTRAS.get((error.name or "").partition(".")[0], "train")
            status = _fail(f"{error}: install what is needed with pip install 'm3ae[{needed}]'", 2)
        except (OSError, ValueError, ArithmeticError, ImportError, MemoryError) as error:
            status = _fail(str(error), 2)
        sys.exit(status or 0)


def _fail(message: str, status: int) -> int:
    click.echo(f"error: {printable(message)}", err=True)
    return status


@click.group("m3ae", cls=Program, context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 110})
@click.version_option(package_name="m3ae")
def cli() -> None:
    """Masked multimodal autoencoders for medical images and text.

    \b
    Example, from a downloaded data set to a model:
      m3ae prepare iu_xray --source DOWNLOADS/iu_xray --output data/iu_xray
      m3ae data show data/iu_xray
      m3ae pretrain iu_xray
    """  # noqa: D301


@cli.group(cls=SourceGroup, subcommand_metavar="NAME ...")
def prepare() -> None:
    """Turn a data set, as downloaded, into verified shards.

    Every image is decoded once, and every row ends in a shard or, with its reason, in rejected.jsonl. A run that was
    interrupted continues when it is started again. `m3ae prepare NAME --help` lists the options of a source.

    \b
    Example:
      m3ae prepare iu_xray --source DOWNLOADS/iu_xray --output data/iu_xray
    """  # noqa: D301


@cli.group(cls=DataGroup)
def data() -> None:
    """Look at prepared data: what leaks, and what is in it."""


@cli.command("train-tokenizer")
@click.argument("folder", type=PATH)
@click.option("--output", type=PATH, required=True, help="new or empty folder for the tokenizer")
@click.option("--vocab-size", type=int, default=8192, show_default=True, help="tokens at most, the 256 bytes included")
@click.option("--text-column", default="text", show_default=True, help="column of the texts")
def train_tokenizer(folder: Path, output: Path, vocab_size: int, text_column: str) -> None:
    """Train a tokenizer on a prepared FOLDER: byte-level BPE.

    Its training split is read; the tokenizer is used with the option tokenizer.path of a run.

    \b
    Example:
      m3ae train-tokenizer data/iu_xray --output data/tokenizer
    """  # noqa: D301
    from m3ae.data.pairs import PairDataset
    from m3ae.data.tokenizer import train_tokenizer
    from m3ae.data.words import count_words
    from m3ae.files import new_folder

    with new_folder(output) as unfinished:
        texts = PairDataset(folder, "train", image_columns=[], text_column=text_column).texts()
        tokenizer = train_tokenizer(texts, vocab_size)
        tokenizer.save_pretrained(unfinished)
    words = sum(map(count_words, texts))
    tokens = sum(len(ids) for ids in tokenizer(texts, add_special_tokens=False, verbose=False)["input_ids"])
    click.echo(f"{output}: {len(tokenizer)} tokens from {len(texts)} texts, {tokens / words:.2f} tokens a word")


@cli.command()
@click.argument("config", type=ConfigFile("pretrain"))
@click.argument("overrides", nargs=-1, metavar="[KEY=VALUE]...")
@click.option("--resume", is_flag=True, help="continue from the newest intact checkpoint in output_dir, if any")
@click.option("--print-config", is_flag=True, help="print all options and stop")
def pretrain(config: Path, overrides: tuple[str, ...], resume: bool, print_config: bool) -> None:
    """Pre-train a model as a YAML file says.

    CONFIG is the file or the name of a shipped one, KEY=VALUE replaces one of its options. After Ctrl-C, SIGTERM,
    SIGUSR1 or training.max_hours the run finishes its step, writes a checkpoint and ends with the exit status 75;
    --resume continues it exactly.

    \b
    Examples, the second one on several GPUs:
      m3ae pretrain quickstart training.max_steps=9
      accelerate launch -m m3ae pretrain base data.path=data/mine
    """  # noqa: D301
    from m3ae.training.config import dump_config, load_config

    loaded = load_config(config, overrides)
    if print_config:
        click.echo(dump_config(loaded), nl=False)
        return
    from m3ae.tasks import PRETRAINING_TASKS, task_class

    if loaded.task not in PRETRAINING_TASKS:
        raise click.UsageError(f"{config} has the task {loaded.task}: use m3ae finetune")
    from m3ae.training.loop import train

    train(loaded, task_class(loaded.task).from_config(loaded), resume=resume)


cli.add_command(convert)
cli.add_command(check_parity)
cli.add_command(summarize)
cli.add_command(sweep)
cli.add_command(reconstruct)
cli.add_command(answer)
cli.add_command(search)
cli.add_command(embed)
cli.add_command(generate)
cli.add_command(app)
cli.add_command(export)
cli.add_command(run)


@cli.command()
@click.argument("config", type=ConfigFile("finetune"))
@click.argument("overrides", nargs=-1, metavar="[KEY=VALUE]...")
@click.option("--resume", is_flag=True, help="continue from the newest intact checkpoint in output_dir, if any")
@click.option("--print-config", is_flag=True, help="print all options and stop")
def finetune(config: Path, overrides: tuple[str, ...], resume: bool, print_config: bool) -> None:
    """Fine-tune a model for a task, as a YAML file says.

    CONFIG is the file or the name of a shipped one, KEY=VALUE replaces one of its options, and model=FOLDER names the
    pre-trained model. The model that is best on validation is kept, and measured on the test split beside what is
    reached without it. After Ctrl-C, SIGTERM, SIGUSR1 or training.max_hours the run finishes its step, writes a
    checkpoint and ends with the exit status 75; --resume continues it exactly.

    \b
    Examples, the second one with the same model from scratch:
      m3ae finetune vqa_rad_small model=runs/iu_xray/model
      m3ae finetune vqa_rad_small model=runs/iu_xray/model model.from_scratch=true
    """  # noqa: D301
    from m3ae.training.config import dump_config, load_config

    loaded = load_config(config, overrides)
    from m3ae.tasks import PRETRAINING_TASKS, task_class

    if loaded.task in PRETRAINING_TASKS:
        raise click.UsageError(f"{config} has the task {loaded.task}: use m3ae pretrain")
    if print_config:
        click.echo(dump_config(loaded), nl=False)
        return
    from m3ae.training.loop import train

    train(loaded, task_class(loaded.task).from_config(loaded), resume=resume)


@cli.command()
@click.argument("config", type=ConfigFile("finetune", "pretrain"))
@click.argument("overrides", nargs=-1, metavar="[KEY=VALUE]...")
@click.option("--split", default="test", show_default=True, help="split to measure on")
@click.option("--output", type=PATH, help="folder for predictions and results  [default: evaluation in output_dir]")
def evaluate(config: Path, overrides: tuple[str, ...], split: str, output: Path | None) -> None:
    """Measure a trained model, without training.

    CONFIG is the one that it was trained with, a file or the name of a shipped one, and model=FOLDER names the model.
    Of a latent model, the report is latent.md, with figures beside it.

    \b
    Examples:
      m3ae evaluate vqa_rad_small model=runs/vqa_rad_small/model
      m3ae evaluate digits model=runs/digits/model
    """  # noqa: D301
    from m3ae.training.config import load_config

    loaded = load_config(config, overrides)
    from m3ae.tasks.evaluation import evaluate

    evaluate(loaded, split, output)
