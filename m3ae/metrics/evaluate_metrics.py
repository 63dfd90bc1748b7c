"""The metrics as `evaluate.Metric`s: they take samples in batches, from several processes, and combine with others."""

from __future__ import annotations

import inspect
import tempfile
from typing import Any, ClassVar

import datasets
import evaluate
import numpy as np

from m3ae.metrics.classification import multi_label_metrics, single_label_metrics
from m3ae.metrics.text import vqa_accuracy


class _Metric(evaluate.Metric):  # type: ignore[misc]  # evaluate is untyped
    """A metric that needs no hub, and no file unless `num_process` processes exchange their samples."""

    FEATURES: ClassVar[dict[str, Any]]  # of a sample

    def __init__(self, config_name: str | None = None, **options: Any) -> None:
        if options.get("num_process", 1) == 1:  # the default folder, below the user's home, may be read-only
            options = {"keep_in_memory": True, "cache_dir": tempfile.gettempdir(), **options}
        super().__init__(config_name, **options)

    def _info(self) -> evaluate.MetricInfo:
        text, features = inspect.getdoc(self) or "", datasets.Features(self.FEATURES)
        return evaluate.MetricInfo(text, citation="", features=features, inputs_description=text)


class SingleLabelMetrics(_Metric):
    """`single_label_metrics` of `predictions`, the class of each sample, and `references`, −100 = unknown."""

    FEATURES = {"predictions": datasets.Value("int64"), "references": datasets.Value("int64")}  # noqa: RUF012

    def _compute(self, predictions: Any, references: Any) -> dict[str, float]:
        return single_label_metrics(np.array(predictions), np.array(references))


class MultiLabelMetrics(_Metric):
    """`multi_label_metrics` of `predictions`, a score for each label of each sample, and `references`.

    `label_names` are numbers if they are left out. `undefined_labels` are the names of the labels with one class only.
    """

    FEATURES = dict.fromkeys(("predictions", "references"), datasets.List(datasets.Value("float64")))

    def _compute(self, predictions: Any, references: Any, label_names: Any = None) -> dict[str, Any]:
        scores, truth = np.array(predictions), np.array(references)
        names = list(map(str, range(scores.shape[-1]))) if label_names is None else label_names
        metrics = multi_label_metrics(scores, truth, names)
        return metrics | {"undefined_labels": [name for name in names if np.isnan(metrics[f"{name}_auroc"])]}


class VQAAccuracy(_Metric):
    """`vqa_accuracy` of `predictions`, `references`, `answer_types`, `question_types` and, optional, `answer_list`."""

    FEATURES = {  # noqa: RUF012
        "predictions": datasets.Value("string"),
        "references": datasets.List(datasets.Value("string")),
        "answer_types": datasets.Value("string"),
        "question_types": datasets.Value("string"),
    }

    def _compute(self, **samples: Any) -> dict[str, float]:
        return vqa_accuracy(**samples)
