"""What latents say of known factors: private ones, clusters, disentanglement; and what is drawn from given labels.

Shapes: N rows, D shared latent dimensions, P private ones of a modality, K draws of a query.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence

import numpy as np
import torch
from sklearn.cluster import KMeans
from sklearn.metrics import normalized_mutual_info_score

from m3ae.data.collate import Batch
from m3ae.data.samples import evenly
from m3ae.evaluation.passes import Array, Rows, expert_inputs
from m3ae.evaluation.probes import Judge, Probes
from m3ae.evaluation.report import ClusterResult, FactorResult, QueryResult
from m3ae.metrics.disentanglement import (
    cluster_classes,
    correctness,
    coverage,
    dci,
    mutual_information_gap,
)
from m3ae.models.generation import M3AEForGeneration

FOREST_ROWS = 5000  # training rows, at most, that random forests learn from
DRAWS = 10  # of each query, as published (Vedantam et al. 2018)


@torch.no_grad()
def private_means(model: M3AEForGeneration, batches: Iterable[Batch]) -> dict[str, Array]:
    """Return by modality the posterior means (N, P) of its private latent; 0 where a row lacks the modality."""
    dimensions = {name: model.latent_head.private_dimensions[name] for name in model.latent_head.private_priors}
    means: dict[str, list[Array]] = {name: [] for name in dimensions}
    for batch in batches if dimensions else ():
        mu = model.infer_latent(expert_inputs(model, batch)).mixture.components.mu[0].cpu().numpy()
        for name, columns in dimensions.items():
            means[name].append(mu[:, columns])
    return {name: np.concatenate(parts) for name, parts in means.items()}


def probe_private(model: M3AEForGeneration, learnt: Rows, rows: Rows) -> dict[str, dict[str, float]]:
    """Return label → modality → accuracy of a linear probe of its private latent: low if z alone has the label."""
    accuracies: dict[str, dict[str, float]] = {label: {} for label in rows.classes}
    pairs = private_means(model, learnt.batches), private_means(model, rows.batches)
    for name in pairs[0]:
        learnt_rows, judged_rows = learnt.having([name]), rows.having([name])
        classes = {label: numbers[learnt_rows] for label, numbers in learnt.classes.items()}
        probes = Probes(pairs[0][name][learnt_rows], classes)
        for label, numbers in rows.classes.items():
            accuracy = probes.accuracy(label, pairs[1][name][judged_rows], numbers[judged_rows])
            if accuracy is not None:
                accuracies[label][name] = accuracy
    return {label: by_modality for label, by_modality in accuracies.items() if by_modality}


def cluster(learnt: Array, learnt_classes: Array, latents: Array, classes: Array, seed: int) -> ClusterResult | None:
    """Cluster training latents into as many clusters as classes, name the clusters there, and judge them on a split.

    Args:
        learnt: (N', D).
        learnt_classes: (N',) negative = unknown.
        latents: (N, D).
        classes: (N,) negative = unknown.
        seed: Seed of k-means.
    """
    known, judged = learnt_classes >= 0, classes >= 0
    count = int(learnt_classes.max()) + 1
    if count < 2 or known.sum() < count or not judged.any():
        return None
    means = KMeans(count, n_init=10, random_state=seed).fit(learnt[known])
    names = cluster_classes(means.labels_, learnt_classes[known], count)
    clusters = means.predict(latents[judged])
    accuracy = float((names[clusters] == classes[judged]).mean())
    return ClusterResult(accuracy, float(normalized_mutual_info_score(classes[judged], clusters)))


def measure_factors(learnt: Array, learnt_factors: Array, latents: Array, factors: Array) -> FactorResult | None:
    """Return MIG and DCI of latents whose factors are all known; None with fewer than two factors or dimensions.

    Args:
        learnt: (N', D).
        learnt_factors: (N', A) negative = unknown.
        latents: (N, D).
        factors: (N, A) negative = unknown.
    """
    known, judged = (learnt_factors >= 0).all(1), (factors >= 0).all(1)
    if factors.shape[1] < 2 or latents.shape[1] < 2 or not known.any() or not judged.any():
        return None
    some = np.flatnonzero(known)[evenly(int(known.sum()), FOREST_ROWS)]
    scores = dci(learnt[some], learnt_factors[some], latents[judged], factors[judged])
    return FactorResult(mutual_information_gap(latents[judged], factors[judged]), *scores)


def query(
    model: M3AEForGeneration, rows: Rows, judge: Judge, given: Sequence[str], generator: torch.Generator, limit: int
) -> dict[str, QueryResult]:
    """Return by classified modality how right and how varied 10 draws of each query are; a query is some labels alone.

    Of a Bernoulli likelihood a sample is drawn, of others the mean is taken.

    Args:
        model: The model.
        rows: The split.
        judge: The classifiers.
        given: Names of the modalities of the query; nothing is measured unless all are labels.
        generator: Source of the noise.
        limit: Number of queries, evenly spaced over those that occur.
    """
    having = rows.having(given)
    if not set(given) <= set(rows.classes) or not len(having) or not judge.classifiers:
        return {}
    classes = np.stack([rows.classes[name][having] for name in given], 1)
    queries, first = np.unique(classes, axis=0, return_index=True)
    chosen = evenly(len(queries), limit)
    order = np.argsort(having[first[chosen]])
    queries, numbers = queries[chosen][order], having[first[chosen]][order]
    results = {}
    read: dict[str, list[Array]] = {name: [] for name in judge.classifiers}
    for batch in rows.select(numbers):
        available = {name: value for name, value in expert_inputs(model, batch).items() if name in given}
        samples = model.generate_modalities(available, [*read], DRAWS, generator=generator)
        for name, values in samples.items():
            if model.latent_head.modalities[name].config.likelihood == "bernoulli":
                values = torch.bernoulli(values.clamp(0, 1), generator=generator)
            flat = judge.classifiers[name].predict(values.flatten(0, 1).float().cpu().numpy())
            read[name].append(flat.reshape(DRAWS, len(values[0]), -1).transpose(1, 0, 2))
    labels = list(rows.classes)
    columns, others = (
        [labels.index(name) for name in labels if (name in given) == wanted] for wanted in (True, False)
    )
    order_of_given = [list(given).index(labels[column]) for column in columns]
    counts = [int(rows.classes[labels[column]].max()) + 1 for column in others]
    for name, batches in read.items():
        predicted = np.concatenate(batches)
        right = correctness(predicted[..., columns], queries[:, order_of_given])
        results[name] = QueryResult(len(queries), right, coverage(predicted[..., others], counts) if others else None)
    return results
