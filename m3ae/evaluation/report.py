"""The report of a latent model: typed results, and their JSON, tables and printed metrics.

Likelihoods, bounds and KLs are in nats, everything else is a share unless a field says otherwise. In JSON, a field
that has a default is left out where it was not measured, and a number that is not finite is null.
"""

from __future__ import annotations

import json
import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from pydantic import TypeAdapter

from m3ae.evaluation.overlap import HEADERS, Number, OverlapResult, overlap_metrics, overlap_rows
from m3ae.evaluation.tables import table
from m3ae.files import write_text

JSON, MARKDOWN, TEXTS = "latent.json", "latent.md", "generated.jsonl"


@dataclass(frozen=True)
class LabelResult:
    """What some modalities tell of a label."""

    coherence: dict[str, Number]  # modality → share of its samples that show the right class
    diversity: dict[str, Number]  # modality that is not given → `within_class_diversity` of its samples
    diversity_of_right: dict[str, Number]  # the diversity of those samples that show the right class
    probe: Number | None = None  # accuracy of a linear probe of the mean of z


@dataclass(frozen=True)
class LabelSummary:
    """What the subsets tell of a label together: means over all ways to a modality that is not given."""

    one_to_one: Number | None = None  # coherence, from one modality
    coherence: dict[str, Number] = field(default_factory=dict)  # number of modalities that it is from → coherence
    diversity: Number | None = None  # from one modality
    diversity_of_right: Number | None = None  # from one modality
    synergy: Number | None = None  # accuracy of the probe of everything minus that of the best single modality


@dataclass(frozen=True)
class ProblemResult:
    """Areas under the ROC curve of linear probes of z, by problem, and their mean over the problems that have one."""

    auroc: dict[str, Number] = field(default_factory=dict)
    macro_auroc: Number | None = None


@dataclass(frozen=True)
class QueryResult:
    """What is drawn from labels alone shows of them, 10 draws a query (Vedantam et al. 2018)."""

    queries: int  # number of different ones
    correctness: Number  # `correctness` of the labels that are given
    coverage: Number | None = None  # `coverage` of the labels that are not


@dataclass(frozen=True)
class ClusterResult:
    """k-means of the means of z given everything, learnt and named after classes on training rows."""

    accuracy: Number
    nmi: Number  # normalised mutual information


@dataclass(frozen=True)
class FactorResult:
    """What single dimensions of z tell of several labels, given everything; see `m3ae.metrics.disentanglement`."""

    mig: Number
    disentanglement: Number
    completeness: Number
    informativeness: Number


@dataclass(frozen=True)
class SubsetResult:
    """What a subset of the modalities tells."""

    given: list[str]  # names of the modalities
    rows: int  # number of the rows that have them
    elbo: Number  # evidence lower bound on all modalities, β = 1
    kl: Number
    log_likelihood: dict[str, Number]  # modality → log p(x|z)
    evidence: dict[str, Number]  # number of importance samples → estimate of log p(all modalities)
    reconstruction: dict[str, Number]  # modality → R² from the mean of z, pooled over elements; of a label, accuracy
    reconstruction_of_a_sample: dict[str, Number]  # the same from a sample of z
    ssim: dict[str, Number]  # image → structural similarity from the mean of z
    frechet: dict[str, Number]  # image → Fréchet distance of samples in the features of a classifier
    labels: dict[str, LabelResult]
    all_labels: dict[str, list[Number]]  # modality that is not given → `all_right` of samples; of several labels
    problems: ProblemResult
    problems_seen: dict[str, Number]  # image that is not given → macro AUROC of what a classifier sees in samples
    conditional: dict[str, Number] = field(default_factory=dict)  # modality that is not given → log p(x|given)
    queries: dict[str, QueryResult] = field(default_factory=dict)  # by modality, if only labels are given
    overlap: dict[str, OverlapResult] = field(default_factory=dict)  # by volume that is not given


@dataclass(frozen=True)
class PriorResult:
    """What samples of a prior show."""

    coherence: dict[str, Number]  # label → share of the samples whose modalities all show one class
    frechet: dict[str, Number]  # image → Fréchet distance to real images
    told_apart: dict[str, Number] = field(default_factory=dict)  # modality → see `m3ae.evaluation.draws`
    nearness: dict[str, Number] = field(default_factory=dict)  # the same


@dataclass(frozen=True)
class PermutationResult:
    """Nats of log p(x|z) that a modality loses with another row's latents; 0 says that the decoder ignores them."""

    shared: Number  # z of another row
    private: Number  # private latents of another row


@dataclass(frozen=True)
class TextResult:
    """How good texts are."""

    given: list[str] | None = None  # names of the modalities that they were written from
    bleu_1: Number | None = None  # see `text_metrics`, up to `distinct`
    bleu_2: Number | None = None
    bleu_3: Number | None = None
    bleu_4: Number | None = None
    exact: Number | None = None
    distinct: Number | None = None
    macro_f1: Number | None = None  # of the problems that a classifier of real texts finds in them
    micro_f1: Number | None = None
    labels: dict[str, Number] | None = None  # label → share of texts that name the right class and no other
    all_labels: list[Number] | None = None  # `all_right` of these labels


@dataclass(frozen=True)
class TextReport:
    """The texts of a modality."""

    rows: int  # number of the rows that texts were written for
    generated: list[TextResult]  # for nothing, for each subset without the modality, and for everything
    shuffled: TextResult  # other rows' texts
    real: TextResult  # the rows' own texts: what the classifiers can reach
    joint: dict[str, list[Number]] | None = None  # prior → `all_right` of the labels that everything sampled agrees in


@dataclass(frozen=True)
class LatentReport:
    """What a latent model is worth on a split."""

    rows: int
    classifiers: dict[str, dict[str, Number]]  # label → modality → accuracy on real data, see `Judge`
    all_labels: dict[str, list[Number]]  # modality → `all_right` of its classifiers on real data, of several labels
    problems: dict[str, Number]  # problem → share of the rows that have it
    problems_seen: dict[str, Number]  # image → macro AUROC of what its classifier sees in real images
    subsets: list[SubsetResult]  # that some row has; the last one is everything
    summary: dict[str, LabelSummary]  # by label
    joint: dict[str, PriorResult]  # by prior
    active_units: dict[str, tuple[int, int]]  # `shared` or modality → active and all latent dimensions
    precision_shares: dict[str, Number]  # expert, or the prior → mean share in the precision of z given everything
    permutation: dict[str, PermutationResult]  # by modality
    missing_rate: dict[str, list[Number]]  # `rates`, and what is expected at each of them, see `missing_curve`
    texts: dict[str, TextReport]  # by modality
    private_probes: dict[str, dict[str, Number]] = field(default_factory=dict)  # label → modality → accuracy
    clusters: dict[str, ClusterResult] = field(default_factory=dict)  # by label
    factors: FactorResult | None = None

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
        metrics |= overlap_metrics(self.subsets)
        for label, summary in self.summary.items():
            values = {f"probe_{'+'.join(subset.given)}": subset.labels[label].probe for subset in self.subsets}
            values |= {name: value for name, value in vars(summary).items() if name != "coherence"}
            values |= {f"coherence_from_{count}": value for count, value in summary.coherence.items()}
            values |= {f"joint_{density}": prior.coherence.get(label) for density, prior in self.joint.items()}
            metrics |= {f"{label}_{name}": value for name, value in _measured(values).items()}
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
                metrics |= _measured({f"{name}_{metric}_{source}": value for metric, value in shown.items()})
        return {name: math.nan if value is None else value for name, value in metrics.items()}

    def all_labels_rows(self) -> list[tuple[str, list[float]]]:
        """Return the `all_right` of everything that shows several labels at once, under a title."""
        rows = [(f"{_title(s.given)} → {name}", shares) for s in self.subsets for name, shares in s.all_labels.items()]
        for name, report in self.texts.items():
            generated = [t for t in report.generated if name not in (t.given or ()) and t.all_labels]
            rows += [(f"{_title(texts.given)} → {name}", texts.all_labels or []) for texts in generated]
            joint = (report.joint or {}).items()
            rows += [(f"{density} prior → everything with {name}", shares) for density, shares in joint]
            if generated:
                rows.append((f"real {name}", report.real.all_labels or []))
        return [(title, shares) for title, shares in rows if len(shares) > 1]


_ADAPTER = TypeAdapter(LatentReport)


def _title(given: Sequence[str] | None) -> str:
    return " + ".join(given or []) or "nothing"


def _measured(values: Mapping[str, float | None]) -> dict[str, float]:
    return {name: value for name, value in values.items() if value is not None}


def write_report(folder: Path, title: str, report: LatentReport, lines: Sequence[Mapping[str, Any]] = ()) -> None:
    """Write the files of a report, and lines of the texts that were written for it, into an existing folder."""
    if lines:
        write_text(folder / TEXTS, "".join(json.dumps(line, ensure_ascii=False) + "\n" for line in lines))
    write_text(folder / MARKDOWN, markdown_report(title, report))
    write_text(folder / JSON, report.to_json())  # last: where it is, the rest is


def markdown_report(title: str, report: LatentReport) -> str:
    """Lay out a report as Markdown tables; shares in percent, likelihoods in nats."""
    explained = f"{report.rows:,} rows. Likelihoods and KL in nats a row, the rest in percent."
    blocks = [f"# {title}", explained, "## What each subset of the modalities tells", _subset_table(report)]
    for name, lines in overlap_rows(report.subsets).items():
        blocks += [f"## Overlap of {name}", table(HEADERS, lines)]
    for label in report.summary:
        blocks += _label_section(label, report)
    blocks += _all_labels_section(report)
    if report.problems:
        blocks += _problem_section(report)
    for name, texts in report.texts.items():
        blocks += _text_section(name, texts)
    return "\n\n".join([*blocks, *_query_section(report), *_factor_section(report), *_latent_section(report)]) + "\n"


def _subset_table(report: LatentReport) -> str:
    whole = report.subsets[-1]
    conditional = dict.fromkeys(name for subset in report.subsets for name in subset.conditional)
    headers = [
        *("given", "ELBO", "KL", *(f"log p, K = {count}" for count in whole.evidence)),
        *(f"{name}: {'accuracy' if name in report.summary else 'R²'}" for name in whole.reconstruction),
        *(f"log p of {name}, given" for name in conditional),
        *(f"{name}: SSIM" for name in whole.ssim),
        *(f"{name}: Fréchet" for name in whole.frechet),  # none without a label or problems
    ]
    rows = [
        [
            *(_title(subset.given), f"{subset.elbo:.1f}", f"{subset.kl:.1f}"),
            *(f"{subset.evidence[count]:.1f}" for count in whole.evidence),
            *_percents(subset.reconstruction, whole.reconstruction),
            *(_number(subset.conditional.get(name)) for name in conditional),
            *_percents(subset.ssim, whole.ssim),
            *(_number(subset.frechet.get(name)) for name in whole.frechet),
        ]
        for subset in report.subsets
    ]
    return table(headers, rows)


def _label_section(label: str, report: LatentReport) -> list[str]:
    accuracies = report.classifiers[label]
    classified = [name for name in accuracies if name != "all"]
    shown, varied = ([f"{name}{title}" for name in classified] for title in (" shows it", ": diversity"))
    results = [(_title(subset.given), subset.labels[label]) for subset in report.subsets]
    rows = []
    for title, result in results:
        shares = [*_percents(result.coherence, classified), *_percents(result.diversity, classified)]
        rows.append([title, _percent(result.probe), *shares])
    rows.append(["real data", "", *_percents(accuracies, classified), *["100.0"] * len(classified)])
    summary = report.summary[label]
    facts = {
        "one → one coherence": summary.one_to_one,
        **{f"coherence from {count} modalities": value for count, value in summary.coherence.items()},
        "within-class diversity of one → one": summary.diversity,
        "the same, of those of the right class": summary.diversity_of_right,
        "probe: everything minus the best single modality": summary.synergy,
    }
    for name, prior in report.joint.items():
        facts[f"joint coherence from the {name} prior"] = prior.coherence.get(label)
    facts |= {f"probe of the private latent of {n}": v for n, v in report.private_probes.get(label, {}).items()}
    if label in report.clusters:
        clusters = report.clusters[label]
        facts |= {"clusters of z: accuracy": clusters.accuracy, "clusters of z: mutual information": clusters.nmi}
    facts["all classifiers right on real rows"] = accuracies["all"]
    lines = [[name, _percent(value)] for name, value in _measured(facts).items()]
    return [f"## {label}", table(["given", "probe", *shown, *varied], rows), table(["", "%"], lines)]


def _all_labels_section(report: LatentReport) -> list[str]:
    rows = report.all_labels_rows()
    if not rows:
        return []
    counts = range(1, 1 + max(len(shares) for _, shares in rows))
    rows += [(f"real {name}, classified", shares) for name, shares in report.all_labels.items()]
    lines = [[title, *map(_percent, shares)] for title, shares in rows]
    explained = "k labels are drawn at random. A text shows a class if it names that one and no other."
    headers = ["k labels, all of them right; k =", *map(str, counts)]
    return ["## Several labels at once", explained, table(headers, lines)]


def _problem_section(report: LatentReport) -> list[str]:
    subsets = report.subsets
    rows = [["macro", "", *(_percent(subset.problems.macro_auroc) for subset in subsets)]]
    for name, share in report.problems.items():
        rows.append([name, _percent(share), *(_percent(subset.problems.auroc[name]) for subset in subsets)])
    explained = "Area under the ROC curve of linear probes of z, learnt from training rows; 50 is a guess."
    headers = ["problem", "of the rows", *(_title(subset.given) for subset in subsets)]
    blocks = ["## Problems", explained, table(headers, rows)]
    if images := list(report.problems_seen):
        seen = [(_title(subset.given), subset.problems_seen) for subset in subsets if subset.problems_seen]
        lines = [[title, *_percents(areas, images)] for title, areas in [*seen, ("real images", report.problems_seen)]]
        explained = "What a classifier of real images sees of them in images drawn from what is given: macro average."
        blocks += [explained, table(["given", *images], lines)]
    return blocks


def _text_section(name: str, report: TextReport) -> list[str]:
    titles = {f"bleu_{order}": f"BLEU-{order}" for order in (1, 2, 3, 4)}
    titles |= {"exact": "equal", "distinct": "distinct", "macro_f1": "F1, macro", "micro_f1": "F1, micro"}
    columns = [metric for metric in titles if vars(report.shuffled)[metric] is not None]
    results = [(_title(texts.given), texts) for texts in report.generated]
    results.append(("another row's text", report.shuffled))
    explained = f"Written from the mean of z for {report.rows:,} rows that have every modality."
    if report.real != TextResult():
        results.append(("the row's own text", report.real))
        explained += " F1 is of the problems that a classifier of real texts finds."
    rows = [[title, *_percents(vars(texts), columns)] for title, texts in results]
    return [f"## {name}", explained, table(["given", *(titles[metric] for metric in columns)], rows)]


def _query_section(report: LatentReport) -> list[str]:
    rows = [
        [f"{_title(subset.given)} → {name}", f"{query.queries}", _percent(query.correctness), _percent(query.coverage)]
        for subset in report.subsets
        for name, query in subset.queries.items()
    ]
    explained = "10 draws a query. Of these, even a perfect sampler covers 99 % of two classes and 84 % of ten."
    lines = table(["given → drawn", "queries", "correctness", "coverage of other labels"], rows)
    return ["## Drawn from labels alone", explained, lines] if rows else []


def _factor_section(report: LatentReport) -> list[str]:
    if report.factors is None:
        return []
    lines = [[name, _percent(value)] for name, value in vars(report.factors).items()]
    return ["## Factors in single dimensions of z", table(["", "%"], lines)]


def _latent_section(report: LatentReport) -> list[str]:
    units = [[name, f"{active} of {size}"] for name, (active, size) in report.active_units.items()]
    shares = [[name, _percent(value)] for name, value in report.precision_shares.items()]
    losses = [[name, _number(loss.shared), _number(loss.private)] for name, loss in report.permutation.items()]
    priors = [
        [f"{title} prior: {name}", *(_number(of.get(name)) for of in (one.frechet, one.told_apart, one.nearness))]
        for title, one in report.joint.items()
        for name in one.frechet | one.told_apart
    ]
    rates = [f"{100 * rate:.0f}" for rate in report.missing_rate["rates"]]
    curves: dict[str, Any] = {n: map(_percent, values) for n, values in report.missing_rate.items() if n != "rates"}
    curves["elbo"] = (f"{value:.1f}" for value in report.missing_rate["elbo"])
    return [
        "## The latent space, given everything",
        table(["active units", ""], units),
        table(["share of precision", "%"], shares),
        table(["nats lost with another row's", "z", "private latents"], losses),
        table(["samples of", "Fréchet distance", "told from real ones", "distance to training rows"], priors),
        "## Missing modalities",
        table(["missing, %", *rates], [[name, *values] for name, values in curves.items()]),
    ]


def _percents(values: Mapping[str, float | None], names: Iterable[str]) -> list[str]:
    return [_percent(values.get(name)) for name in names]


def _percent(value: float | None) -> str:
    return "" if value is None or math.isnan(value) else f"{100 * value:.1f}"


def _number(value: float | None) -> str:
    return "" if value is None or math.isnan(value) else f"{value:.2f}"
