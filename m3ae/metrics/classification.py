"""Metrics of classifiers, of one class a sample or of any number of labels, as scikit-learn computes them.

Shapes: N samples, A labels.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray
from sklearn.metrics import accuracy_score, average_precision_score, f1_score, roc_auc_score

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
    classes, truth = predictions[known], references[known]
    macro_f1 = f1_score(truth, classes, average="macro")
    return {"accuracy": float(accuracy_score(truth, classes)), "macro_f1": float(macro_f1)}


def multi_label_metrics(predictions: NDArray[Any], references: NDArray[Any], names: Sequence[str]) -> dict[str, float]:
    """Return area under the ROC curve and average precision of each label, and their macro averages.

    Args:
        predictions: (N, A) scores, larger = more likely; each label is judged by their order alone.
        references: (N, A) 1 = has the label, 0 = has not, −100 or NaN = unknown and left out for that label.
        names: Names of the A labels.

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
        wrong = next(value for value in references[known] if value not in (0, 1))
        raise ValueError(f"references must be 0, 1 or unknown ({UNKNOWN} or NaN), got {wrong:g}")
    metrics = {}
    for column, name in enumerate(names):
        rows = known[:, column]
        scores, truth = predictions[rows, column], references[rows, column]
        defined = len(np.unique(truth)) == 2
        metrics[f"{name}_auroc"] = float(roc_auc_score(truth, scores)) if defined else np.nan
        metrics[f"{name}_average_precision"] = float(average_precision_score(truth, scores)) if defined else np.nan
        metrics[f"{name}_prevalence"] = float(truth.mean()) if len(truth) else np.nan
    macro = {}
    for kind in ("auroc", "average_precision"):
        values = [metrics[f"{name}_{kind}"] for name in names if not np.isnan(metrics[f"{name}_{kind}"])]
        macro[f"macro_{kind}"] = float(np.mean(values)) if values else np.nan
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
