"""Results of several runs of one recipe as mean ± standard deviation: JSON, and rows of a Markdown table."""

from __future__ import annotations

import json
import math
import statistics
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import yaml

from m3ae.metrics.bootstrap import Interval
from m3ae.training.metrics_log import read_metrics
from m3ae.training.run_folder import RunFolder


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


def write_summary(path: Path, runs: Sequence[Path]) -> dict[str, Spread]:
    """Summarise run folders and write all of it as JSON, with the settings in which the runs differ: their seeds.

    Raises:
        FileNotFoundError: A folder holds no finished run.
    """
    results = {str(run): final_metrics(run) for run in runs}
    summary = summarize(list(results.values()))
    content = {
        "metrics": {name: spread._asdict() for name, spread in summary.items()},
        "differing_settings": _differing_settings(runs),
        "runs": results,
    }
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(content, indent=2) + "\n", encoding="utf-8")
    return summary


def markdown_header(title: str, columns: Sequence[Column]) -> str:
    """Return the two lines that open a table; `title` stands above the names of the rows."""
    return f"| {' | '.join([title, *(column.header for column in columns)])} |\n|---|{'---:|' * len(columns)}"


def markdown_row(name: str, results: Mapping[str, Spread | Interval], columns: Sequence[Column]) -> str:
    """Return a row: `mean ± sd` of several runs, or `value (low–high)` of an interval; "–" where there is none."""
    cells = [_cell(results.get(column.metric), 100.0 if column.percent else 1.0) for column in columns]
    return f"| {' | '.join([name, *cells])} |"


def _cell(result: Spread | Interval | None, scale: float) -> str:
    if result is None or math.isnan(result[0]):
        return "–"
    if isinstance(result, Interval):
        return f"{scale * result.value:.1f} ({scale * result.low:.1f}–{scale * result.high:.1f})"
    return f"{scale * result.mean:.1f}" + ("" if result.sd is None else f" ± {scale * result.sd:.1f}")


def _differing_settings(runs: Sequence[Path]) -> dict[str, list[Any]]:
    """Return the settings that are not the same in all runs, in the order of the runs; but for the output folder."""
    settings = [_flatten(yaml.safe_load((run / "config.yaml").read_text(encoding="utf-8"))) for run in runs]
    names = dict.fromkeys(name for own in settings for name in own if name != "output_dir")
    values = {name: [own.get(name) for own in settings] for name in names}
    return {name: own for name, own in values.items() if any(value != own[0] for value in own)}


def _flatten(section: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    flat: dict[str, Any] = {}
    for name, value in section.items():
        flat |= _flatten(value, f"{prefix}{name}.") if isinstance(value, dict) else {f"{prefix}{name}": value}
    return flat
