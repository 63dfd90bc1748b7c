"""Metrics of a run: means over the steps and processes, and the file `metrics.jsonl` that keeps them."""

import json
import math
import os
from collections import Counter
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from accelerate.utils import gather_object

from m3ae.files import write_text


def mean_losses(losses: Sequence[Mapping[str, torch.Tensor]]) -> dict[str, torch.Tensor]:
    """Return the mean of each named scalar over the micro-batches that have it."""
    names = list(dict.fromkeys(name for part in losses for name in part))
    return {name: torch.stack([part[name].detach() for part in losses if name in part]).mean() for name in names}


class LossMeter:
    """Sums of named scalars, kept on the device until they are asked for: reading one waits for the device."""

    def __init__(self) -> None:
        self._sums: dict[str, torch.Tensor] = {}
        self._counts: Counter[str] = Counter()

    def add(self, values: Mapping[str, torch.Tensor]) -> None:
        """Add one step's scalars; a name may be absent in some steps."""
        for name, value in values.items():
            self._sums[name] = self._sums[name] + value.detach() if name in self._sums else value.detach()
            self._counts[name] += 1

    def pop_means(self) -> dict[str, float]:
        """Return the means over the added steps and all processes, and start again; every process has to call it."""
        read = torch.stack(list(self._sums.values())).tolist() if self._sums else []
        own = [(name, total, self._counts[name]) for name, total in zip(self._sums, read, strict=True)]
        self._sums.clear()
        self._counts.clear()
        totals: dict[str, float] = {}
        counts: Counter[str] = Counter()
        # As objects, because processes may have met different losses and a tensor reduction would then hang.
        for name, total, count in gather_object(own):
            totals[name] = totals.get(name, 0.0) + total
            counts[name] += count
        return {name: total / counts[name] for name, total in totals.items()}


class MetricsLog:
    """The file `metrics.jsonl`: one JSON object a line, each with its `step`; non-finite numbers become null.

    Args:
        path: The file.
        lines: Lines to continue after; what a killed run wrote after its last checkpoint is dropped.

    Attributes:
        lines: Lines in the file.
    """

    def __init__(self, path: Path, lines: int) -> None:
        self.path = path
        kept = read_metrics(path)[:lines]
        self.lines = len(kept)
        write_text(path, "".join(f"{json.dumps(record)}\n" for record in kept))

    def write(self, step: int, values: Mapping[str, float]) -> None:
        """Append one line.

        Raises:
            OSError: The disk is full; nothing of the line is left.
        """
        finite = {name: value if math.isfinite(value) else None for name, value in values.items()}
        length = self.path.stat().st_size
        try:
            with self.path.open("a", encoding="utf-8") as file:
                file.write(f"{json.dumps({'step': step, **finite})}\n")
        except OSError:
            os.truncate(self.path, length)
            raise
        self.lines += 1


def read_metrics(path: Path) -> list[dict[str, Any]]:
    """Return the lines of a `metrics.jsonl`, without a last one that a kill cut short; none of a missing file."""
    if not path.exists():
        return []
    *lines, _unfinished = path.read_text(encoding="utf-8").split("\n")
    return [json.loads(line) for line in lines]


def format_metrics(title: str, metrics: Mapping[str, float]) -> str:
    """Lay out one metric a line, to be printed; `<split>/shuffled_<metric>` stands beside its counterpart."""
    own = {name: value for name, value in metrics.items() if "/shuffled_" not in name}
    width = max(map(len, [title, *own]))
    header = f"{title:<{width}}  {'own':>10}  {'shuffled':>10}"
    rows = []
    for name, value in own.items():
        shuffled = metrics.get(name.replace("/", "/shuffled_", 1))
        rows.append(f"{name:<{width}}  {value:>10.4f}" + ("" if shuffled is None else f"  {shuffled:>10.4f}"))
    return "\n".join([header if len(own) < len(metrics) else title, "-" * len(header), *rows])
