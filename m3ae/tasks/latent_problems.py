"""Problems of studies that a latent model knows nothing of: how well do its latents tell them?

Shapes: N rows, A problems, D shared latent dimensions.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

import datasets
import numpy as np
from numpy.typing import NDArray
from sklearn.pipeline import Pipeline

from m3ae.data.examples import Example
from m3ae.data.prepared import load_split
from m3ae.metrics.classification import UNKNOWN, multi_label_metrics
from m3ae.tasks.classification import UNCERTAIN, Labels, choose_classes, encode, labels_of
from m3ae.tasks.classifiers import linear_probe
from m3ae.training.task_config import ClassificationConfig, ProblemsConfig

Targets = NDArray[np.int64]


class Problems(NamedTuple):
    """Which rows have which of A problems: 1 = has it, 0 = has not, −100 = unknown.

    Attributes:
        names: Of the problems.
        learnt: (N', A) of the training rows that probes learn from.
        judged: (N, A) of the rows that they are measured on.
    """

    names: list[str]
    learnt: Targets
    judged: Targets

    def shares(self) -> dict[str, float]:
        """Return the share of the judged rows that have each problem, of those of which it is known."""
        known = self.judged != UNKNOWN
        return {
            name: float(truth[own].mean()) if own.any() else np.nan
            for name, truth, own in zip(self.names, self.judged.T, known.T, strict=True)
        }


class ProblemReader:
    """The problems that are the most frequent in the training split, as classification with several labels has them.

    Args:
        folder: The prepared folder.
        options: Which column, and how many problems.

    Attributes:
        names: Of the problems, the most frequent first.

    Raises:
        ValueError: There is no such column of names, or none in it.
    """

    def __init__(self, folder: Path, options: ProblemsConfig) -> None:
        self._folder = folder
        self._section = ClassificationConfig(
            label_column=options.column, multi_label=True, num_labels=options.num_labels
        )
        self.names = choose_classes(list(self._read("train").values()), self._section)

    def targets(self, split: str, ids: Sequence[str]) -> Targets:
        """Return the problems (N, A) of rows of a split."""
        found, nothing = self._read(split), Labels(())
        unknown = [row not in found for row in ids]
        examples = [found.get(row, Example(0, row, (), nothing, {})) for row in ids]
        targets = encode(examples, self.names, self._section)
        targets[unknown] = UNKNOWN
        return targets

    def _read(self, split: str) -> dict[str, Example]:
        """Return the labels of the rows that have some or are known to have none, by id."""
        column, rows = self._section.label_column, load_split(self._folder, split)
        text = datasets.Value("string")
        if rows.features.get(column) not in (text, datasets.List(text)):
            named = [name for name, feature in rows.features.items() if feature in (text, datasets.List(text))]
            raise ValueError(
                f"generation.problems.column: expected a column of names in {self._folder}, got {column!r}; those of "
                f"texts are {', '.join(named)}."
            )
        cells = rows.select_columns([name for name in ("id", column, UNCERTAIN) if name in rows.features])
        labelled = ((row["id"], labels_of(row, self._section)) for row in cells)
        return {row: Example(0, row, (), labels, {}) for row, labels in labelled if labels is not None}


def rank_problems(scores: NDArray[np.floating], targets: Targets, names: Sequence[str]) -> dict[str, Any]:
    """Return `auroc` by problem, NaN where the rows are not of both kinds, and the mean of the others, `macro_auroc`.

    Args:
        scores: (N, A).
        targets: (N, A), see `Problems`.
        names: Of the A problems.
    """
    found = multi_label_metrics(scores, targets.astype(np.float64), names)
    return {"auroc": {name: found[f"{name}_auroc"] for name in names}, "macro_auroc": found["macro_auroc"]}


class ProblemProbes:
    """A linear probe for each problem that some rows have and others have not.

    Args:
        latents: (N', D) posterior means of training rows.
        targets: (N', A), see `Problems`.
    """

    def __init__(self, latents: NDArray[np.float32], targets: Targets) -> None:
        self._probes: list[Pipeline | None] = []
        for truth in targets.T:
            known = truth != UNKNOWN
            defined = len(np.unique(truth[known])) == 2
            self._probes.append(linear_probe(latents[known], truth[known]) if defined else None)

    def judge(self, latents: NDArray[np.float32], targets: Targets, names: Sequence[str]) -> dict[str, Any]:
        """Return `rank_problems` of latents (N, D); a problem without probe is like one without rows of both kinds."""
        scores, truth = np.zeros(targets.shape), targets.copy()
        for column, probe in enumerate(self._probes):
            if probe is None:
                truth[:, column] = UNKNOWN
            else:
                scores[:, column] = probe.decision_function(latents)
        return rank_problems(scores, truth, names)
