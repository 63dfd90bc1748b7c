"""What the metrics have in common: `evaluate.Metric`s that need no hub, no download and no cache file."""

from __future__ import annotations

import inspect
from collections.abc import Sequence
from typing import Any, ClassVar

import datasets
import evaluate
import numpy as np
from numpy.typing import NDArray


class InMemoryMetric(evaluate.Metric):  # type: ignore[misc]  # evaluate is untyped
    """A metric whose samples stay in memory: any number of instances and of processes never meet in a file.

    Several processes bring their samples together with `m3ae.metrics.gather_rows` and compute afterwards. The way of
    `evaluate` works too: `num_process=`, `process_id=` and `experiment_id=` exchange the samples through cache files.

    Subclasses document `compute` in their docstring.

    Attributes:
        FEATURES: Names and types of what is added for each sample.
    """

    FEATURES: ClassVar[dict[str, Any]]

    def __init__(self, config_name: str | None = None, **options: Any) -> None:
        in_memory = options.pop("keep_in_memory", options.get("num_process", 1) == 1)
        super().__init__(config_name, keep_in_memory=in_memory, **options)

    def _info(self) -> evaluate.MetricInfo:
        documentation = inspect.getdoc(self) or ""
        return evaluate.MetricInfo(
            description=documentation,
            citation="",
            inputs_description=documentation,
            features=datasets.Features(self.FEATURES),
        )

    def _build_data_dir(self) -> str:
        # The base class makes a folder below the user's home, which a cluster's nodes may not be able to write to.
        return "" if self.keep_in_memory else str(super()._build_data_dir())

    def _finalize(self) -> None:
        if self.writer is not None or not self.keep_in_memory:
            super()._finalize()
        if self.process_id == 0 and not self.data:
            raise ValueError(
                f"{type(self).__name__} has no samples: got none, expected at least one prediction and its reference. "
                "Is the split empty?"
            )


def as_matrix(rows: Sequence[Sequence[float]], what: str) -> NDArray[np.float64]:
    """Return rows of equally many numbers as an array (N, A); raise ValueError, naming `what` they are, otherwise."""
    sizes = {len(row) for row in rows}
    if len(sizes) > 1:
        raise ValueError(f"{what} must be equally long for all samples, got lengths from {min(sizes)} to {max(sizes)}")
    return np.array(rows, dtype=np.float64)
