"""The evaluation of a latent model: every subset of its modalities, its priors, and its latent space.

Shapes: N rows of the split, n of them, C subsets of M modalities.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Literal

import numpy as np
import torch
from sklearn.metrics import r2_score
from torch import Tensor
from tqdm import tqdm

from m3ae.data.collate import Batch
from m3ae.data.samples import evenly
from m3ae.evaluation.draws import MAX_VALUES, distinct, nearness, told_apart
from m3ae.evaluation.factors import cluster, measure_factors, probe_private, query
from m3ae.evaluation.overlap import OverlapResult, measure_overlap
from m3ae.evaluation.passes import (
    Array,
    Pass,
    Rows,
    batch_size,
    count_active_units,
    evidence,
    permutation_test,
    posterior_means,
    precision_shares,
    run_pass,
)
from m3ae.evaluation.probes import Judge, Probes, Problems
from m3ae.evaluation.report import LabelResult, LabelSummary, LatentReport, PriorResult, ProblemResult, SubsetResult
from m3ae.metrics.generation import WINDOW, joint_coherence, ssim, subset_probabilities, within_class_diversity
from m3ae.models.gaussians import subsets
from m3ae.models.generation import M3AEForGeneration
from m3ae.training.config import LatentEvaluationConfig

MISSING_RATES = tuple(round(0.1 * tenth, 1) for tenth in range(10))
Density = Literal["own", "fitted"]


class LatentEvaluator:
    """Measures a latent model on a split; probes and classifiers learn from training rows.

    Args:
        model: The model in evaluation mode.
        training: Batches of training rows.
        batches: Batches of the split, complete.
        options: The numbers of importance samples and of their rows, and the temperature of samples.
        seed: Seed of all noise and of the classifiers.
        problems: Problems of the training rows and of those of the split; None for no such probes.
    """

    def __init__(
        self,
        model: M3AEForGeneration,
        training: Iterable[Batch],
        batches: Iterable[Batch],
        options: LatentEvaluationConfig,
        seed: int = 0,
        problems: Problems | None = None,
    ) -> None:
        self.model, self.options, self.problems = model, options, problems
        self.generator = torch.Generator(model.device).manual_seed(seed)
        self.rows = Rows.of(model, batches)
        experts = np.array(model.latent.experts)
        self.members = subsets(len(experts))
        if condition := model.latent.condition:  # nothing teaches the other experts alone
            conditioned = torch.tensor([name in condition for name in experts])
            self.members = self.members[~(self.members & ~conditioned).any(1) | self.members.all(1)]
        self.subsets: list[list[str]] = [experts[members].tolist() for members in self.members.numpy()]
        self.seed, self.learnt = seed, Rows.of(model, training)
        learnt = self.learnt
        self.probes = []
        for given, means in zip(self.subsets, posterior_means(model, learnt.batches, self.subsets), strict=True):
            rows = learnt.having(given)
            classes = {label: numbers[rows] for label, numbers in learnt.classes.items()}
            self.probes.append(Probes(means[rows], classes, None if problems is None else problems.learnt[rows]))
            self.learnt_means = means  # the last subset is everything
        self.judge = Judge(learnt, self.rows, problems, seed)

    @property
    def densities(self) -> list[Density]:
        """The priors that the model is drawn from: none of `cvae`, whose z depends on the condition."""
        if self.model.latent.condition:
            return []
        return ["own"] if self.model.fitted_prior is None else ["own", "fitted"]

    @torch.no_grad()
    def evaluate(self) -> LatentReport:
        """Return the whole report, without texts."""
        model, rows, judge = self.model, self.rows, self.judge
        present = [number for number, given in enumerate(self.subsets) if len(rows.having(given))]
        progress = tqdm(present, desc="what is given", unit="subset", disable=None, leave=False)
        results = [self.measure_subset(number) for number in progress]
        everything, shown = np.arange(rows.count), judge.classes_shown(rows.values)
        (means,) = posterior_means(model, rows.batches, self.subsets[-1:])
        of_labels = {
            label: cluster(self.learnt_means, self.learnt.classes[label], means, classes, self.seed)
            for label, classes in rows.classes.items()
        }
        factors = None
        if rows.classes:
            learnt, judged = (np.stack([*split.classes.values()], 1) for split in (self.learnt, rows))
            factors = measure_factors(self.learnt_means, learnt, means, judged)
        return LatentReport(
            rows=rows.count,
            classifiers=judge.accuracy_on_real_data(shown),
            all_labels=judge.all_labels_right(shown, everything, rows.present),
            problems={} if self.problems is None else self.problems.shares(),
            problems_seen=judge.problems_seen(rows.values, everything, rows.present),
            subsets=results,
            summary=summarize(results),
            joint={density: self.measure_prior(density) for density in self.densities},
            active_units=count_active_units(model, rows),
            precision_shares=precision_shares(model, rows),
            permutation=permutation_test(model, rows, self.generator),
            missing_rate=missing_curve(results, self.members[present]),
            texts={},
            private_probes=probe_private(model, self.learnt, rows),
            clusters={label: result for label, result in of_labels.items() if result is not None},
            factors=factors,
        )

    def measure_subset(self, number: int) -> SubsetResult:
        """Return what a subset of the modalities tells, by its number in `subsets`."""
        given, rows, judge = self.subsets[number], self.rows, self.judge
        result = run_pass(self.model, rows, given, self.generator, self.options.temperature)
        shown = judge.classes_shown(result.samples)
        generated = {name: np.ones(rows.count, dtype=bool) for name in rows.present if name not in given}
        likelihoods = {name: nats[rows.present[name][result.rows]] for name, nats in result.log_likelihood.items()}
        ranked = ProblemResult()
        if self.problems is not None:
            targets = self.problems.judged[result.rows]
            ranked = self.probes[number].rank(result.latents, targets, self.problems.names)
        return SubsetResult(
            given=given,
            rows=len(result.rows),
            elbo=float(result.bound.mean()),
            kl=float(result.kl.mean()),
            log_likelihood={name: float(nats.mean()) for name, nats in likelihoods.items() if len(nats)},
            evidence=self._evidence(given),
            reconstruction=self._likeness(result, result.expected),
            reconstruction_of_a_sample=self._likeness(result, result.samples),
            ssim=self._structural_similarity(result),
            frechet=judge.frechet_distances(result.samples, result.rows),
            labels={label: self._label(label, result, shown[label], number) for label in rows.classes},
            all_labels=judge.all_labels_right(shown, result.rows, generated),
            problems=ranked,
            problems_seen=judge.problems_seen(result.samples, result.rows, generated),
            conditional=self._conditional(given),
            queries=query(self.model, rows, judge, given, self.generator, self.options.importance_rows),
            overlap=self._overlap(result, given),
        )

    def measure_prior(self, density: Density) -> PriorResult:
        """Return what as many samples of a prior show as the split has rows."""
        count, names = self.rows.count, list(self.rows.values)
        samples = self.model.sample_prior(count, density, names, self.options.temperature, self.generator)
        values = {name: value.cpu().numpy() for name, value in samples.items()}
        shown = self.judge.classes_shown(values).items()
        coherence = {label: joint_coherence(np.stack([*classes.values()])) for label, classes in shown if classes}
        result = PriorResult(coherence, self.judge.frechet_distances(values, np.arange(count)))
        if density != self.densities[-1]:  # that the model is drawn from in the end
            return result
        samples = self.model.sample_prior(MAX_VALUES, density, names, self.options.temperature, self.generator)
        for name in names:
            learnt, real = (distinct(split.values[name][split.having([name])]) for split in (self.learnt, self.rows))
            further, drawn = samples[name].cpu().numpy()[: len(learnt)], values[name][: len(real)]
            if min(len(learnt), len(real)) > 1:
                result.told_apart[name] = told_apart((learnt, further), (real, drawn), self.seed)
                result.nearness[name] = nearness(learnt, drawn, real)
        return result

    def _evidence(self, given: Sequence[str]) -> dict[str, float]:
        counts = self.options.importance_samples
        if not counts:
            return {}
        rows = self.rows.having(given)
        chosen = rows[evenly(len(rows), self.options.importance_rows)]
        sums = {str(count): 0.0 for count in counts}
        for batch in self.rows.select(chosen):
            for count, value in evidence(self.model, batch, given, counts, self.generator).items():
                sums[str(count)] += value * batch_size(batch) / len(chosen)
        return sums

    def _conditional(self, given: Sequence[str]) -> dict[str, float]:
        """Return by modality that is not given log p(x|given) = log p(x, given) − log p(given), in nats."""
        if not self.options.importance_samples:
            return {}
        count, likelihoods = max(self.options.importance_samples), {}
        for name in (name for name in self.rows.present if name not in given):
            rows = self.rows.having([*given, name])
            chosen, total = rows[evenly(len(rows), self.options.importance_rows)], 0.0
            for batch in self.rows.select(chosen):
                for sign, names in ((1, [*given, name]), (-1, given)):
                    some = {key: batch[key] for key in names}
                    mean = evidence(self.model, some, names, [count], self.generator)[count]
                    total += sign * mean * batch_size(batch) / len(chosen)
            if len(chosen):
                likelihoods[name] = total
        return likelihoods

    def _likeness(self, result: Pass, decoded: Mapping[str, Array]) -> dict[str, float]:
        likeness = {}
        for name, values in decoded.items():
            present = self.rows.present[name][result.rows]
            if present.sum() < 2:
                continue
            if name in self.rows.classes:
                right = values.argmax(-1) == self.rows.classes[name][result.rows]
                likeness[name] = float(right[present].mean())
            else:
                pair = (self.rows.values[name][result.rows], values)
                real, made = (array.reshape(len(array), -1)[present] for array in pair)
                likeness[name] = float(r2_score(real, made, multioutput="variance_weighted"))
        return likeness

    def _structural_similarity(self, result: Pass) -> dict[str, float]:
        similarity = {}
        for name in (name for name in self.rows.images if name in result.expected):
            present, expected = self.rows.present[name][result.rows], result.expected[name]
            if present.any() and min(expected.shape[-2:]) >= WINDOW:
                real = torch.from_numpy(self.rows.values[name][result.rows][present])
                similarity[name] = float(ssim(real, torch.from_numpy(expected[present]).clamp(0, 1)).mean())
        return similarity

    def _overlap(self, result: Pass, given: Sequence[str]) -> dict[str, OverlapResult]:
        overlap = {}
        for name in (name for name in self.rows.volumes if name not in given):
            present = self.rows.present[name][result.rows]
            if present.any():
                expected = result.expected[name][present]
                data = (result.rows[present], self.rows, self.learnt)
                overlap[name] = measure_overlap(name, expected, *data, given)
        return overlap

    def _label(self, label: str, result: Pass, shown: Mapping[str, Array], number: int) -> LabelResult:
        classes, given = self.rows.classes[label][result.rows], self.subsets[number]
        known = classes >= 0
        coherence, diversities = {}, {"diversity": dict[str, float](), "diversity_of_right": dict[str, float]()}
        for name, predicted in shown.items():
            right = predicted == classes
            coherence[name] = float(right[known].mean())
            if name in given:
                continue
            present = known & self.rows.present[name][result.rows]
            for key, mask in (("diversity", present), ("diversity_of_right", present & right)):
                if mask.sum() > len(np.unique(classes[mask])):
                    real = self.rows.values[name][result.rows][mask]
                    diversity = within_class_diversity(result.samples[name][mask], real, classes[mask])
                    diversities[key][name] = diversity
        probe = self.probes[number].accuracy(label, result.latents, classes)
        return LabelResult(coherence, **diversities, probe=probe)


def summarize(results: Sequence[SubsetResult]) -> dict[str, LabelSummary]:
    """Return by label what the subsets tell together."""
    summary = {}
    for label in results[0].labels:
        pairs = [(result.given, result.labels[label]) for result in results]
        largest = max(len(given) for given, _ in pairs)
        probes = [(len(given), result.probe) for given, result in pairs if result.probe is not None]
        single, whole = ([probe for size, probe in probes if size == wanted] for wanted in (1, largest))
        summary[label] = LabelSummary(
            one_to_one=_mean((given, result.coherence) for given, result in pairs if len(given) == 1),
            coherence={
                str(count): value
                for count in range(1, largest)
                if (value := _mean((g, result.coherence) for g, result in pairs if len(g) == count)) is not None
            },
            diversity=_mean((given, result.diversity) for given, result in pairs if len(given) == 1),
            diversity_of_right=_mean((given, result.diversity_of_right) for given, result in pairs if len(given) == 1),
            synergy=max(whole) - max(single) if largest > 1 and single and whole else None,
        )
    return summary


def _mean(results: Iterable[tuple[Sequence[str], Mapping[str, float]]]) -> float | None:
    """Return the mean of the finite values of modalities that are not given."""
    generated = [value for given, values in results for name, value in values.items() if name not in given]
    finite = [value for value in generated if np.isfinite(value)]
    return float(np.mean(finite)) if finite else None


def missing_curve(results: Sequence[SubsetResult], members: Tensor) -> dict[str, list[float]]:
    """Return what is expected where each modality is missing at some rate, but for a row's last one.

    Exact for rows that are complete: the mean of the subsets' results, each as often as it is left over.

    Args:
        results: Results of C subsets; the last one is everything.
        members: (C, M) bool, the modalities of these subsets.
    """
    weights = np.stack([subset_probabilities(members, rate).numpy() for rate in MISSING_RATES])  # (R, C)
    weights /= weights.sum(1, keepdims=True)
    whole = results[-1]
    columns: dict[str, list[float | None]] = {"elbo": [result.elbo for result in results]}
    for name in whole.reconstruction:
        columns[f"reconstruction of {name}"] = [result.reconstruction.get(name) for result in results]
    for label in whole.labels:
        columns[f"probe of {label}"] = [result.labels[label].probe for result in results]
    if whole.problems.auroc:
        columns["AUROC of the problems"] = [result.problems.macro_auroc for result in results]
    expected = {name: (weights @ np.array(values, dtype=np.float64)).tolist() for name, values in columns.items()}
    return {"rates": list(MISSING_RATES), **expected}
