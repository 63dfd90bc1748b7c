"""The report of a latent model: what it says of models whose latents are known."""

import json
import math
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from click.testing import CliRunner

from m3ae.cli import cli
from m3ae.evaluation.latent import LatentEvaluator, missing_curve, summarize
from m3ae.evaluation.passes import Rows, evidence, permutation_test, run_pass
from m3ae.evaluation.probes import Judge
from m3ae.evaluation.report import (
    JSON,
    LabelResult,
    LatentReport,
    ProblemResult,
    SubsetResult,
    markdown_report,
    write_report,
)
from m3ae.models.gaussians import subsets
from m3ae.tasks.generation import Generation
from m3ae.training.config import GenerationConfig, dump_config
from tests.models.tiny_latent import DIGITS, digits_batch, latent_model
from tests.tasks.test_generation import MODALITIES, data, run  # noqa: F401 (a fixture)

SILENT = {**DIGITS, "label": {**DIGITS["label"], "encoder": "none"}}


def batches(count: int = 2, missing: int = 0) -> list[Any]:
    made = []
    for seed in range(count):
        batch = digits_batch(12, seed)
        for number, tensors in enumerate(batch.values()):
            tensors["present"] = torch.ones(12, dtype=torch.bool)
            tensors["present"][number : number + missing] = False
        made.append(batch)
    return made


@pytest.fixture(scope="module")
def report() -> LatentReport:
    model = latent_model(SILENT, learned_prior=2)
    model.fit_prior(batches(4), 2, torch.Generator().manual_seed(0))
    options = GenerationConfig(importance_samples=[1, 20], importance_rows=5)
    return LatentEvaluator(model, batches(4), batches(), options).evaluate()


def test_the_report_names_every_subset_and_metric(report: LatentReport) -> None:
    assert [subset.given for subset in report.subsets] == [["glyph"], ["speech"], ["glyph", "speech"]]
    assert report.rows == 24 and set(report.classifiers["label"]) == {"glyph", "speech", "all"}
    for subset in report.subsets:
        assert subset.elbo == pytest.approx(sum(subset.log_likelihood.values()) - subset.kl, rel=1e-4)
        assert set(subset.evidence) == {"1", "20"} and set(subset.reconstruction) == set(SILENT)
        result = subset.labels["label"]
        assert 0 <= result.probe <= 1 and set(result.coherence) == {"glyph", "speech"}
        assert not set(result.diversity) & set(subset.given)
    assert set(report.joint) == {"own", "fitted"} and set(report.joint["own"].frechet) == {"glyph"}
    prior = report.joint["fitted"]
    assert set(prior.told_apart) == set(prior.nearness) == {"glyph", "speech"} and not report.joint["own"].told_apart
    assert report.active_units.keys() == {"shared", "glyph", "speech"} and report.active_units["speech"][1] == 3
    assert sum(report.precision_shares.values()) == pytest.approx(1, rel=1e-4)
    assert report.classifiers["label"]["speech"] > 0.9, "the tiny digits' speech says its label"


def test_the_report_has_conditional_likelihoods_private_probes_and_clusters(report: LatentReport) -> None:
    glyph, speech, everything = report.subsets
    assert set(glyph.conditional) == {"speech", "label"} and set(everything.conditional) == {"label"}
    # log p(speech, label | glyph) in two orders; the estimates are noisy bounds.
    assert all(np.isfinite(value) for subset in report.subsets for value in subset.conditional.values())
    assert set(report.private_probes["label"]) == {"glyph", "speech"}
    assert report.private_probes["label"]["speech"] > report.private_probes["label"]["glyph"], "speech says its label"
    found = report.clusters["label"]
    assert 0 <= found.accuracy <= 1 and 0 <= found.nmi <= 1
    assert report.factors is None and not speech.queries, "one label is no factor, and nothing is drawn from it"


def test_the_conditional_likelihood_is_a_ratio_of_evidences(monkeypatch: pytest.MonkeyPatch) -> None:
    model, calls = latent_model(SILENT), []

    def stub(model: Any, batch: Any, names: Any, counts: Any, generator: Any) -> dict[int, float]:
        calls.append((sorted(batch), sorted(names), len(batch["glyph"]["present"])))
        return {counts[0]: {1: -3.0, 2: -5.0 * len(batch["glyph"]["present"])}[len(batch)]}

    monkeypatch.setattr("m3ae.evaluation.latent.evidence", stub)
    rows = Rows.of(model, batches(missing=2))
    options = GenerationConfig(importance_samples=[2, 10], importance_rows=30)
    evaluator = SimpleNamespace(model=model, rows=rows, options=options, generator=torch.Generator())
    found = LatentEvaluator._conditional(evaluator, ["glyph"])
    assert found == {"speech": pytest.approx(-45.0 + 3.0), "label": pytest.approx(-40.0 + 3.0)}
    assert calls[:2] == [(["glyph", "label"], ["glyph", "label"], 8), (["glyph"], ["glyph"], 8)]


def test_the_report_is_read_as_it_was_written(report: LatentReport, tmp_path: Path) -> None:
    subset = replace(report.subsets[0], elbo=math.nan, problems=ProblemResult({"effusion": math.nan}, math.nan))
    changed = replace(report, subsets=[subset, *report.subsets[1:]])
    write_report(tmp_path, "tiny", changed)
    written = json.loads((tmp_path / JSON).read_text())
    assert written["subsets"][0]["elbo"] is None and written["subsets"][1]["problems"] == {}
    assert written["subsets"][0]["problems"] == {"auroc": {"effusion": None}, "macro_auroc": None}
    assert set(written["summary"]["label"]["coherence"]) == {"1"} and written["texts"] == {}
    again = LatentReport.read(tmp_path / JSON)
    assert math.isnan(again.subsets[0].elbo) and again.subsets[1:] == report.subsets[1:]
    assert again.main_metrics() == report.main_metrics()


def test_several_labels_are_judged_together_where_all_of_them_are_known() -> None:
    classes = {"digit": np.array([0, 1, 2, -1, 1]), "hand": np.array([0, 1, 0, 1, 1])}
    values = {"glyph": np.zeros((5, 1)), "speech": np.zeros((5, 1))}
    judge = SimpleNamespace(rows=SimpleNamespace(classes=classes, values=values))
    shown = {
        "digit": {"glyph": np.array([0, 2, 1, 0]), "speech": np.zeros(4)},
        "hand": {"glyph": np.array([0, 0, 1, 1])},
    }
    masks = {"glyph": np.array([True, True, True, True, False]), "speech": np.ones(5, dtype=bool), "text": values}
    shares = Judge.all_labels_right(judge, shown, np.array([0, 2, 3, 4]), masks)
    # Row 3 has no digit, row 4 no glyph; of row 0 both are right, of row 2 both; only one label judges speech.
    assert shares == {"glyph": [1.0, 1.0]}
    everywhere = Judge.all_labels_right(judge, shown, np.array([0, 2, 4, 4]), {"glyph": np.ones(5, bool)})
    assert everywhere == {"glyph": pytest.approx([7 / 8, 3 / 4])}


def test_the_missing_rate_curve_begins_with_everything(report: LatentReport) -> None:
    curve, results = report.missing_rate, report.subsets
    assert curve["rates"] == [0.0, 0.1, 0.2, 0.3, 0.4, 0.5, 0.6, 0.7, 0.8, 0.9]
    assert curve["elbo"][0] == results[-1].elbo
    assert curve["probe of label"][0] == results[-1].labels["label"].probe
    half = [result.elbo for result in results] @ np.array([0.375, 0.375, 0.25])
    assert curve["elbo"][5] == pytest.approx(half)
    assert missing_curve(results[-1:], subsets(2)[-1:])["elbo"] == [results[-1].elbo] * 10


def test_the_report_as_text_has_all_of_it(report: LatentReport) -> None:
    text, whole = markdown_report("tiny on test", report), report.subsets[-1]
    unlabelled = replace(report, subsets=[replace(whole, frechet={})])
    assert "glyph: Fréchet" in text and "glyph: Fréchet" not in markdown_report("", unlabelled)
    for words in ("| glyph + speech |", "log p, K = 20", "joint coherence from the fitted prior", "| real data |"):
        assert words in text
    tables = [part.splitlines() for part in text.split("\n\n") if part.startswith("|")]
    assert len(tables) >= 7
    for table in tables:
        assert len({line.count("|") for line in table}) == 1, "rows are as wide as the header"


def test_a_summary_averages_over_what_is_not_given(report: LatentReport) -> None:
    def subset(given: str, probe: float, **coherence: float) -> SubsetResult:
        result = LabelResult(coherence, diversity={"b": 0.5}, diversity_of_right={}, probe=probe)
        return replace(report.subsets[0], given=given.split("+"), labels={"digit": result})

    summary = summarize(
        [
            subset("a", 0.8, a=0.1, b=0.6, c=1.0),
            subset("b", 0.9, a=0.4, b=0.1, c=0.4),
            subset("a+b", 0.95, a=0.1, b=0.1, c=0.7),
            subset("a+b+c", 1.0, a=0.1, b=0.1, c=0.1),
        ]
    )["digit"]
    assert summary.one_to_one == pytest.approx(0.6) and summary.coherence == pytest.approx({"1": 0.6, "2": 0.7})
    assert (summary.diversity, summary.synergy) == pytest.approx((0.5, 0.1)) and summary.diversity_of_right is None


def test_a_latent_that_a_decoder_does_not_read_costs_nothing_when_permuted() -> None:
    model, draw = latent_model(SILENT), torch.Generator().manual_seed(0)
    model.latent_head.decoders["glyph"].layers[1].weight.data[:, model.latent.size :] = 0
    losses = permutation_test(model, Rows.of(model, batches()), draw)
    assert losses["glyph"].private == 0 and losses["glyph"].shared != 0
    assert losses["speech"].private != 0 and losses["label"].private == 0


def test_only_rows_that_have_what_is_given_count() -> None:
    model = latent_model(SILENT)
    rows = Rows.of(model, batches(missing=2))
    result = run_pass(model, rows, ["glyph"], torch.Generator().manual_seed(0))
    assert len(result.rows) == 20 and 0 not in result.rows and 12 not in result.rows
    assert (result.log_likelihood["speech"][:1] == 0).all(), "row 2 of the first batch has no speech"
    assert set(result.expected) == set(SILENT)


@pytest.mark.parametrize("kind", ["poe", "moe", "mopoe"])
def test_evidence_rises_with_the_samples(kind: str) -> None:
    model, batch = latent_model(SILENT, kind=kind), batches(1)[0]
    estimates = evidence(model, batch, ["glyph", "speech"], [1, 300], torch.Generator().manual_seed(0))
    bound = model.elbo(batch, ("glyph", "speech"), generator=torch.Generator().manual_seed(0)).bound.mean()
    assert estimates[300] > estimates[1] and estimates[300] > bound


def test_the_command_leaves_a_report_and_figures(data: Path, tmp_path: Path) -> None:  # noqa: F811
    options = {"importance_samples": [2], "importance_rows": 2, "problems": {"num_labels": 2}}
    text = {"kind": "text", "hidden_size": 8, "num_attention_heads": 2, "num_layers": 1, "max_length": 8}
    sections: dict[str, Any] = {"data": {"max_text_length": 8}, "tokenizer": {"vocab_size": 270}}
    labels = {"kind": "labels", "labels": ["odd", "rare"], "encoder": "none", "hidden_size": 8, "num_layers": 1}
    modalities = {**MODALITIES, "text": text, "labels": labels}
    config = run(data, tmp_path / "run", modalities, generation=options, **sections)
    task = Generation.from_config(config)
    task.fit_prior(task.model.eval(), _accelerator())
    task.save(task.model, tmp_path, {})
    path = tmp_path / "config.yaml"
    path.write_text(dump_config(config))
    result = CliRunner().invoke(cli, ["evaluate", str(path), f"model={tmp_path}", "--output", str(tmp_path / "out")])
    assert result.exit_code == 0, result.output
    assert "test/label_one_to_one" in result.output
    assert "What a classifier of real images sees" in (tmp_path / "out" / "latent.md").read_text()
    names = {
        "latent.json",
        "latent.md",
        "generated.jsonl",
        "cross_generation.png",
        "traversal.png",
        "prior_samples.png",
        "missing_rates.png",
    }
    assert {path.name for path in (tmp_path / "out").iterdir()} == names
    report = json.loads((tmp_path / "out" / "latent.json").read_text())
    assert report["rows"] == 5 and report["subsets"][0]["rows"] < 5
    assert set(report["joint"]) == {"own", "fitted"}
    assert report["problems"] == {"odd": 2 / 5, "rare": 2 / 5}
    assert all(set(entry["problems"]["auroc"]) == {"odd", "rare"} for entry in report["subsets"])
    assert len(report["missing_rate"]["AUROC of the problems"]) == 10
    assert "test/macro_auroc_image+speech" in result.output
    lines = (tmp_path / "out" / "generated.jsonl").read_text().splitlines()
    texts = report["texts"]["text"]
    assert len(lines) == 5 * texts["rows"] and json.loads(lines[0])["references"][0] in ("Side left.", "Right.")
    assert "text_bleu_4_nothing" in result.output and texts["real"]["micro_f1"] == 1
    assert "| another row's text |" in (tmp_path / "out" / "latent.md").read_text()
    assert "| macro | |" in (tmp_path / "out" / "latent.md").read_text().replace("  ", " ")


def _accelerator() -> Any:
    from accelerate import Accelerator

    return Accelerator(cpu=True)
