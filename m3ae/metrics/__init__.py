"""Metrics of the tasks: plain functions, usable offline and by themselves, and three of them for `evaluate`."""

from m3ae.metrics.aggregation import Interval, MeanMetrics, bootstrap, bootstrap_means, gather_rows
from m3ae.metrics.classification import multi_label_f1, multi_label_metrics, single_label_metrics
from m3ae.metrics.evaluate_metrics import MultiLabelMetrics, SingleLabelMetrics, VQAAccuracy
from m3ae.metrics.text import is_right, text_metrics, vqa_accuracy

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
    "vqa_accuracy",
]
