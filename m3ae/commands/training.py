"""The commands about runs, and about the machine: train, measure, compare, look."""

from __future__ import annotations

import re
import sys
from collections.abc import Iterator
from contextlib import redirect_stdout
from functools import partial
from pathlib import Path
from typing import Any

import click

from m3ae.commands.options import AS_JSON, OUTPUT_FILE, OVERRIDES, PATH, ConfigFile, print_result
from m3ae.tasks import TASKS

# What one does with the model of each task.
NEXT = {
    "pretraining": "app --model {run} --data {data}",
    "question_answering": "predict {run} IMAGE --question QUESTION",
    "classification": "predict {run} IMAGES --output predictions.csv",
    "report_generation": "predict {run} IMAGES --output reports.csv",
    "retrieval": "search {data} --model {run} --text TEXT",
    "generation": "evaluate {run}/config.yaml model={run}/model",
}
EVALUATED = ("model.init={}",)  # a model that is measured has its encoders, whatever training started from


@click.command()
@click.argument("config", type=ConfigFile())
@OVERRIDES
@click.option("--resume", is_flag=True, help="continue from the newest intact checkpoint in output_dir")
@click.option("--print-config", is_flag=True, help="print all options and stop")
def train(config: Path, overrides: tuple[str, ...], resume: bool, print_config: bool, word: str | None = None) -> None:
    """Train a model as a YAML file says.

    CONFIG is the file, which names the task, or the name of a shipped one. KEY=VALUE replaces one of its options:
    model=FOLDER names the model to start from. Fine-tuning keeps the model that is best on validation, and measures it
    on the test split beside simple controls. After Ctrl-C, SIGTERM, SIGUSR1 or training.max_hours the run finishes its
    step, writes a checkpoint and ends with the exit status 75; --resume continues it exactly.

    \b
    Examples, the last one on several GPUs:
      m3ae train quickstart training.max_steps=9
      m3ae train finetune/vqa_rad_small model=runs/iu_xray/model
      m3ae train finetune/vqa_rad_small model=runs/iu_xray/model model.from_scratch=true
      accelerate launch -m m3ae train base data.path=data/mine
    """  # noqa: D301
    from m3ae.tasks import PRETRAINING_TASKS, task_class
    from m3ae.training.config import dump_config, load_config

    loaded = load_config(config, overrides)
    right_word = "pretrain" if loaded.task in PRETRAINING_TASKS else "finetune"
    if word not in (None, right_word):
        raise click.UsageError(f"{config} has the task {loaded.task}: use m3ae {right_word}, or m3ae train")
    if print_config:
        click.echo(dump_config(loaded), nl=False)
        return
    from accelerate import PartialState

    from m3ae.training.loop import train

    train(loaded, task_class(loaded.task).from_config(loaded), resume=resume)
    PartialState().print(f"next: m3ae {NEXT[loaded.task].format(run=loaded.output_dir, data=loaded.data.path)}")


@click.command()
@click.argument("folder", type=PATH)
@click.option(
    "--task", type=click.Choice([*TASKS]), help="what to learn  [default: the first that the rows can teach]"
)
@click.option(
    "--minutes",
    type=click.FloatRange(0, min_open=True),
    default=10.0,
    show_default=True,
    help="time that the run may take",
)
@click.option("--model", metavar="DIR", help="folder or hub name of the model to start from  [default: a new one]")
def init(folder: Path, **options: Any) -> None:
    """Print a config for a prepared FOLDER.

    The config names the folder's columns and labels. The size of the model and the number of steps follow from the
    rows, from --minutes, and from steps that the command takes on this machine.

    \b
    Examples:
      m3ae init data/mine > mine.yaml
      m3ae init data/mine --task pretraining --minutes 60 > mine.yaml
    """  # noqa: D301
    from m3ae.tasks.draft import draft_config

    with redirect_stdout(sys.stderr):
        text = draft_config(folder, **options)
    click.echo(text, nl=False)


def _training_command(word: str, help: str) -> click.Command:
    """Return `m3ae train` under another name, for some tasks only."""
    assert train.callback is not None
    help += "\n\nm3ae train --help says what a run does, and how an interrupted one continues."
    config = click.Argument(["config"], type=ConfigFile(preferred=word))
    return click.Command(
        word, params=[config, *train.params[1:]], callback=partial(train.callback, word=word), help=help
    )


pretrain = _training_command("pretrain", "Pre-train: m3ae train, for pretraining and generation.")
finetune = _training_command("finetune", "Fine-tune: m3ae train, for all other tasks.")


@click.command()
@click.argument("config", type=ConfigFile("finetune"))
@OVERRIDES
@click.option("--split", default="test", show_default=True, help="split to measure on")
@click.option("--output", type=PATH, help="folder for predictions and results  [default: evaluation in output_dir]")
def evaluate(config: Path, overrides: tuple[str, ...], split: str, output: Path | None) -> None:
    """Measure a trained model, without training.

    CONFIG is the one that the model was trained with, a file or the name of a shipped one, and model=FOLDER names the
    model. The report of a latent model is latent.md, with figures beside it.

    \b
    Examples:
      m3ae evaluate vqa_rad_small model=runs/vqa_rad_small/model
      m3ae evaluate digits model=runs/digits/model
    """  # noqa: D301
    from m3ae.training.config import load_config

    loaded = load_config(config, (*EVALUATED, *overrides))
    from m3ae.tasks.evaluation import evaluate

    evaluate(loaded, split, output)


@click.command()
@click.argument("config", type=ConfigFile())
@OVERRIDES
@click.option("--over", "axes", multiple=True, required=True, metavar="KEY=V1,V2", help="an axis; may be repeated")
@click.option("--metric", "metrics", multiple=True, help="a column, such as test/elbo  [default: the main ones]")
@click.option("--split", default="test", show_default=True, help="split that latent models are measured on")
def sweep(
    config: Path, overrides: tuple[str, ...], axes: tuple[str, ...], metrics: tuple[str, ...], split: str
) -> None:
    """Train and measure a model for each of many settings.

    Every combination of the values of the axes is a run. CONFIG is the file or the name of a shipped one, KEY=VALUE
    replaces one of its options in all runs. Each run has a folder below output_dir. The command, started again,
    repeats no run that is complete, resumes one that was interrupted, and tries one that failed once more. The table
    is printed and written to sweep.md, with all metrics in sweep.json: those of its report for a latent model, those
    at the end of training for others. The exit status is 1 if a run failed; the others go on.

    \b
    Examples:
      m3ae sweep iu_xray_latent --over model.overrides.latent.kind=poe,moe,mopoe --over training.seed=0,1,2
      m3ae sweep iu_xray_latent --over model.overrides.image_config.image_size=64,128 --metric test/elbo
    """  # noqa: D301
    from accelerate import PartialState

    from m3ae.tasks.sweep import plan_sweep, run_sweep, write_sweep

    runs = plan_sweep(config, axes, overrides)
    announce = PartialState().on_main_process(lambda line: click.echo(line, err=True))
    results = list(run_sweep(runs, split, announce))
    table = write_sweep(runs[0].config.output_dir.parent, results, metrics)
    PartialState().print(table, end="")
    if any(result.failure is not None for result in results):
        click.get_current_context().exit(1)


@click.command()
@click.argument("runs", type=PATH, nargs=-1, required=True, metavar="RUN...")
@click.option("--metric", "metrics", multiple=True, help="a column, such as test/accuracy  [default: the main ones]")
@click.option("--name", help="name of the row  [default: the name of the first run]")
@click.option("--json", type=OUTPUT_FILE, help="file for all metrics of all runs")
def summarize(runs: tuple[Path, ...], metrics: tuple[str, ...], name: str | None, json: Path | None) -> None:
    """Print runs of several seeds as one row: mean ± sd.

    RUN is the folder of a finished run. The table is Markdown. Shares are in percent; those of a single run come with
    their 95 % interval. The settings in which the runs differ stand below the table.

    \b
    Examples:
      m3ae summarize runs/vqa_rad_seed_*
      m3ae summarize runs/vqa_rad_seed_* --metric test/accuracy --metric test/shuffled_accuracy --json vqa_rad.json
    """  # noqa: D301
    from m3ae.files import write_text
    from m3ae.tasks.summary import summarize_runs

    summary = summarize_runs(runs)
    click.echo(summary.table(name or runs[0].resolve().name, metrics or summary.main_metrics()))
    for setting, values in summary.differing_settings.items():
        click.echo(f"{setting}: {', '.join(map(str, values))}")
    if json is not None:
        write_text(json, summary.to_json())


@click.group()
def run() -> None:
    """Look at runs."""


@run.command()
@click.argument("folder", type=PATH)
@AS_JSON
def show(folder: Path) -> None:
    """Print what is needed to judge a run, and to repeat it.

    FOLDER is the output_dir of a run, finished or not. The command prints the run's state and last metrics; each start
    with its command line, device, seeds and versions; the prepared data, and whether they have changed; all settings.

    \b
    Examples:
      m3ae run show runs/iu_xray
      m3ae run show runs/iu_xray --json | jq .starts[-1].packages.torch
    """  # noqa: D301
    from m3ae.training.run_folder import RunFolder

    description = RunFolder(folder).describe()
    print_result(description, _layout(folder, description))


def _layout(folder: Path, run: dict[str, Any]) -> Iterator[str]:
    import yaml

    config, starts = run["config"], run["starts"]
    state = "finished" if run["finished"] else "not finished"
    lines = [f"{folder}: {config['task']}, {state}, step {run['step']} of {config['training']['max_steps']}"]
    lines.append(f"checkpoints: {', '.join(run['checkpoints']) or 'none'}")
    metrics = {name: "not finite" if value is None else f"{value:.6g}" for name, value in run["metrics"].items()}
    lines += _section("last metrics", [f"{name}: {value}" for name, value in metrics.items()])
    packages: dict[str, str] = {}
    for start in starts:
        versions = [f"{name} {version}" for name, version in sorted(start["packages"].items() - packages.items())]
        packages = start["packages"]
        lines += _section(
            f"start at step {start['step']}, {start['time']}",
            [
                f"command: {start['command']}",
                f"{len(start['seeds'])} × {start['device']}, {start['threads']} threads each; {start['system']}",
                f"seeds: {', '.join(map(str, start['seeds']))}",
                f"python {start['python']}; packages: {', '.join(versions) or 'as before'}",
                f"git revision: {start['git_revision'] or 'none'}",
            ],
        )
    data = starts[-1].get("data", {}) if starts else {}
    lines += _section(
        "data", [f"{path}: manifest {digest} ({_change(path, digest)})" for path, digest in data.items()]
    )
    settings = yaml.safe_dump(config, sort_keys=False, allow_unicode=True)
    yield from [*lines, *_section("settings", settings.splitlines())]


def _section(title: str, lines: list[str]) -> list[str]:
    return ["", title, *(f"  {line}" for line in lines)] if lines else []


def _change(path: str, digest: str) -> str:
    """Say whether the manifest of a prepared folder is still the one with a digest."""
    from m3ae.data.prepared import MANIFEST
    from m3ae.files import file_sha256

    manifest = Path(path) / MANIFEST
    if not manifest.is_file():
        return "missing now"
    return "unchanged" if file_sha256(manifest) == digest else "changed since"


@click.command()
@AS_JSON
def env() -> None:
    """Print versions and devices, for a bug report.

    The command reads no data and prints no environment variable but M3AE_IMPORT.

    \b
    Examples:
      m3ae env
      m3ae env --json | jq .packages.torch
    """  # noqa: D301
    import torch

    from m3ae.precision import choose_precision
    from m3ae.training.run_folder import environment

    gpus = [torch.cuda.get_device_name(index) for index in range(torch.cuda.device_count())]
    device = torch.device("cuda" if gpus else "cpu")
    capabilities = torch.cpu.get_capabilities().items()
    units = [name for name, present in capabilities if present and re.match("avx|amx|sve|neon", name)]
    cuda, precision = torch.version.cuda, str(choose_precision(device))
    facts = environment() | {"processor": units, "gpus": gpus, "cuda": cuda, "precision": precision}
    packages = {name: version or "not installed" for name, version in facts["packages"].items()}
    lines = [
        f"m3ae {packages.pop('m3ae')}, python {facts['python']}, {facts['system']}",
        *(f"{name} {version}" for name, version in packages.items()),
        f"processor: {facts['cpu_count']} cores, {', '.join(units) or 'no vector units known'}",
        f"GPUs: {', '.join(gpus) or 'none'}; CUDA of torch: {cuda or 'none'}",
        precision,
        f"git revision: {facts['git_revision'] or 'none'}",
    ]
    print_result(facts, lines)
