"""The evaluation of a latent model as files: `latent.json`, `latent.md`, and figures."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from m3ae.files import write_text

JSON, MARKDOWN, TEXTS = "latent.json", "latent.md", "generated.jsonl"


def write_report(
    folder: Path, title: str, report: Mapping[str, Any], written: Sequence[Mapping[str, Any]] = ()
) -> None:
    """Write what `GenerationEvaluator.evaluate` and `TextEvaluator.evaluate` return into an existing folder."""
    if written:
        lines = "".join(json.dumps(line, ensure_ascii=False) + "\n" for line in written)
        write_text(folder / TEXTS, lines)
    write_text(folder / MARKDOWN, markdown_report(title, report))
    write_text(folder / JSON, json.dumps(_finite(report), indent=2) + "\n")  # last: where it is, the rest is


def main_metrics(report: Mapping[str, Any]) -> dict[str, float]:
    """Return what is printed and logged of a report, one number for each name."""
    subsets, whole = report["subsets"], report["subsets"][-1]
    metrics = {"elbo": whole["elbo"], "kl": whole["kl"]}
    metrics |= {f"reconstruction_{name}": value for name, value in whole["reconstruction"].items()}
    for label, summary in report["summary"].items():
        for entry in subsets:
            if "probe" in entry["labels"][label]:
                metrics[f"{label}_probe_{'+'.join(entry['given'])}"] = entry["labels"][label]["probe"]
        metrics |= {f"{label}_{name}": value for name, value in summary.items()}
        for density, joint in report["joint"].items():
            if label in joint["coherence"]:
                metrics[f"{label}_joint_{density}"] = joint["coherence"][label]
    for title, own in _strict_rows(report):
        name = title.replace(" + ", "+").replace("→", "to").replace(" ", "_")
        metrics[f"all_labels_{name}"] = own[-1]
    if report["problems"]:
        for entry in subsets:
            given = "+".join(entry["given"])
            metrics[f"macro_auroc_{given}"] = entry["problems"]["macro_auroc"]
            metrics |= {f"macro_auroc_{given}_seen_in_{name}": own for name, own in entry["problems_seen"].items()}
    for name, texts in report.get("texts", {}).items():
        for entry in texts["generated"]:
            for metric in ("bleu_4", "macro_f1"):
                if metric in entry:
                    metrics[f"{name}_{metric}_{'+'.join(entry['given']) or 'nothing'}"] = entry[metric]
    return metrics


def markdown_report(title: str, report: Mapping[str, Any]) -> str:
    """Lay out a report as Markdown tables; shares in percent, likelihoods in nats."""
    whole = report["subsets"][-1]
    modalities = list(whole["reconstruction"])
    counts = list(whole["evidence"])
    images = list(whole["ssim"])
    distant = list(whole["frechet"])  # none without a label
    lines = [f"# {title}", "", f"{report['rows']:,} rows. Likelihoods and KL in nats a row, the rest in percent.", ""]
    headers = [
        "given",
        "ELBO",
        "KL",
        *(f"log p, K = {count}" for count in counts),
        *(f"{name}: {'accuracy' if name in report['summary'] else 'R²'}" for name in modalities),
        *(f"{name}: SSIM" for name in images),
        *(f"{name}: Fréchet" for name in distant),
    ]
    rows = [
        [
            _given(entry),
            f"{entry['elbo']:.1f}",
            f"{entry['kl']:.1f}",
            *(f"{entry['evidence'][count]:.1f}" for count in counts),
            *(_percent(entry["reconstruction"].get(name)) for name in modalities),
            *(_percent(entry["ssim"].get(name)) for name in images),
            *(_number(entry["frechet"].get(name)) for name in distant),
        ]
        for entry in report["subsets"]
    ]
    lines += ["## What each subset of the modalities tells", "", *table_lines(headers, rows), ""]
    for label, summary in report["summary"].items():
        lines += _label_section(label, summary, report)
    lines += _all_labels_section(report)
    if report["problems"]:
        lines += _problem_section(report)
    for name, texts in report.get("texts", {}).items():
        lines += _text_section(name, texts)
    lines += _latent_section(report)
    return "\n".join(lines) + "\n"


def _label_section(label: str, summary: Mapping[str, float], report: Mapping[str, Any]) -> list[str]:
    classified = [name for name in report["classifiers"][label] if name != "all"]
    headers = [
        "given",
        "probe",
        *(f"{name} shows it" for name in classified),
        *(f"{name}: diversity" for name in classified),
    ]
    rows = []
    for entry in report["subsets"]:
        own = entry["labels"][label]
        shown = [_percent(own["coherence"].get(name)) for name in classified]
        varied = [_percent(own["diversity"].get(name)) for name in classified]
        rows.append([_given(entry), _percent(own.get("probe")), *shown, *varied])
    real = [_percent(report["classifiers"][label][name]) for name in classified]
    rows.append(["real data", "", *real, *["100.0"] * len(classified)])
    facts = {
        "one → one coherence": summary.get("one_to_one"),
        "two → one coherence": summary.get("two_to_one"),
        "within-class diversity of one → one": summary.get("diversity"),
        "the same, of those of the right class": summary.get("diversity_of_right"),
        "probe: everything minus the best single modality": summary.get("synergy"),
        **{
            f"joint coherence from the {density} prior": joint["coherence"].get(label)
            for density, joint in report["joint"].items()
        },
        "all classifiers right on real rows": report["classifiers"][label]["all"],
    }
    table = table_lines(["", "%"], [[name, _percent(value)] for name, value in facts.items() if value is not None])
    return [f"## {label}", "", *table_lines(headers, rows), "", *table, ""]


def _strict_rows(report: Mapping[str, Any]) -> list[tuple[str, list[float]]]:
    """Return what shows several labels at once, as `given → generated` with `all_right`, and the two priors'."""
    found = [
        (f"{_given(entry)} → {name}", own) for entry in report["subsets"] for name, own in entry["all_labels"].items()
    ]
    for name, texts in report.get("texts", {}).items():
        told = [entry for entry in texts["generated"] if name not in entry["given"] and "all_labels" in entry]
        found += [(f"{_given(entry)} → {name}", entry["all_labels"]) for entry in told]
        found += [
            (f"{density} prior → everything with {name}", own) for density, own in texts.get("joint", {}).items()
        ]
        if told:
            found.append((f"real {name}", texts["real"]["all_labels"]))
    return [(title, own) for title, own in found if len(own) > 1]


def _all_labels_section(report: Mapping[str, Any]) -> list[str]:
    rows = _strict_rows(report)
    if not rows:
        return []
    known = [(f"real {name}, classified", own) for name, own in report["all_labels"].items()]
    headers = [
        "shows so many labels, all of them right",
        *(str(k + 1) for k in range(max(len(own) for _, own in rows))),
    ]
    lines = [[title, *map(_percent, own)] for title, own in [*rows, *known]]
    explained = "Of the labels, so many are drawn at random. A text shows a class if it names that one and no other."
    return ["## Several labels at once", "", explained, "", *table_lines(headers, lines), ""]


def _problem_section(report: Mapping[str, Any]) -> list[str]:
    subsets = report["subsets"]
    headers = ["problem", "of the rows", *(_given(entry) for entry in subsets)]
    rows = [["macro", "", *(_percent(entry["problems"]["macro_auroc"]) for entry in subsets)]]
    for name, share in report["problems"].items():
        rows.append([name, _percent(share), *(_percent(entry["problems"]["auroc"][name]) for entry in subsets)])
    explained = "Area under the ROC curve of linear probes of z, learnt from training rows; 50 is a guess."
    lines = ["## Problems", "", explained, "", *table_lines(headers, rows), ""]
    images = list(report["problems_seen"])
    if images:
        sources = [(_given(entry), entry) for entry in subsets if entry["problems_seen"]] + [("real images", report)]
        seen = [[title, *(_percent(own["problems_seen"].get(name)) for name in images)] for title, own in sources]
        explained = "What a classifier of real images sees of them in images drawn from what is given: macro average."
        lines += [explained, "", *table_lines(["given", *images], seen), ""]
    return lines


def _text_section(name: str, texts: Mapping[str, Any]) -> list[str]:
    shown = {"exact": "equal", "distinct": "distinct", "macro_f1": "F1, macro", "micro_f1": "F1, micro"}
    shown = {f"bleu_{order}": f"BLEU-{order}" for order in (1, 2, 3, 4)} | shown
    columns = [metric for metric in shown if metric in texts["shuffled"]]
    lines = [(_given(entry), entry) for entry in texts["generated"]]
    lines += [("another row's text", texts["shuffled"])]
    lines += [("the row's own text", texts["real"])] if texts["real"] else []
    rows = [[title, *(_percent(own.get(metric)) for metric in columns)] for title, own in lines]
    explained = f"Written from the mean of z for {texts['rows']:,} rows that have every modality."
    if texts["real"]:
        explained += " F1 is of the problems that a classifier of real texts finds."
    return [f"## {name}", "", explained, "", *table_lines(["given", *(shown[metric] for metric in columns)], rows), ""]


def _latent_section(report: Mapping[str, Any]) -> list[str]:
    units = [[name, f"{active} of {total}"] for name, (active, total) in report["active_units"].items()]
    shares = [[name, _percent(value)] for name, value in report["precision_shares"].items()]
    lost = [[name, _number(own["shared"]), _number(own["private"])] for name, own in report["permutation"].items()]
    curve = report["missing_rate"]
    names = [name for name in curve if name != "rates"]
    over_rates = [
        [name, *(f"{value:.1f}" if name == "elbo" else _percent(value) for value in curve[name])] for name in names
    ]
    distances = [
        [f"{density} prior", *(_number(value) for value in joint["frechet"].values())]
        for density, joint in report["joint"].items()
    ]
    images = list(next(iter(report["joint"].values()))["frechet"])
    return [
        "## The latent space, given everything",
        "",
        *table_lines(["active units", ""], units),
        "",
        *table_lines(["share of precision", "%"], shares),
        "",
        *table_lines(["nats lost with another row's", "z", "private latents"], lost),
        "",
        *([*table_lines(["Fréchet distance of samples", *images], distances), ""] if images else []),
        "## Missing modalities",
        "",
        *table_lines(["missing, %", *(f"{100 * rate:.0f}" for rate in curve["rates"])], over_rates),
    ]


def _given(entry: Mapping[str, Any]) -> str:
    return " + ".join(entry["given"]) or "nothing"


def table_lines(headers: Sequence[str], rows: Sequence[Sequence[str]]) -> list[str]:
    """Return the lines of a Markdown table, numbers to the right of its first column."""
    lines = [f"| {' | '.join(headers)} |", f"|---|{'---:|' * (len(headers) - 1)}"]
    return [*lines, *(f"| {' | '.join(row)} |" for row in rows)]


def _percent(value: float | None) -> str:
    return "" if value is None or math.isnan(value) else f"{100 * value:.1f}"


def _number(value: float | None) -> str:
    return "" if value is None or math.isnan(value) else f"{value:.2f}"


def _finite(value: Any) -> Any:
    """Return a tree as JSON has it: null for what is not finite."""
    if isinstance(value, Mapping):
        return {name: _finite(part) for name, part in value.items()}
    if isinstance(value, list):
        return [_finite(part) for part in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value
