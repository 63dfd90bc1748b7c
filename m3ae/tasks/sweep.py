"""Training and measuring a grid of settings, one run folder each, and the table of the results."""

from __future__ import annotations

import itertools
import json
import math
import re
import statistics
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import nullcontext
from pathlib import Path
from typing import Any, NamedTuple

from accelerate import PartialState

from m3ae.evaluation.report import JSON, LatentReport
from m3ae.evaluation.tables import table
from m3ae.files import LOCK, check_replaceable, only_process, write_text
from m3ae.options import parse_yaml
from m3ae.tasks import task_class
from m3ae.tasks.evaluation import evaluate
from m3ae.tasks.summary import MAIN_METRICS, Metrics, check_metrics, final_metrics
from m3ae.training import TrainingStopped
from m3ae.training.checkpoint import flatten
from m3ae.training.config import RunConfig, load_config
from m3ae.training.loop import train
from m3ae.training.progress import in_words
from m3ae.training.run_folder import RunFolder, read_settings

TABLE, RESULTS = "sweep.md", "sweep.json"
PRECISION = "training.mixed_precision"


class SweepRun(NamedTuple):
    """A combination of settings.

    Attributes:
        name: Name of the run's folder, different from the others.
        settings: The swept settings by dotted key.
        config: The whole config.
    """

    name: str
    settings: dict[str, Any]
    config: RunConfig


class SweepResult(NamedTuple):
    """The metrics of a run, `<split>/<metric>`, None where one was not finite; or why the run failed."""

    run: SweepRun
    metrics: Metrics
    failure: str | None = None


def plan_sweep(path: Path, axes: Sequence[str], overrides: Sequence[str] = ()) -> list[SweepRun]:
    """Return the runs of a grid, whose folders are below the config's `output_dir`.

    Args:
        path: YAML file of the config.
        axes: `key=value,value`: a dotted key and its values, read as a YAML list.
        overrides: Assignments that hold for all runs, as for `load_config`.

    Raises:
        ConfigError: One of the configurations cannot be used.
        FileExistsError: `output_dir` holds a table of something else.
        ValueError: An axis is malformed, or two runs would have one folder.
    """
    values = dict(_parse_axis(axis) for axis in axes)
    if len(values) < max(1, len(axes)):
        raise ValueError(f"got {len(axes)} axes ({', '.join(axes)}); expected one or more, each of another key")
    titles = short_names([*values])
    folder = load_config(path, overrides).output_dir
    check_replaceable(folder / RESULTS, '"failure"')
    runs = []
    for combination in itertools.product(*values.values()):
        settings = dict(zip(values, combination, strict=True))
        name = "_".join(f"{titles[key]}={_slug(value)}" for key, value in settings.items())
        assigned = {**settings, "output_dir": str(folder / name)}
        config = load_config(path, [*overrides, *(f"{key}={json.dumps(value)}" for key, value in assigned.items())])
        runs.append(SweepRun(name, settings, config))
    if len({run.name for run in runs}) < len(runs):
        raise ValueError(f"two runs of {', '.join(axes)} would have one folder; expected values with different names")
    return runs


def run_sweep(
    runs: Sequence[SweepRun], split: str = "test", announce: Callable[[str], None] = lambda line: None
) -> Iterator[SweepResult]:
    """Train and measure runs one after the other: a complete run is not repeated, an interrupted one is resumed.

    A latent model is measured as `m3ae evaluate` does, in the folder `evaluation_<split>`; of other tasks, the metrics
    are those at the end of training.

    Args:
        runs: The runs of `plan_sweep`.
        split: Split on which latent models are measured.
        announce: Function that takes a line about each step.

    Yields:
        A result for each run.

    Raises:
        BlockingIOError: Another process is at this sweep.
        TrainingStopped: The process was asked to stop; the sweep goes on from there when it is started again.
    """
    took: list[float] = []  # seconds of each run that was not complete before
    folder = runs[0].config.output_dir.parent
    with only_process(folder) if PartialState().is_main_process else nullcontext():
        for number, run in enumerate(runs, start=1):
            left = f", about {in_words(statistics.mean(took) * (len(runs) - number + 1))} left" if took else ""
            announce(f"{number} of {len(runs)}: {run.name}{left}")
            complete, started = RunFolder(run.config.output_dir).model.is_dir(), time.monotonic()
            try:
                yield SweepResult(run, _finish(run.config, split))
            except TrainingStopped:
                raise
            except Exception as error:  # whatever it is, the other runs do not depend on it
                reason = " ".join(str(error).split()) or type(error).__name__
                announce(f"{run.name} failed: {reason}")
                yield SweepResult(run, {}, reason)
            took += [] if complete else [time.monotonic() - started]


def write_sweep(folder: Path, results: Sequence[SweepResult], metrics: Sequence[str] = ()) -> str:
    """Write `sweep.json`, with all metrics, and `sweep.md`; return the latter.

    Args:
        folder: The folder, made if necessary.
        results: The results of all runs.
        metrics: Columns of the table; if there are none, the main metrics, of latent models those that do not depend
            on several modalities together.

    Raises:
        ValueError: No run has such a metric.
    """
    if PartialState().is_main_process:
        described = [
            {"run": run.name, **run.settings, "metrics": run_metrics, "failure": failure}
            for run, run_metrics, failure in results
        ]
        folder.mkdir(parents=True, exist_ok=True)
        write_text(folder / RESULTS, json.dumps(described, indent=2) + "\n")
    text = _lay_out(results, metrics)
    if PartialState().is_main_process:
        write_text(folder / TABLE, text)
    return text


def short_names(keys: Sequence[str]) -> dict[str, str]:
    """Return the last word of each dotted key, or the whole key where several end alike."""
    ends = [key.rpartition(".")[2] for key in keys]
    return {key: end if ends.count(end) == 1 else key for key, end in zip(keys, ends, strict=True)}


def _parse_axis(text: str) -> tuple[str, list[Any]]:
    key, separator, values = text.partition("=")
    parsed = parse_yaml(f"[{values}]", source=f"axis {text!r}") if key and separator else []
    if not parsed:
        raise ValueError(f"axis {text!r}: expected a key and its values, such as model.overrides.latent.size=16,32")
    return key, parsed


def _slug(value: Any) -> str:
    return re.sub(r"[^\w.+-]+", "-", value if isinstance(value, str) else json.dumps(value)).strip("-")


def _finish(config: RunConfig, split: str) -> Metrics:
    """Train, unless that is done, and measure; return the metrics."""
    folder = RunFolder(config.output_dir)
    _check_same_settings(folder, config)
    if not folder.model.is_dir() or (folder.root / LOCK).exists():  # killed, even if it was at the figures
        task = task_class(config.task).from_config(config)
        if config.task == "generation" and not task.has(split):
            raise ValueError(f"{config.data.path} has no split {split!r}: it has {', '.join(task.manifest.splits)}")
        train(config, task, resume=True)
    if config.task != "generation":
        return final_metrics(folder.root)
    report = folder.root / f"evaluation_{split}" / JSON
    if not report.is_file():
        model = config.model.model_copy(update={"path": str(folder.model), "from_scratch": False})
        evaluate(config.model_copy(update={"model": model}), split, report.parent)
    metrics = LatentReport.read(report).main_metrics()
    return {f"{split}/{name}": value if math.isfinite(value) else None for name, value in metrics.items()}


def _check_same_settings(folder: RunFolder, config: RunConfig) -> None:
    file = folder.root / "config.yaml"
    if not file.is_file():
        return
    saved = flatten(read_settings(file))
    wanted = flatten(config.model_dump(mode="json"))
    if wanted[PRECISION] == "auto":  # the run has recorded what that was
        wanted[PRECISION] = saved.get(PRECISION)
    for key in {**saved, **wanted}:
        if saved.get(key) != wanted.get(key):
            raise ValueError(
                f"{folder.root} holds a run with other settings: {key} is {saved.get(key)!r} there and "
                f"{wanted.get(key)!r} here; choose another output_dir"
            )


def _lay_out(results: Sequence[SweepResult], metrics: Sequence[str]) -> str:
    known = list(dict.fromkeys(name for result in results for name in result.metrics))
    if known:
        check_metrics(metrics, known)
    columns, keys = list(metrics) or _main_columns(known), list(results[0].run.settings)
    rows = []
    for result in results:
        values = (result.metrics.get(name) for name in columns)
        cells = ("–" if value is None else f"{value:.4g}" for value in values)
        rows.append([*(f"{result.run.settings[key]}" for key in keys), *cells])
    failures = [f"- {result.run.name} failed: {result.failure}" for result in results if result.failure is not None]
    blocks = [table([*short_names(keys).values(), *columns], rows), *(["\n".join(failures)] if failures else [])]
    return "\n\n".join(blocks) + "\n"


def _main_columns(known: Sequence[str]) -> list[str]:
    """Return the columns of a table for which none are chosen."""
    if any(name.endswith("/elbo") for name in known):
        return [name for name in known if "+" not in name]
    main = [name for name in known if name.rpartition("/")[2] in MAIN_METRICS]
    return [name for name in main if name.startswith("test/")] or main or [n for n in known if n.endswith("/loss")]
