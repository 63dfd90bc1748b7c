import torch

from m3ae.metrics.sums import MeanMetrics


def test_means_do_not_depend_on_batching() -> None:
    values = torch.arange(10.0)
    valid = values != 3
    whole, parts = MeanMetrics(), MeanMetrics()
    whole.add("x", values, valid)
    for part in (slice(0, 1), slice(1, 7), slice(7, 10)):
        parts.add("x", values[part], valid[part])
    assert whole.compute() == parts.compute() == {"x": 42 / 9}


def test_invalid_values_may_be_nan_and_a_mean_of_nothing_is_left_out() -> None:
    metrics = MeanMetrics()
    metrics.add("x", torch.tensor([1.0, torch.nan]), torch.tensor([True, False]))
    metrics.add("nothing", torch.tensor([1.0]), torch.tensor([False]))
    metrics.add("accuracy", torch.tensor([True, False]))
    assert metrics.compute() == {"accuracy": 0.5, "x": 1.0}
