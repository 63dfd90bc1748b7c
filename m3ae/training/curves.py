"""The loss curves of a run as a picture."""

import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any

# Okabe and Ito's palette: told apart by colour-blind readers; line style and marker tell them apart in grey.
_STYLES: dict[str, dict[str, Any]] = {
    "training": {"color": "#0072B2", "linestyle": "-", "linewidth": 1.2},
    "validation": {"color": "#D55E00", "linestyle": "--", "linewidth": 1.6, "marker": "o", "markersize": 4},
}


def plot_losses(records: Sequence[dict[str, Any]], path: Path) -> Path:
    """Draw one panel for each loss, training and validation over the optimiser steps.

    Args:
        records: Lines of `metrics.jsonl`, as `read_metrics` returns them.
        path: The PNG to write.
    """
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    keys = dict.fromkeys(key for record in records for key in record)
    losses = [key.removeprefix("training/") for key in keys if key.startswith("training/")]
    columns = min(len(losses), 3) or 1
    rows = math.ceil(len(losses) / columns) or 1
    figure = Figure(figsize=(4 * columns, 3 * rows), layout="constrained")
    FigureCanvasAgg(figure)
    for number, loss in enumerate(losses, start=1):
        axes = figure.add_subplot(rows, columns, number, title=loss, xlabel="optimiser step")
        lowest = math.inf
        for split, style in _STYLES.items():
            points = _points(records, split, loss)
            if points:
                axes.plot(*zip(*points, strict=True), label=split, **style)
                lowest = min(lowest, *(value for _, value in points))
        if lowest > 0:
            axes.set_yscale("log")
        axes.grid(alpha=0.3, which="both")
        axes.legend(frameon=False)
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path, dpi=150)
    return path


def _points(records: Sequence[dict[str, Any]], split: str, loss: str) -> list[tuple[int, float]]:
    """Return the steps and values of a loss, which a task's metrics may call `<loss>_loss`."""
    names = (f"{split}/{loss}", f"{split}/{loss}_loss")
    return [(record["step"], record[name]) for record in records for name in names if record.get(name) is not None]
