"""Rows and means of all processes, and bootstrap intervals."""

import json
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from sklearn.metrics import roc_auc_score

from m3ae.metrics import MeanMetrics, aggregation, bootstrap, bootstrap_means, gather_rows
from tests.metrics.run_gather import measure

SCRIPT = Path(__file__).with_name("run_gather.py")
GENERATOR = np.random.default_rng(0)
RIGHT = (GENERATOR.random(400) < 0.3).astype(float)
CLOSED = np.where(np.arange(400) % 3, RIGHT, np.nan)
IMAGES = [f"image {index // 4}" for index in range(400)]


def test_two_processes_measure_what_one_does(tmp_path):
    command = ["-m", "torch.distributed.run", "--nproc_per_node=2", "--standalone", str(SCRIPT), str(tmp_path)]
    variables = {"ACCELERATE_USE_CPU": "true", "OMP_NUM_THREADS": "1", "PYTHONPATH": str(SCRIPT.parents[2])}
    done = subprocess.run(
        [sys.executable, *command],
        env=os.environ | variables,
        capture_output=True,
        text=True,
        timeout=200,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    expected = measure(tmp_path)
    assert expected["answers"]["questions"] == 7
    first, second = (json.loads((tmp_path / f"{process}.json").read_text()) for process in range(2))
    assert first == expected
    assert second == expected | {"exchanged": None}


def test_the_order_of_the_samples_is_restored(monkeypatch):
    assert gather_rows(["a", "b"]) == ["a", "b"]
    assert gather_rows([]) == []
    monkeypatch.setattr(aggregation, "gather_object", lambda own: [[0, 3, 6], [1, 4], [2, 5]])
    assert gather_rows([]) == [0, 1, 2, 3, 4, 5, 6]


def test_other_shares_are_refused(monkeypatch):
    monkeypatch.setattr(aggregation, "gather_object", lambda own: [[0, 1, 2], [3]])
    with pytest.raises(ValueError, match=r"hold \[3, 1\] rows, expected \[2, 2\]"):
        gather_rows([])


def test_means_do_not_depend_on_batching() -> None:
    values = torch.arange(10.0)
    valid = values != 3
    whole, split = MeanMetrics(), MeanMetrics()
    whole.add("x", values, valid)
    for rows in (slice(0, 1), slice(1, 7), slice(7, 10)):
        split.add("x", values[rows], valid[rows])
    assert whole.compute() == split.compute() == {"x": 42 / 9}


def test_invalid_values_may_be_nan_and_a_mean_of_nothing_is_left_out() -> None:
    metrics = MeanMetrics()
    metrics.add("x", torch.tensor([1.0, torch.nan]), torch.tensor([True, False]))
    metrics.add("nothing", torch.tensor([1.0]), torch.tensor([False]))
    metrics.add("accuracy", torch.tensor([True, False]))
    assert metrics.compute() == {"accuracy": 0.5, "x": 1.0}


def test_means_are_those_of_the_general_way():
    for groups in (None, IMAGES):
        fast = bootstrap_means({"all": RIGHT, "closed": CLOSED}, groups=groups, resamples=50)
        general = bootstrap(
            lambda rows: {"all": RIGHT[rows].mean(), "closed": np.nanmean(CLOSED[rows])},
            400,
            groups=groups,
            resamples=50,
        )
        for name, interval in general.items():
            assert fast[name] == pytest.approx(interval, abs=1e-12)
    assert fast["all"].value == RIGHT.mean()


def test_the_interval_of_a_share_is_the_normal_one():
    interval = bootstrap_means({"all": RIGHT}, resamples=4000)["all"]
    deviation = (RIGHT.mean() * (1 - RIGHT.mean()) / 400) ** 0.5
    assert interval.low == pytest.approx(RIGHT.mean() - 1.96 * deviation, abs=0.005)
    assert interval.high == pytest.approx(RIGHT.mean() + 1.96 * deviation, abs=0.005)
    narrow = bootstrap_means({"all": RIGHT}, resamples=4000, confidence=0.5)["all"]
    assert narrow.high - narrow.low == pytest.approx(2 * 0.674 * deviation, abs=0.005)


def test_samples_of_a_group_are_drawn_together():
    repeated, groups = np.repeat(RIGHT, 5), np.repeat(np.arange(400), 5).tolist()
    alone, grouped, single = (
        bootstrap_means({"all": values}, groups=own)["all"]
        for values, own in ((RIGHT, None), (repeated, groups), (repeated, None))
    )
    assert grouped == pytest.approx(alone)  # five copies of a sample say no more than one
    assert single.high - single.low < 0.6 * (grouped.high - grouped.low)


def test_the_seed_decides_and_the_interval_is_exact_for_one_group():
    assert bootstrap_means({"all": RIGHT}, seed=1) == bootstrap_means({"all": RIGHT}, seed=1)
    assert bootstrap_means({"all": RIGHT}, seed=1) != bootstrap_means({"all": RIGHT}, seed=2)
    assert bootstrap_means({"all": [0, 1]}, groups=["same", "same"])["all"] == (0.5, 0.5, 0.5)


def test_draws_in_which_a_metric_is_undefined_are_left_out():
    scores, labels = np.array([0.1, 0.9, 0.4]), np.array([0, 1, 0])

    def metric(rows):
        defined = len(set(labels[rows])) == 2
        return {"auroc": roc_auc_score(labels[rows], scores[rows]) if defined else np.nan, "never": np.nan}

    found = bootstrap(metric, 3, resamples=20)
    assert found["auroc"] == (1, 1, 1)
    assert np.isnan(found["never"]).all()
    assert np.isnan(bootstrap_means({"never": [np.nan, np.nan]})["never"]).all()


def test_samples_and_groups_have_to_fit():
    with pytest.raises(ValueError, match="got 3 and 2 groups"):
        bootstrap_means({"all": [0, 1, 1]}, groups=["a", "b"])
    with pytest.raises(ValueError, match="needs samples"):
        bootstrap(lambda rows: {}, 0)
