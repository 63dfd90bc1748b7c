"""Metrics of the tasks, usable offline and by themselves."""

from m3ae.metrics.bootstrap import Interval, bootstrap, bootstrap_means
from m3ae.metrics.classification import (
    MultiLabelMetrics,
    SingleLabelMetrics,
    multi_label_f1,
    multi_label_metrics,
    single_label_metrics,
)
from m3ae.metrics.gather import gather_rows
from m3ae.metrics.question_answering import VQAAccuracy, is_right
from m3ae.metrics.sums import MeanMetrics
from m3ae.metrics.text import text_metrics

__all__ = [
    "Interval",
    "MeanMetrics",
    "MultiLabelMetrics",
    "SingleLabelMetrics",
    "VQAAccuracy",
    "bootstrap",
    "bootstrap_means",
    "gather_rows",
    "is_right",
    "multi_label_f1",
    "multi_label_metrics",
    "single_label_metrics",
    "text_metrics",
]
