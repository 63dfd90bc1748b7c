"""The metrics as those of `evaluate`."""

import evaluate
import pytest

from m3ae.metrics import MultiLabelMetrics, SingleLabelMetrics, VQAAccuracy

METRICS = [VQAAccuracy, SingleLabelMetrics, MultiLabelMetrics]


@pytest.mark.parametrize("metric_class", METRICS)
def test_a_metric_is_built_without_hub_and_leaves_no_file(metric_class, tmp_path, monkeypatch):
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    metric = metric_class(cache_dir=str(tmp_path))
    assert isinstance(metric, evaluate.Metric)
    assert "`predictions`" in metric.compute.__doc__
    with pytest.raises(ValueError, match=r"no samples|all 0 samples|each of the 0 labels"):
        metric.compute(**{name: [] for name in metric.features})
    assert not [path for path in tmp_path.rglob("*") if path.is_file()]


def test_instances_keep_their_samples_apart_and_start_afresh():
    one, other = SingleLabelMetrics(), SingleLabelMetrics()
    one.add_batch(predictions=[0, 1], references=[0, 1])
    other.add(prediction=0, reference=1)
    one.add(prediction=2, reference=1)
    assert other.compute()["accuracy"] == 0
    assert one.compute()["accuracy"] == pytest.approx(2 / 3)
    assert one.compute(predictions=[1], references=[1])["accuracy"] == 1


def test_metrics_combine():
    both = evaluate.combine([SingleLabelMetrics(), SingleLabelMetrics()])
    metrics = both.compute(predictions=[0, 1], references=[0, 0])
    assert metrics["single_label_metrics_1_accuracy"] == 0.5
