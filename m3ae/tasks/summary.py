"""Results of several runs of one recipe as mean ± standard deviation: JSON, and a row of a Markdown table."""

from __future__ import annotations

import difflib
import json
import math
import statistics
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from m3ae.evaluation.tables import table
from m3ae.metrics.aggregation import Interval
from m3ae.training.checkpoint import flatten
from m3ae.training.progress import read_metrics
from m3ae.training.run_folder import RunFolder, read_settings

MAIN_METRICS = (
    "accuracy",
    "closed_accuracy",
    "open_accuracy",
    "macro_f1",
    "macro_auroc",
    "macro_average_precision",
    *("all_factors", "label_macro_f1", "bleu_4", "chrf", "rouge_l", "cider_d"),
    *(f"{direction}_recall@{k}" for direction in ("text_to_image", "image_to_text") for k in (1, 5, 10)),
)
NO_SHARES = (
    "cider_d",
    "loss",
    "psnr",
    "rank",
    "queries",
    "questions",
    "pairs",
)  # ends of metrics that are not in percent

Metrics = dict[str, float | None]  # named `<split>/<metric>`; None was not finite


class Spread(NamedTuple):
    """Mean and sample standard deviation of a metric over the runs that have it; one run has no deviation."""

    mean: float
    sd: float | None
    runs: int


class Summary(NamedTuple):
    """The results of some runs.

    Attributes:
        metrics: Spread of each metric, named `<split>/<metric>`.
        differing_settings: Values by dotted key of the settings that differ between the runs, such as their seeds.
        runs: The metrics of each run.
    """

    metrics: dict[str, Spread]
    differing_settings: dict[str, list[Any]]
    runs: dict[str, Metrics]

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
        check_metrics(metrics, self.metrics)
        single = _intervals(*self.runs.values()) if len(self.runs) == 1 else {}
        title = "one run" if len(self.runs) == 1 else f"{len(self.runs)} runs"
        headers = [metric.removeprefix("test/").replace("/", " ").replace("_", " ") for metric in metrics]
        results: dict[str, Spread | Interval] = {**self.metrics, **single}
        cells = [_cell(results[metric], 1.0 if metric.endswith(NO_SHARES) else 100.0) for metric in metrics]
        return table([title, *headers], [[name, *cells]])


def final_metrics(run: Path) -> Metrics:
    """Return the metrics that a finished run reports at its end.

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


def check_metrics(metrics: Sequence[str], known: Iterable[str]) -> None:
    """Raise ValueError, with similar names, if a metric is not among those that some run reports."""
    names = list(known)
    if unknown := [metric for metric in metrics if metric not in names]:
        nearest = difflib.get_close_matches(unknown[0], names, n=3) or names[:8]
        raise ValueError(f"no run reports {unknown[0]!r}; nearest are {', '.join(nearest)}")


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
        name: Spread(statistics.fmean(numbers), statistics.stdev(numbers) if len(numbers) > 1 else None, len(numbers))
        for name, numbers in values.items()
    }


def _intervals(metrics: Metrics) -> dict[str, Interval]:
    """Return the metrics that come with the limits of an interval."""
    intervals = {}
    for name, value in metrics.items():
        low, high = (metrics.get(f"{name}_{limit}") for limit in ("low", "high"))
        if value is not None and low is not None and high is not None:
            intervals[name] = Interval(value, low, high)
    return intervals


def _cell(result: Spread | Interval, scale: float) -> str:
    if isinstance(result, Interval):
        return f"{scale * result.value:.1f} ({scale * result.low:.1f}–{scale * result.high:.1f})"
    return f"{scale * result.mean:.1f}" + ("" if result.sd is None else f" ± {scale * result.sd:.1f}")


def _differing_settings(runs: Sequence[Path]) -> dict[str, list[Any]]:
    """Return the settings that differ between the runs, but for the output folder, in the order of the runs."""
    settings = [flatten(read_settings(run / "config.yaml")) for run in runs]
    names = dict.fromkeys(name for flat in settings for name in flat if name != "output_dir")
    values = {name: [flat.get(name) for flat in settings] for name in names}
    return {name: column for name, column in values.items() if any(value != column[0] for value in column)}
