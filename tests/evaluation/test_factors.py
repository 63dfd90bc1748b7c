"""What latents say of known factors."""

from dataclasses import replace
from types import SimpleNamespace

import numpy as np
import pytest
import torch

from m3ae.evaluation.factors import cluster, measure_factors, private_means, probe_private, query
from m3ae.evaluation.passes import Rows
from tests.evaluation.test_latent import batches
from tests.models.tiny_latent import DIGITS, latent_model


def blobs(seed: int, count: int = 90) -> tuple[np.ndarray, np.ndarray]:
    draw = np.random.default_rng(seed)
    classes = draw.integers(0, 3, count)
    return np.eye(3)[classes] * 5 + draw.normal(size=(count, 3)), classes


def test_clusters_are_learnt_and_named_on_training_rows() -> None:
    (learnt, learnt_classes), (latents, classes) = blobs(0), blobs(1)
    unknown = np.where(np.arange(90) < 10, -1, classes)
    found = cluster(learnt, learnt_classes, latents, unknown, 0)
    assert found.accuracy > 0.95 and found.nmi > 0.85
    shuffled = cluster(learnt, learnt_classes, latents, np.random.default_rng(0).permutation(classes), 0)
    assert shuffled.accuracy < 0.5 and shuffled.nmi < 0.1
    renamed = cluster(learnt, (learnt_classes + 1) % 3, latents, classes, 0)
    assert renamed.accuracy < 0.05 and renamed.nmi > 0.85, "the split does not name its clusters"
    assert cluster(learnt, np.zeros(90, int), latents, classes, 0) is None


def test_factors_need_two_labels_that_are_known() -> None:
    latents, classes = blobs(0)
    two = np.stack([classes, np.where(np.arange(90) < 10, -1, classes % 2)], 1)
    found = measure_factors(latents, two, latents, two)
    assert found.informativeness > 0.9 and 0 <= found.mig <= 1
    assert measure_factors(latents, two[:, :1], latents, two[:, :1]) is None
    assert measure_factors(latents, np.full((90, 2), -1), latents, two) is None


def test_private_latents_are_probed_where_their_modality_is() -> None:
    model = latent_model()
    learnt, rows = Rows.of(model, batches(4)), Rows.of(model, batches(2, missing=3))
    means = private_means(model, rows.batches)
    assert means["glyph"].shape == (24, 2) and means["speech"].shape == (24, 3)
    assert (means["glyph"][:3] == 0).all() and (means["glyph"][3:12] != 0).any(1).all()
    found = probe_private(model, learnt, rows)
    assert set(found["label"]) == {"glyph", "speech"} and found["label"]["speech"] > found["label"]["glyph"]
    plain = latent_model({name: {**options, "private_size": 0} for name, options in DIGITS.items()})
    assert probe_private(plain, learnt, rows) == {}


def test_queries_are_the_labels_that_occur_and_nothing_else_is_given() -> None:
    model = latent_model()
    rows = Rows.of(model, batches(2))
    rows = replace(rows, classes={**rows.classes, "hand": np.arange(24) % 2})
    drawn = []

    def predict(values: np.ndarray) -> np.ndarray:
        drawn.append(values)
        return np.stack([np.zeros(len(values), int), np.arange(len(values)) % 2], 1)

    judge = SimpleNamespace(classifiers={"glyph": SimpleNamespace(predict=predict)})
    found = query(model, rows, judge, ["label"], torch.Generator().manual_seed(0), 100)["glyph"]
    assert found.queries == 3 and found.correctness == pytest.approx(1 / 3), "class 0 whatever is asked for"
    assert sum(map(len, drawn)) == 30 and all(set(np.unique(values)) == {0, 1} for values in drawn), (
        "Bernoulli samples"
    )
    assert 0.78 < found.coverage <= 1
    assert query(model, rows, judge, ["glyph", "label"], torch.Generator(), 100) == {}
    assert query(model, rows, SimpleNamespace(classifiers={}), ["label"], torch.Generator(), 100) == {}
