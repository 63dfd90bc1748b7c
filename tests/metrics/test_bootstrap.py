import numpy as np
import pytest
from sklearn.metrics import roc_auc_score

from m3ae.metrics import bootstrap, bootstrap_means

GENERATOR = np.random.default_rng(0)
RIGHT = (GENERATOR.random(400) < 0.3).astype(float)
CLOSED = np.where(np.arange(400) % 3, RIGHT, np.nan)
IMAGES = [f"image {index // 4}" for index in range(400)]


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
