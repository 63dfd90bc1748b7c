"""Results of several runs of one recipe as mean ± standard deviation: JSON, and a row of a Markdown table."""

from __future__ import annotations

import difflib
import json
import math
import statistics
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import yaml

from m3ae.metrics.bootstrap import Interval
from m3ae.training.checkpoint import flatten
from m3ae.training.progress import read_metrics
from m3ae.training.run_folder import RunFolder

MAIN_METRICS = (
    "accuracy",
    "closed_accuracy",
    "open_accuracy",
    "macro_f1",
    "macro_auroc",
    "macro_average_precision",
    *(f"{way}_recall@{k}" for way in ("text_to_image", "image_to_text") for k in (1, 5, 10)),
)
NO_SHARES = ("loss", "psnr", "rank", "queries", "questions", "pairs")  # how metrics end that are not in percent


class Spread(NamedTuple):
    """Mean and sample standard deviation of a metric over the runs that have it; one run has no deviation."""

    mean: float
    sd: float | None
    runs: int


class Column(NamedTuple):
    """A column of a table: its header, the metric in it, and whether that is a share, to be shown in percent."""

    header: str
    metric: str
    percent: bool = True


def final_metrics(run: Path) -> dict[str, float | None]:
    """Return what a finished run reports at its end, named `<split>/<metric>`; None was not finite.

    Raises:
        FileNotFoundError: The folder holds no finished run.
    """
    folder = RunFolder(run)
    records = read_metrics(folder.metrics)
    if not records or not folder.model.is_dir():
        raise FileNotFoundError(
            f"{run} holds no finished run: expected {folder.metrics.name} and the folder {folder.model.name}/, which "
            "are complete when training has ended"
        )
    return {name: value for name, value in records[-1].items() if name != "step"}


class Summary(NamedTuple):
    """What some runs have found.

    Attributes:
        metrics: Spread of each metric, named `<split>/<metric>`.
        differing_settings: By dotted key, the values of what is not the same in all runs: their seeds.
        runs: The metrics of each run.
    """

    metrics: dict[str, Spread]
    differing_settings: dict[str, list[Any]]
    runs: dict[str, dict[str, float | None]]

    def to_json(self) -> str:
        """Return all of it."""
        metrics = {name: spread._asdict() for name, spread in self.metrics.items()}
        return json.dumps(self._asdict() | {"metrics": metrics}, indent=2) + "\n"

    def main_metrics(self) -> list[str]:
        """Return the metrics that a table shows first, of the test split if that was measured."""
        split = "test" if any(name.startswith("test/") for name in self.metrics) else "validation"
        return [name for metric in MAIN_METRICS if (name := f"{split}/{metric}") in self.metrics]

    def table(self, name: str, metrics: Sequence[str]) -> str:
        """Return a Markdown table of one row, called `name`: `mean ± sd`, or of a single run `value (low–high)`.

        Raises:
            ValueError: No run reports one of the metrics.
        """
        if unknown := [metric for metric in metrics if metric not in self.metrics]:
            nearest = difflib.get_close_matches(unknown[0], self.metrics, n=3) or [*self.metrics][:8]
            raise ValueError(f"no run reports {unknown[0]!r}; nearest are {', '.join(nearest)}")
        columns = [Column(_header(metric), metric, not metric.endswith(NO_SHARES)) for metric in metrics]
        single = _intervals(*self.runs.values()) if len(self.runs) == 1 else {}
        title = "one run" if len(self.runs) == 1 else f"{len(self.runs)} runs"
        return f"{markdown_header(title, columns)}\n{markdown_row(name, {**self.metrics, **single}, columns)}"


def summarize_runs(runs: Sequence[Path]) -> Summary:
    """Summarize run folders.

    Raises:
        FileNotFoundError: A folder holds no finished run.
    """
    results = {str(run): final_metrics(run) for run in runs}
    return Summary(summarize([*results.values()]), _differing_settings(runs), results)


def summarize(results: Sequence[Mapping[str, float | None]]) -> dict[str, Spread]:
    """Return the spread of each metric over some runs' results; None and non-finite numbers do not count."""
    values: dict[str, list[float]] = {}
    for result in results:
        for name, value in result.items():
            if value is not None and math.isfinite(value):
                values.setdefault(name, []).append(value)
    return {
        name: Spread(statistics.fmean(own), statistics.stdev(own) if len(own) > 1 else None, len(own))
        for name, own in values.items()
    }


def markdown_header(title: str, columns: Sequence[Column]) -> str:
    """Return the two lines that open a table; `title` stands above the names of the rows."""
    return f"| {' | '.join([title, *(column.header for column in columns)])} |\n|---|{'---:|' * len(columns)}"


def markdown_row(name: str, results: Mapping[str, Spread | Interval], columns: Sequence[Column]) -> str:
    """Return a row: `mean ± sd` of several runs, or `value (low–high)` of an interval; "–" where there is none."""
    cells = [_cell(results.get(column.metric), 100.0 if column.percent else 1.0) for column in columns]
    return f"| {' | '.join([name, *cells])} |"


def _header(metric: str) -> str:
    split, _, name = metric.partition("/")
    return name.replace("_", " ") if split == "test" else f"{split} {name.replace('_', ' ')}"


def _intervals(metrics: Mapping[str, float | None]) -> dict[str, Interval]:
    """Return the metrics that come with the limits of an interval."""
    found = {name: (value, metrics.get(f"{name}_low"), metrics.get(f"{name}_high")) for name, value in metrics.items()}
    return {
        name: Interval(value, low, high)
        for name, (value, low, high) in found.items()
        if value is not None and low is not None and high is not None
    }


def _cell(result: Spread | Interval | None, scale: float) -> str:
    if result is None or math.isnan(result[0]):
        return "–"
    if isinstance(result, Interval):
        return f"{scale * result.value:.1f} ({scale * result.low:.1f}–{scale * result.high:.1f})"
    return f"{scale * result.mean:.1f}" + ("" if result.sd is None else f" ± {scale * result.sd:.1f}")


def _differing_settings(runs: Sequence[Path]) -> dict[str, list[Any]]:
    """Return the settings that are not the same in all runs, in the order of the runs; but for the output folder."""
    settings = [flatten(yaml.safe_load((run / "config.yaml").read_text(encoding="utf-8"))) for run in runs]
    names = dict.fromkeys(name for own in settings for name in own if name != "output_dir")
    values = {name: [own.get(name) for own in settings] for name in names}
    return {name: own for name, own in values.items() if any(value != own[0] for value in own)}
