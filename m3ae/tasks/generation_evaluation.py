"""The evaluation of a latent model: every subset of its modalities, its priors, and its latent space.

Shapes: N rows of the split, D shared latent dimensions, Z all of them.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any, Literal

import numpy as np
import torch
from sklearn.metrics import r2_score
from sklearn.pipeline import Pipeline

from m3ae.data.collate import Batch
from m3ae.data.samples import evenly
from m3ae.metrics.generation import (
    WINDOW,
    joint_coherence,
    ssim,
    subset_probabilities,
    within_class_diversity,
)
from m3ae.models import gaussians
from m3ae.models.generation import M3AEForGeneration
from m3ae.tasks.classifiers import linear_probe
from m3ae.tasks.latent_judge import Judge
from m3ae.tasks.latent_passes import (
    Array,
    Pass,
    Rows,
    evidence,
    permutation_test,
    posterior_means,
    run_pass,
)
from m3ae.tasks.latent_problems import ProblemProbes, Problems
from m3ae.training.task_config import GenerationConfig

MISSING_RATES = tuple(round(0.1 * tenth, 1) for tenth in range(10))
Density = Literal["own", "fitted"]


class GenerationEvaluator:
    """Measures a latent model on a split; probes and classifiers learn from training rows.

    Args:
        model: In evaluation mode.
        training: Yields batches of the training rows, anew at each call.
        batches: Of the split, complete.
        options: How many importance samples, and of how many rows.
        seed: Of all that is drawn, and of the classifiers.
        problems: Of the training rows and of those of the split; None for no such probes.
    """

    def __init__(
        self,
        model: M3AEForGeneration,
        training: Callable[[], Iterator[Batch]],
        batches: Iterator[Batch],
        options: GenerationConfig,
        seed: int = 0,
        problems: Problems | None = None,
    ) -> None:
        self.model, self.options, self.problems = model, options, problems
        self.generator = torch.Generator(model.device).manual_seed(seed)
        self.rows = Rows.of(model, batches)
        experts = model.latent.experts
        self.members = gaussians.subsets(len(experts))
        self.subsets = [
            [name for name, chosen in zip(experts, members, strict=True) if chosen]
            for members in self.members.tolist()
        ]
        modalities = model.latent_head.modalities
        self._images = [name for name in self.rows.values if modalities[name].is_image]
        learnt = Rows.of(model, training())
        latents = posterior_means(model, learnt.batches, self.subsets)
        self.probes: list[dict[str, Pipeline]] = [
            {
                label: linear_probe(own[valid], classes[valid])
                for label, classes in learnt.classes.items()
                if len(np.unique(classes[valid := learnt.known(given, classes)])) > 1  # or there is nothing to tell
            }
            for given, own in zip(self.subsets, latents, strict=True)
        ]
        self.problem_probes: list[ProblemProbes] = []
        if problems is not None:
            for given, own in zip(self.subsets, latents, strict=True):
                there = learnt.having(given)
                self.problem_probes.append(ProblemProbes(own[there], problems.learnt[there]))
        self.judge = Judge(learnt, self.rows, self._images, problems, seed)

    def evaluate(self) -> dict[str, Any]:
        """Return the whole report, as JSON has it; shares are fractions, likelihoods nats.

        `classifiers`: label → modality → accuracy on real data, and `all`, the share of rows that all of them know;
        `all_labels`: modality → `all_right` of its classifiers on real data, where there are several labels;
        `problems`: see `Problems.shares`; `problems_seen`: see `Judge.problems_seen`, of real images; `subsets`: see
        `measure_subset`; `summary`: see `summarize`; `joint`: see `measure_prior`; `active_units`,
        `precision_shares`, `permutation`: of the posterior given everything; `missing_rate`: see `missing_curve`.
        """
        with torch.no_grad():
            present = [number for number, given in enumerate(self.subsets) if len(self.rows.having(given))]
            subsets = [self.measure_subset(number) for number in present]
            everything, shown = np.arange(self.rows.count), self.judge.classes_shown(self.rows.values)
            return {
                "rows": len(everything),
                "classifiers": self.judge.accuracy_on_real_data(shown),
                "all_labels": self.judge.all_labels_right(shown, everything, self.rows.present),
                "problems": {} if self.problems is None else self.problems.shares(),
                "problems_seen": self.judge.problems_seen(self.rows.values, everything, self.rows.present),
                "subsets": subsets,
                "summary": summarize(subsets),
                "joint": {density: self.measure_prior(density) for density in self.densities},
                "active_units": self.count_active_units(),
                "precision_shares": self.precision_shares(),
                "permutation": permutation_test(self.model, self.rows, self.generator),
                "missing_rate": missing_curve(subsets, self.members[present]),
            }

    @property
    def densities(self) -> list[Density]:
        """The priors that the model has."""
        return ["own"] if self.model.fitted_prior is None else ["own", "fitted"]

    def measure_subset(self, number: int) -> dict[str, Any]:
        """Return what a subset of the modalities tells.

        `given`; `rows` that have it; `elbo` on all modalities and its `kl`; `log_likelihood` of each; `evidence` by
        number of importance samples; `reconstruction` of each modality from the mean of z: R² (pooled over elements),
        or accuracy of a label; `reconstruction_of_a_sample` of z; `ssim` and `frechet` of images from the mean, and
        from a sample; by label `probe`, the accuracy of a linear probe of the mean of z, `coherence`, the share of
        samples of each modality that show the right class, `diversity`, see `within_class_diversity`, of those
        modalities that are not given, and `diversity_of_right`, of the samples that show the right class; `all_labels`
        of each modality that is not given, where there are several labels, see `all_right`; `problems`, see
        `ProblemProbes.judge`; `problems_seen`, see `Judge.problems_seen`, in images that are not given.
        """
        given, model = self.subsets[number], self.model
        found = run_pass(model, self.rows, given, self.generator, self.options.temperature)
        result: dict[str, Any] = {
            "given": given,
            "rows": len(found.rows),
            "elbo": float(found.bound.mean()),
            "kl": float(found.kl.mean()),
            "log_likelihood": {
                name: float(own[self.rows.present[name][found.rows]].mean())
                for name, own in found.log_likelihood.items()
                if self.rows.present[name][found.rows].any()
            },
            "evidence": self._evidence(given),
            "reconstruction": self._likeness(found, found.expected),
            "reconstruction_of_a_sample": self._likeness(found, found.drawn),
            **self._image_metrics(found),
        }
        shown = self.judge.classes_shown(found.drawn)
        kinds = {label: self._coherence(label, found, shown[label], number) for label in self.rows.classes}
        problems: dict[str, Any] = {}
        if self.problems is not None:
            targets = self.problems.judged[found.rows]
            problems = self.problem_probes[number].judge(found.latents, targets, self.problems.names)
        new = {
            name: np.ones(len(present), dtype=bool) for name, present in self.rows.present.items() if name not in given
        }
        all_labels = self.judge.all_labels_right(shown, found.rows, new)
        seen = self.judge.problems_seen(found.drawn, found.rows, new)
        return result | {"labels": kinds, "all_labels": all_labels, "problems": problems, "problems_seen": seen}

    def measure_prior(self, density: Density) -> dict[str, Any]:
        """Return the joint coherence of as many samples of a prior as there are rows, and Fréchet distances.

        `coherence` by label: the share whose modalities all show one class; `frechet` by modality, of images.
        """
        count, names = self.rows.count, list(self.rows.values)
        drawn = self.model.sample_prior(count, density, names, self.options.temperature, self.generator)
        values = {name: value.cpu().numpy() for name, value in drawn.items()}
        coherence = {
            label: joint_coherence(np.stack([*shown.values()]))
            for label, shown in self.judge.classes_shown(values).items()
            if shown
        }
        return {"coherence": coherence, "frechet": self.judge.frechet_distances(values, np.arange(count))}

    def count_active_units(self) -> dict[str, list[int]]:
        """Return how many latent dimensions are active (Burda et al. 2016), and how many there are."""
        means = []
        for batch in self.rows.batches:
            available = {name: batch[name] for name in self.model.latent.experts}
            q = self.model.infer_latent(_moved(available, self.model), joint=True).mixture
            means.append((q.weights[..., None] * q.components.mu).sum(0).cpu())
        active = gaussians.active_units(torch.cat(means))
        own = self.model.latent_head.private_dimensions
        parts = {"shared": slice(0, self.model.latent.size)}
        parts |= {name: part for name, part in own.items() if part.stop > part.start}
        return {name: [int(active[part].sum()), len(active[part])] for name, part in parts.items()}

    def precision_shares(self) -> dict[str, float]:
        """Return the mean share of the prior and of each expert in the precision of z given everything."""
        parts = [
            self.model.precision_shares(_moved({name: batch[name] for name in self.model.latent.experts}, self.model))
            for batch in self.rows.batches
        ]
        return {name: float(torch.cat([part[name] for part in parts]).mean()) for name in parts[0]}

    def _evidence(self, given: Sequence[str]) -> dict[str, float]:
        counts = self.options.importance_samples
        if not counts:
            return {}
        rows = self.rows.having(given)
        chosen = rows[evenly(len(rows), self.options.importance_rows)]
        sums = {str(count): 0.0 for count in counts}
        for part in self.rows.parts(chosen):
            size = len(next(iter(part.values()))["present"])
            for count, value in evidence(self.model, part, given, counts, self.generator).items():
                sums[str(count)] += value * size / len(chosen)
        return sums

    def _likeness(self, found: Pass, decoded: Mapping[str, Array]) -> dict[str, float]:
        likeness = {}
        for name, own in decoded.items():
            valid = self.rows.present[name][found.rows]
            if valid.sum() < 2:
                continue
            if name in self.rows.classes:
                right = own.argmax(-1) == self.rows.classes[name][found.rows]
                likeness[name] = float(right[valid].mean())
            else:
                real, made = (part.reshape(len(part), -1)[valid] for part in (self.rows.values[name][found.rows], own))
                likeness[name] = float(r2_score(real, made, multioutput="variance_weighted"))
        return likeness

    def _image_metrics(self, found: Pass) -> dict[str, dict[str, float]]:
        similarity, images = {}, self._images
        for name in images:
            valid = self.rows.present[name][found.rows]
            if valid.any() and min(found.expected[name].shape[-2:]) >= WINDOW:
                real, made = (
                    torch.from_numpy(part[valid])
                    for part in (self.rows.values[name][found.rows], found.expected[name])
                )
                similarity[name] = float(ssim(real, made.clamp(0, 1)).mean())
        return {"ssim": similarity, "frechet": self.judge.frechet_distances(found.drawn, found.rows)}

    def _coherence(self, label: str, found: Pass, shown: Mapping[str, Array], number: int) -> dict[str, Any]:
        classes = self.rows.classes[label][found.rows]
        known, given = classes >= 0, self.subsets[number]
        result: dict[str, Any] = {"coherence": {}, "diversity": {}, "diversity_of_right": {}}
        if label in self.probes[number] and known.any():
            result["probe"] = float(self.probes[number][label].score(found.latents[known], classes[known]))
        for name, own in shown.items():
            right = own == classes
            result["coherence"][name] = float(right[known].mean())
            if name in given:
                continue
            there = known & self.rows.present[name][found.rows]
            for key, chosen in (("diversity", there), ("diversity_of_right", there & right)):
                if chosen.sum() > len(np.unique(classes[chosen])):
                    real = self.rows.values[name][found.rows][chosen]
                    result[key][name] = within_class_diversity(found.drawn[name][chosen], real, classes[chosen])
        return result


def summarize(subsets: Sequence[Mapping[str, Any]]) -> dict[str, dict[str, float]]:
    """Return by label what the subsets say together.

    `one_to_one` and `two_to_one`: coherence with a modality that is not given, averaged over all such ways; so
    `diversity` and `diversity_of_right`, of one → one; `synergy`: the probe of everything minus the best single one.
    """
    summary: dict[str, dict[str, float]] = {}
    for label in subsets[0]["labels"]:
        own = [(entry["given"], entry["labels"][label]) for entry in subsets]

        def mean(size: int, key: str, own: Sequence[tuple[list[str], Mapping[str, Any]]] = own) -> float | None:
            values = [
                value
                for given, found in own
                if len(given) == size
                for name, value in found[key].items()
                if name not in given and np.isfinite(value)
            ]
            return float(np.mean(values)) if values else None

        ways = {"one_to_one": (1, "coherence"), "two_to_one": (2, "coherence")}
        ways |= {name: (1, name) for name in ("diversity", "diversity_of_right")}
        means = {name: mean(*way) for name, way in ways.items()}
        largest = max(len(given) for given, _ in own)
        probes = [(len(given), found["probe"]) for given, found in own if "probe" in found]
        single, whole = ([value for size, value in probes if size == wanted] for wanted in (1, largest))
        if largest > 1 and single and whole:
            means["synergy"] = max(whole) - max(single)
        summary[label] = {name: value for name, value in means.items() if value is not None}
    return summary


def missing_curve(subsets: Sequence[Mapping[str, Any]], members: torch.Tensor) -> dict[str, Any]:
    """Return what is expected where each modality is missing at some rate, but for a row's last one.

    Exact for rows that are complete: the mean of the subsets' results, each as often as it is left over.

    Args:
        subsets: From `GenerationEvaluator.measure_subset`.
        members: (C, M) bool, of the same subsets.
    """
    curves: dict[str, Any] = {"rates": list(MISSING_RATES)}
    weights = np.stack([subset_probabilities(members, rate).numpy() for rate in MISSING_RATES])  # (R, C)
    weights /= weights.sum(1, keepdims=True)
    columns = {"elbo": [entry["elbo"] for entry in subsets]}
    for name in subsets[-1]["reconstruction"]:
        columns[f"reconstruction of {name}"] = [entry["reconstruction"].get(name, np.nan) for entry in subsets]
    for label in subsets[-1]["labels"]:
        columns[f"probe of {label}"] = [entry["labels"][label].get("probe", np.nan) for entry in subsets]
    if subsets[-1]["problems"]:
        columns["AUROC of the problems"] = [entry["problems"]["macro_auroc"] for entry in subsets]
    return curves | {name: (weights @ np.array(values)).tolist() for name, values in columns.items()}


def _moved(available: Batch, model: M3AEForGeneration) -> Batch:
    return {name: {key: value.to(model.device) for key, value in part.items()} for name, part in available.items()}
