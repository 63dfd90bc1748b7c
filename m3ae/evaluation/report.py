"""The report of a latent model: typed results, their JSON, and the metrics that are printed.

Likelihoods, bounds and KLs are in nats, everything else is a share unless a field says otherwise. In JSON, a field
that has a default is left out where it was not measured, and a number that is not finite is null.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated

from pydantic import BeforeValidator, TypeAdapter

Number = Annotated[float, BeforeValidator(lambda value: math.nan if value is None else value)]


@dataclass(frozen=True)
class LabelResult:
    """What some modalities tell of a label.

    Attributes:
        coherence: Modality → share of its samples that show the right class.
        diversity: Modality that is not given → `within_class_diversity` of its samples.
        diversity_of_right: The diversity of those samples alone that show the right class.
        probe: Accuracy of a linear probe of the mean of z.
    """

    coherence: dict[str, Number]
    diversity: dict[str, Number]
    diversity_of_right: dict[str, Number]
    probe: Number | None = None


@dataclass(frozen=True)
class LabelSummary:
    """What the subsets tell of a label together.

    Attributes:
        one_to_one: Coherence with a modality that is not given, averaged over all ways from one modality.
        two_to_one: Coherence with a modality that is not given, averaged over all ways from two modalities.
        diversity: Diversity, averaged over all ways from one modality.
        diversity_of_right: Diversity of the samples of the right class, averaged over all ways from one modality.
        synergy: Accuracy of the probe of everything minus that of the best single modality.
    """

    one_to_one: Number | None = None
    two_to_one: Number | None = None
    diversity: Number | None = None
    diversity_of_right: Number | None = None
    synergy: Number | None = None


@dataclass(frozen=True)
class ProblemResult:
    """Areas under the ROC curve of linear probes of z, by problem, and their mean over the problems that have one."""

    auroc: dict[str, Number] = field(default_factory=dict)
    macro_auroc: Number | None = None


@dataclass(frozen=True)
class SubsetResult:
    """What a subset of the modalities tells.

    Attributes:
        given: Names of the modalities.
        rows: Number of the rows that have them.
        elbo: Evidence lower bound on all modalities.
        kl: KL of the bound.
        log_likelihood: Modality → log p(x|z).
        evidence: Number of importance samples → estimate of log p(all modalities).
        reconstruction: Modality → R² of what the mean of z gives, pooled over elements, or accuracy of a label.
        reconstruction_of_a_sample: Modality → the same of what a sample of z gives.
        ssim: Image → structural similarity of what the mean of z gives.
        frechet: Image → Fréchet distance of samples, in units of a classifier's features.
        labels: Label → what is told of it.
        all_labels: Modality that is not given → `all_right` of its samples, where there are several labels.
        problems: Probes of the problems.
        problems_seen: Image that is not given → macro AUROC of the problems that a classifier sees in its samples.
    """

    given: list[str]
    rows: int
    elbo: Number
    kl: Number
    log_likelihood: dict[str, Number]
    evidence: dict[str, Number]
    reconstruction: dict[str, Number]
    reconstruction_of_a_sample: dict[str, Number]
    ssim: dict[str, Number]
    frechet: dict[str, Number]
    labels: dict[str, LabelResult]
    all_labels: dict[str, list[Number]]
    problems: ProblemResult
    problems_seen: dict[str, Number]


@dataclass(frozen=True)
class PriorResult:
    """What samples of a prior show.

    Attributes:
        coherence: Label → share of the samples whose modalities all show one class.
        frechet: Image → Fréchet distance to real images, in units of a classifier's features.
    """

    coherence: dict[str, Number]
    frechet: dict[str, Number]


@dataclass(frozen=True)
class PermutationResult:
    """Nats of log p(x|z) that a modality loses with another row's z, and with another row's private latents.

    0 says that the decoder does not use them.
    """

    shared: Number
    private: Number


@dataclass(frozen=True)
class TextResult:
    """How good texts are.

    Attributes:
        given: Names of the modalities that the texts were written from.
        bleu_1: `text_metrics`, as are all up to `distinct`.
        bleu_2: BLEU of pairs of words.
        bleu_3: BLEU of three words.
        bleu_4: BLEU of four words.
        exact: Share of texts that equal a reference.
        distinct: Share of texts that differ from each other.
        macro_f1: F1 of the problems that a classifier of real texts finds in them, averaged over problems.
        micro_f1: F1 of all decisions on problems.
        labels: Label → share of texts that name the right class and no other.
        all_labels: `all_right` of these labels.
    """

    given: list[str] | None = None
    bleu_1: Number | None = None
    bleu_2: Number | None = None
    bleu_3: Number | None = None
    bleu_4: Number | None = None
    exact: Number | None = None
    distinct: Number | None = None
    macro_f1: Number | None = None
    micro_f1: Number | None = None
    labels: dict[str, Number] | None = None
    all_labels: list[Number] | None = None


@dataclass(frozen=True)
class TextReport:
    """The texts of a modality.

    Attributes:
        rows: Number of the rows that texts were written for.
        generated: Texts written for nothing, for each subset without the modality, and for everything.
        shuffled: Other rows' texts.
        real: The rows' own texts: what the classifiers of texts can reach.
        joint: Prior → `all_right` of the labels that a text and all modalities sampled with it agree in.
    """

    rows: int
    generated: list[TextResult]
    shuffled: TextResult
    real: TextResult
    joint: dict[str, list[Number]] | None = None


@dataclass(frozen=True)
class LatentReport:
    """What a latent model is worth on a split.

    Attributes:
        rows: Number of rows.
        classifiers: Label → modality → accuracy of its classifier on real data; `all` is the share of complete rows
            that all of them get right.
        all_labels: Modality → `all_right` of its classifiers on real data, where there are several labels.
        problems: Problem → share of the rows that have it.
        problems_seen: Image → macro AUROC of the problems that its classifier sees in real images.
        subsets: Each subset of the modalities that some row has; the last one is everything.
        summary: Label → what the subsets tell of it together.
        joint: Prior → what its samples show.
        active_units: Latent dimensions given everything, `shared` and by modality: active ones, and all.
        precision_shares: Expert, or the prior → its mean share in the precision of z given everything.
        permutation: Modality → its loss with other rows' latents.
        missing_rate: `rates`, and what is expected at each of them, see `missing_curve`.
        texts: Modality → its texts.
    """

    rows: int
    classifiers: dict[str, dict[str, Number]]
    all_labels: dict[str, list[Number]]
    problems: dict[str, Number]
    problems_seen: dict[str, Number]
    subsets: list[SubsetResult]
    summary: dict[str, LabelSummary]
    joint: dict[str, PriorResult]
    active_units: dict[str, tuple[int, int]]
    precision_shares: dict[str, Number]
    permutation: dict[str, PermutationResult]
    missing_rate: dict[str, list[Number]]
    texts: dict[str, TextReport]

    @classmethod
    def read(cls, path: Path) -> LatentReport:
        """Read `latent.json`."""
        return _ADAPTER.validate_json(path.read_bytes())

    def to_json(self) -> str:
        """Return all of it."""
        return _ADAPTER.dump_json(self, indent=2, exclude_defaults=True).decode() + "\n"

    def main_metrics(self) -> dict[str, float]:
        """Return what is printed and logged, one number for each name."""
        whole = self.subsets[-1]
        metrics: dict[str, float | None] = {"elbo": whole.elbo, "kl": whole.kl}
        metrics |= {f"reconstruction_{name}": value for name, value in whole.reconstruction.items()}
        for label, summary in self.summary.items():
            values = {f"probe_{'+'.join(subset.given)}": subset.labels[label].probe for subset in self.subsets}
            values |= vars(summary)
            values |= {f"joint_{density}": prior.coherence.get(label) for density, prior in self.joint.items()}
            metrics |= {f"{label}_{name}": value for name, value in measured(values).items()}
        for title, shares in self.all_labels_rows():
            metrics[f"all_labels_{title.replace(' + ', '+').replace('→', 'to').replace(' ', '_')}"] = shares[-1]
        for subset in self.subsets if self.problems else []:
            name = f"macro_auroc_{'+'.join(subset.given)}"
            metrics |= {name: subset.problems.macro_auroc}
            metrics |= {f"{name}_seen_in_{image}": area for image, area in subset.problems_seen.items()}
        for name, report in self.texts.items():
            for texts in report.generated:
                source = "+".join(texts.given or []) or "nothing"
                shown = {"bleu_4": texts.bleu_4, "macro_f1": texts.macro_f1}
                metrics |= measured({f"{name}_{metric}_{source}": value for metric, value in shown.items()})
        return {name: math.nan if value is None else value for name, value in metrics.items()}

    def all_labels_rows(self) -> list[tuple[str, list[float]]]:
        """Return the `all_right` of everything that shows several labels at once, under a title."""
        rows = [
            (f"{title_of(s.given)} → {name}", shares) for s in self.subsets for name, shares in s.all_labels.items()
        ]
        for name, report in self.texts.items():
            generated = [t for t in report.generated if name not in (t.given or ()) and t.all_labels]
            rows += [(f"{title_of(texts.given)} → {name}", texts.all_labels or []) for texts in generated]
            joint = (report.joint or {}).items()
            rows += [(f"{density} prior → everything with {name}", shares) for density, shares in joint]
            if generated:
                rows.append((f"real {name}", report.real.all_labels or []))
        return [(title, shares) for title, shares in rows if len(shares) > 1]


_ADAPTER = TypeAdapter(LatentReport)


def title_of(given: Sequence[str] | None) -> str:
    """Return what stands for a subset of the modalities in tables."""
    return " + ".join(given or []) or "nothing"


def measured(values: Mapping[str, float | None]) -> dict[str, float]:
    """Return the values that are not None."""
    return {name: value for name, value in values.items() if value is not None}
