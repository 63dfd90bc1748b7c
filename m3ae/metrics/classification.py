"""Metrics of classifiers, of one class a sample or of any number of labels, as scikit-learn computes them.

Shapes: N samples, A labels.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import datasets
import numpy as np
from numpy.typing import NDArray
from sklearn.metrics import accuracy_score, average_precision_score, f1_score, roc_auc_score

from m3ae.metrics.base import InMemoryMetric, as_matrix

UNKNOWN = -100


def single_label_metrics(predictions: NDArray[Any], references: NDArray[Any]) -> dict[str, float]:
    """Return `accuracy` and `macro_f1` of classes (N,); a reference of −100 is unknown and left out.

    The macro average is over the classes that occur in either argument; a class that is never predicted has F1 = 0.

    Raises:
        ValueError: No class is known.
    """
    known = references != UNKNOWN
    if not known.any():
        raise ValueError(f"the class of all {len(references)} samples is unknown ({UNKNOWN}); nothing to measure")
    own, truth = predictions[known], references[known]
    return {"accuracy": float(accuracy_score(truth, own)), "macro_f1": float(f1_score(truth, own, average="macro"))}


def multi_label_metrics(predictions: NDArray[Any], references: NDArray[Any], names: Sequence[str]) -> dict[str, float]:
    """Return area under the ROC curve and average precision of each label, and their macro averages.

    Args:
        predictions: (N, A) scores, larger = more likely; each label is judged by their order alone.
        references: (N, A) 1 = has the label, 0 = has not, −100 or NaN = unknown and left out for that label.
        names: Of the A labels.

    Returns:
        `<name>_auroc`, `<name>_average_precision` and `<name>_prevalence`, the share of 1 and the average precision of
        a guess. The first two are NaN for a label with one class only, which `macro_auroc` and
        `macro_average_precision`, the means over labels, leave out.

    Raises:
        ValueError: The shapes do not fit, or a reference is none of the above.
    """
    if predictions.shape != references.shape or references.shape[1:] != (len(names),):
        raise ValueError(
            f"expected one score and one reference for each of the {len(names)} labels, got predictions of shape "
            f"{predictions.shape} and references of shape {references.shape}"
        )
    known = (references != UNKNOWN) & ~np.isnan(references)
    if not np.isin(references[known], (0, 1)).all():
        found = next(value for value in references[known] if value not in (0, 1))
        raise ValueError(f"references must be 0, 1 or unknown ({UNKNOWN} or NaN), got {found:g}")
    metrics = {}
    for column, name in enumerate(names):
        rows = known[:, column]
        scores, truth = predictions[rows, column], references[rows, column]
        defined = len(np.unique(truth)) == 2
        metrics[f"{name}_auroc"] = float(roc_auc_score(truth, scores)) if defined else np.nan
        metrics[f"{name}_average_precision"] = float(average_precision_score(truth, scores)) if defined else np.nan
        metrics[f"{name}_prevalence"] = float(truth.mean()) if len(truth) else np.nan
    macro = {f"macro_{kind}": _mean_of_defined(metrics, kind) for kind in ("auroc", "average_precision")}
    return macro | metrics


def multi_label_f1(predictions: NDArray[Any], references: NDArray[Any]) -> dict[str, float]:
    """Return `macro_f1`, the mean over labels, and `micro_f1`, of all decisions together.

    Args:
        predictions: (N, A) 1 or True = has the label.
        references: (N, A) 1 = has the label, 0 = has not, −100 = unknown and left out.

    Returns:
        A label that no reference has is left out of `macro_f1`; without any it is NaN.
    """
    known = references != UNKNOWN
    right = ((predictions == 1) & (references == 1)).sum(0)  # (A,)
    wrong = (known & ((predictions == 1) != (references == 1))).sum(0)
    occurs = (references == 1).any(0)
    f1 = 2 * right / np.maximum(2 * right + wrong, 1)
    micro = 2 * right.sum() / max(2 * right.sum() + wrong.sum(), 1)
    return {"macro_f1": float(f1[occurs].mean()) if occurs.any() else np.nan, "micro_f1": float(micro)}


class SingleLabelMetrics(InMemoryMetric):
    """Accuracy and macro F1 of one class a sample; see `single_label_metrics`.

    Args of `compute`:
        predictions: The index of a class for each sample.
        references: The index of its class, −100 if unknown.

    Returns of `compute`:
        `accuracy` and `macro_f1`.
    """

    FEATURES = {"predictions": datasets.Value("int64"), "references": datasets.Value("int64")}  # noqa: RUF012

    def _compute(self, predictions: Sequence[int], references: Sequence[int]) -> dict[str, float]:
        return single_label_metrics(np.array(predictions), np.array(references))


class MultiLabelMetrics(InMemoryMetric):
    """Area under the ROC curve and average precision, by label and macro; see `multi_label_metrics`.

    Args of `compute`:
        predictions: A score for each label of each sample: probabilities or logits.
        references: 1, 0, or −100 or NaN where it is unknown, for each label of each sample.
        label_names: Of the labels; their numbers if not given.

    Returns of `compute`:
        `macro_auroc`, `macro_average_precision`, and of each label `<name>_auroc`, `<name>_average_precision` and
        `<name>_prevalence`; `undefined_labels`, the names of those with one class only, which are NaN and left out of
        the macro averages.
    """

    FEATURES = {  # noqa: RUF012
        "predictions": datasets.List(datasets.Value("float64")),
        "references": datasets.List(datasets.Value("float64")),
    }

    def _compute(
        self,
        predictions: Sequence[Sequence[float]],
        references: Sequence[Sequence[float]],
        label_names: Sequence[str] | None = None,
    ) -> dict[str, Any]:
        scores, truth = as_matrix(predictions, "predictions"), as_matrix(references, "references")
        names = list(map(str, range(scores.shape[1]))) if label_names is None else label_names
        metrics = multi_label_metrics(scores, truth, names)
        return metrics | {"undefined_labels": [name for name in names if np.isnan(metrics[f"{name}_auroc"])]}


def _mean_of_defined(metrics: dict[str, float], kind: str) -> float:
    values = [value for name, value in metrics.items() if name.endswith(f"_{kind}") and not np.isnan(value)]
    return float(np.mean(values)) if values else np.nan
