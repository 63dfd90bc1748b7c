"""Training and measuring a grid of settings, one run folder each, and the table of what came out."""

from __future__ import annotations

import difflib
import itertools
import json
import re
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import yaml
from accelerate import PartialState

from m3ae.files import check_replaceable, write_text
from m3ae.tasks import task_class
from m3ae.tasks.evaluation import evaluate
from m3ae.tasks.generation_report import JSON, main_metrics, table_lines
from m3ae.tasks.summary import MAIN_METRICS, final_metrics
from m3ae.training.checkpoint import flatten
from m3ae.training.config import RunConfig, load_config, parse_yaml
from m3ae.training.loop import train
from m3ae.training.run_folder import RunFolder
from m3ae.training.safety import TrainingStopped

TABLE, RESULTS = "sweep.md", "sweep.json"
PRECISION = "training.mixed_precision"

Metrics = dict[str, float | None]


class SweepRun(NamedTuple):
    """A combination of settings.

    Attributes:
        name: Of its folder, which tells it from the others.
        settings: The swept ones, by dotted key.
        config: All of them.
    """

    name: str
    settings: dict[str, Any]
    config: RunConfig


class SweepResult(NamedTuple):
    """What came of a run: `<split>/<metric>`, or why it failed; a metric that is None was not finite."""

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
    for chosen in itertools.product(*values.values()):
        settings = dict(zip(values, chosen, strict=True))
        name = "_".join(f"{titles[key]}={_slug(value)}" for key, value in settings.items())
        assigned = [f"{key}={json.dumps(value)}" for key, value in settings.items()]
        place = f"output_dir={json.dumps(str(folder / name))}"
        runs.append(SweepRun(name, settings, load_config(path, [*overrides, *assigned, place])))
    if len({run.name for run in runs}) < len(runs):
        raise ValueError(f"two runs of {', '.join(axes)} would have one folder; expected values with different names")
    return runs


def run_sweep(
    runs: Sequence[SweepRun], split: str = "test", announce: Callable[[str], None] = lambda line: None
) -> Iterator[SweepResult]:
    """Train and measure runs one after the other; a run that is complete is not repeated, a part of one is resumed.

    A latent model is measured as `m3ae evaluate` does, in the folder `evaluation_<split>`; of other tasks, the metrics
    are those at the end of training.

    Args:
        runs: From `plan_sweep`.
        split: On which latent models are measured.
        announce: Is told what is done.

    Yields:
        A result for each run; that of a run which failed says why.

    Raises:
        TrainingStopped: The process was asked to stop; the sweep goes on where it is when it is started again.
    """
    for number, run in enumerate(runs, start=1):
        announce(f"{number} of {len(runs)}: {run.name}")
        try:
            yield SweepResult(run, _finish(run.config, split))
        except TrainingStopped:
            raise
        except Exception as error:  # whatever it is, the other runs do not depend on it
            reason = " ".join(str(error).split()) or type(error).__name__
            announce(f"{run.name} failed: {reason}")
            yield SweepResult(run, {}, reason)


def write_sweep(folder: Path, results: Sequence[SweepResult], metrics: Sequence[str] = ()) -> str:
    """Write `sweep.json`, with all metrics, and `sweep.md`; return the latter.

    Args:
        folder: Exists afterwards.
        results: Of all runs.
        metrics: Columns of the table; if there are none, the main ones, of latent models those that are not of
            several modalities together.

    Raises:
        ValueError: No run has such a metric.
    """
    described = [
        {"run": result.run.name, **result.run.settings, "metrics": result.metrics, "failure": result.failure}
        for result in results
    ]
    is_main = PartialState().is_main_process
    if is_main:
        folder.mkdir(parents=True, exist_ok=True)
        write_text(folder / RESULTS, json.dumps(described, indent=2) + "\n")
    table = _lay_out(results, metrics)
    if is_main:
        write_text(folder / TABLE, table)
    return table


def short_names(keys: Sequence[str]) -> dict[str, str]:
    """Return the last part of each dotted key, or all of it where several end alike."""
    ends = [key.rpartition(".")[2] for key in keys]
    return {key: end if ends.count(end) == 1 else key for key, end in zip(keys, ends, strict=True)}


def _parse_axis(text: str) -> tuple[str, list[Any]]:
    key, separator, values = text.partition("=")
    found = parse_yaml(f"[{values}]", source=f"axis {text!r}") if key and separator else []
    if not found:
        raise ValueError(f"axis {text!r}: expected a key and its values, such as model.overrides.latent.size=16,32")
    return key, found


def _slug(value: Any) -> str:
    return re.sub(r"[^\w.+-]+", "-", value if isinstance(value, str) else json.dumps(value)).strip("-")


def _finish(config: RunConfig, split: str) -> Metrics:
    """Train, where that is not done yet, and measure; return the metrics."""
    folder = RunFolder(config.output_dir)
    _check_same_settings(folder, config)
    if not folder.model.is_dir():
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
    metrics = main_metrics(json.loads(report.read_text(encoding="utf-8")))
    return {f"{split}/{name}": value for name, value in metrics.items()}


def _check_same_settings(folder: RunFolder, config: RunConfig) -> None:
    file = folder.root / "config.yaml"
    if not file.is_file():
        return
    there = flatten(yaml.safe_load(file.read_text(encoding="utf-8")))
    wanted = flatten(config.model_dump(mode="json"))
    if wanted[PRECISION] == "auto":  # the run has recorded what that was
        wanted[PRECISION] = there.get(PRECISION)
    differing = [key for key in {**there, **wanted} if there.get(key) != wanted.get(key)]
    if differing:
        key = differing[0]
        raise ValueError(
            f"{folder.root} holds a run with other settings: {key} is {there.get(key)!r} there and "
            f"{wanted.get(key)!r} here; choose another output_dir"
        )


def _lay_out(results: Sequence[SweepResult], metrics: Sequence[str]) -> str:
    known = list(dict.fromkeys(name for result in results for name in result.metrics))
    if known and (unknown := [name for name in metrics if name not in known]):
        nearest = difflib.get_close_matches(unknown[0], known, n=3) or known[:8]
        raise ValueError(f"no run reports {unknown[0]!r}; nearest are {', '.join(nearest)}")
    columns = list(metrics) or _main_columns(known)
    keys = list(results[0].run.settings)
    rows = [
        [
            *(f"{result.run.settings[key]}" for key in keys),
            *(_cell(result.metrics.get(name)) for name in columns),
        ]
        for result in results
    ]
    lines = table_lines([*short_names(keys).values(), *columns], rows)
    failed = [f"- {result.run.name} failed: {result.failure}" for result in results if result.failure is not None]
    return "\n".join([*lines, *([""] if failed else []), *failed]) + "\n"


def _main_columns(known: Sequence[str]) -> list[str]:
    """Return the columns of a table where none are chosen."""
    if any(name.endswith("/elbo") for name in known):
        return [name for name in known if "+" not in name]
    main = [name for name in known if name.rpartition("/")[2] in MAIN_METRICS]
    tested = [name for name in main if name.startswith("test/")]
    return tested or main or [name for name in known if name.endswith("/loss")]


def _cell(value: float | None) -> str:
    return "–" if value is None else f"{value:.4g}"
