"""The files of a latent model's report: `latent.json`, tables in `latent.md`, texts in `generated.jsonl`."""

from __future__ import annotations

import json
import math
from collections.abc import Iterable, Mapping, Sequence
from itertools import chain
from pathlib import Path
from typing import Any

from m3ae.evaluation.report import LatentReport, TextReport, TextResult, measured, title_of
from m3ae.files import write_text

JSON, MARKDOWN, TEXTS = "latent.json", "latent.md", "generated.jsonl"


def write_report(folder: Path, title: str, report: LatentReport, written: Sequence[Mapping[str, Any]] = ()) -> None:
    """Write a report, and the lines of texts that were written for it, into an existing folder."""
    if written:
        write_text(folder / TEXTS, "".join(json.dumps(line, ensure_ascii=False) + "\n" for line in written))
    write_text(folder / MARKDOWN, markdown_report(title, report))
    write_text(folder / JSON, report.to_json())  # last: where it is, the rest is


def markdown_report(title: str, report: LatentReport) -> str:
    """Lay out a report as Markdown tables; shares in percent, likelihoods in nats."""
    explained = f"{report.rows:,} rows. Likelihoods and KL in nats a row, the rest in percent."
    blocks = [f"# {title}", explained, "## What each subset of the modalities tells", _subset_table(report)]
    for label in report.summary:
        blocks += _label_section(label, report)
    blocks += _all_labels_section(report)
    if report.problems:
        blocks += _problem_section(report)
    for name, texts in report.texts.items():
        blocks += _text_section(name, texts)
    return "\n\n".join([*blocks, *_latent_section(report)]) + "\n"


def _subset_table(report: LatentReport) -> str:
    whole = report.subsets[-1]
    headers = [
        *("given", "ELBO", "KL", *(f"log p, K = {count}" for count in whole.evidence)),
        *(f"{name}: {'accuracy' if name in report.summary else 'R²'}" for name in whole.reconstruction),
        *(f"{name}: SSIM" for name in whole.ssim),
        *(f"{name}: Fréchet" for name in whole.frechet),  # none without a label or problems
    ]
    rows = [
        [
            *(title_of(subset.given), f"{subset.elbo:.1f}", f"{subset.kl:.1f}"),
            *(f"{subset.evidence[count]:.1f}" for count in whole.evidence),
            *_percents(subset.reconstruction, whole.reconstruction),
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
    results = [(title_of(subset.given), subset.labels[label]) for subset in report.subsets]
    rows = []
    for title, result in results:
        shares = (_percents(values, classified) for values in (result.coherence, result.diversity))
        rows.append([title, _percent(result.probe), *chain(*shares)])
    rows.append(["real data", "", *_percents(accuracies, classified), *["100.0"] * len(classified)])
    summary = report.summary[label]
    facts = {
        "one → one coherence": summary.one_to_one,
        "two → one coherence": summary.two_to_one,
        "within-class diversity of one → one": summary.diversity,
        "the same, of those of the right class": summary.diversity_of_right,
        "probe: everything minus the best single modality": summary.synergy,
        **{
            f"joint coherence from the {density} prior": prior.coherence.get(label)
            for density, prior in report.joint.items()
        },
        "all classifiers right on real rows": accuracies["all"],
    }
    lines = [[name, _percent(value)] for name, value in measured(facts).items()]
    return [f"## {label}", table(["given", "probe", *shown, *varied], rows), table(["", "%"], lines)]


def _all_labels_section(report: LatentReport) -> list[str]:
    rows = report.all_labels_rows()
    if not rows:
        return []
    counts = range(1, 1 + max(len(shares) for _, shares in rows))
    rows += [(f"real {name}, classified", shares) for name, shares in report.all_labels.items()]
    lines = [[title, *map(_percent, shares)] for title, shares in rows]
    explained = "Of the labels, so many are drawn at random. A text shows a class if it names that one and no other."
    headers = ["shows so many labels, all of them right", *map(str, counts)]
    return ["## Several labels at once", explained, table(headers, lines)]


def _problem_section(report: LatentReport) -> list[str]:
    subsets = report.subsets
    rows = [["macro", "", *(_percent(subset.problems.macro_auroc) for subset in subsets)]]
    for name, share in report.problems.items():
        rows.append([name, _percent(share), *(_percent(subset.problems.auroc[name]) for subset in subsets)])
    explained = "Area under the ROC curve of linear probes of z, learnt from training rows; 50 is a guess."
    headers = ["problem", "of the rows", *(title_of(subset.given) for subset in subsets)]
    blocks = ["## Problems", explained, table(headers, rows)]
    if images := list(report.problems_seen):
        seen = [(title_of(subset.given), subset.problems_seen) for subset in subsets if subset.problems_seen]
        lines = [[title, *_percents(areas, images)] for title, areas in [*seen, ("real images", report.problems_seen)]]
        explained = "What a classifier of real images sees of them in images drawn from what is given: macro average."
        blocks += [explained, table(["given", *images], lines)]
    return blocks


def _text_section(name: str, report: TextReport) -> list[str]:
    titles = {f"bleu_{order}": f"BLEU-{order}" for order in (1, 2, 3, 4)}
    titles |= {"exact": "equal", "distinct": "distinct", "macro_f1": "F1, macro", "micro_f1": "F1, micro"}
    columns = [metric for metric in titles if vars(report.shuffled)[metric] is not None]
    results = [(title_of(texts.given), texts) for texts in report.generated]
    results.append(("another row's text", report.shuffled))
    explained = f"Written from the mean of z for {report.rows:,} rows that have every modality."
    if report.real != TextResult():
        results.append(("the row's own text", report.real))
        explained += " F1 is of the problems that a classifier of real texts finds."
    rows = [[title, *_percents(vars(texts), columns)] for title, texts in results]
    return [f"## {name}", explained, table(["given", *(titles[metric] for metric in columns)], rows)]


def _latent_section(report: LatentReport) -> list[str]:
    units = [[name, f"{active} of {size}"] for name, (active, size) in report.active_units.items()]
    shares = [[name, _percent(value)] for name, value in report.precision_shares.items()]
    lost = [[name, _number(loss.shared), _number(loss.private)] for name, loss in report.permutation.items()]
    blocks = ["## The latent space, given everything", table(["active units", ""], units)]
    blocks += [table(["share of precision", "%"], shares)]
    blocks += [table(["nats lost with another row's", "z", "private latents"], lost)]
    if images := list(next(iter(report.joint.values())).frechet):
        distances = [
            [f"{density} prior", *map(_number, prior.frechet.values())] for density, prior in report.joint.items()
        ]
        blocks.append(table(["Fréchet distance of samples", *images], distances))
    curve = dict(report.missing_rate)
    rates = [f"{100 * rate:.0f}" for rate in curve.pop("rates")]
    rows = [
        [name, *(f"{value:.1f}" if name == "elbo" else _percent(value) for value in values)]
        for name, values in curve.items()
    ]
    return [*blocks, "## Missing modalities", table(["missing, %", *rates], rows)]


def table(headers: Sequence[str], rows: Iterable[Sequence[str]], text_columns: int = 1) -> str:
    """Return a Markdown table, with numbers to the right of its columns of texts."""
    lines = [f"| {' | '.join(headers)} |", f"|{'---|' * text_columns}{'---:|' * (len(headers) - text_columns)}"]
    return "\n".join([*lines, *(f"| {' | '.join(row)} |" for row in rows)])


def _percents(values: Mapping[str, float | None], names: Iterable[str]) -> list[str]:
    return [_percent(values.get(name)) for name in names]


def _percent(value: float | None) -> str:
    return "" if value is None or math.isnan(value) else f"{100 * value:.1f}"


def _number(value: float | None) -> str:
    return "" if value is None or math.isnan(value) else f"{value:.2f}"
