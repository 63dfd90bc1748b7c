"""The report of a latent model: what it says of models whose latents are known."""

import json
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from click.testing import CliRunner

from m3ae.cli import cli
from m3ae.models.gaussians import subsets
from m3ae.tasks.generation import Generation
from m3ae.tasks.generation_evaluation import GenerationEvaluator, missing_curve, summarize
from m3ae.tasks.generation_report import markdown_report
from m3ae.tasks.latent_judge import Judge
from m3ae.tasks.latent_passes import Rows, evidence, permutation_test, run_pass
from m3ae.training.config import dump_config
from m3ae.training.task_config import GenerationConfig
from tests.models.tiny_latent import DIGITS, digits_batch, latent_model
from tests.tasks.test_generation import MODALITIES, data, run  # noqa: F401 (a fixture)

SILENT = {**DIGITS, "label": {**DIGITS["label"], "encoder": "none"}}


def batches(count: int = 2, missing: int = 0) -> list[Any]:
    found = []
    for seed in range(count):
        batch = digits_batch(12, seed)
        for number, part in enumerate(batch.values()):
            part["present"] = torch.ones(12, dtype=torch.bool)
            part["present"][number : number + missing] = False
        found.append(batch)
    return found


@pytest.fixture(scope="module")
def report() -> dict[str, Any]:
    model = latent_model(SILENT, learned_prior=2)
    model.fit_prior(batches(4), 2, torch.Generator().manual_seed(0))

    def training() -> Iterator[Any]:
        yield from batches(4)

    options = GenerationConfig(importance_samples=[1, 20], importance_rows=5)
    return GenerationEvaluator(model, training, iter(batches()), options).evaluate()


def test_the_report_names_every_subset_and_metric(report: dict[str, Any]) -> None:
    assert [entry["given"] for entry in report["subsets"]] == [["glyph"], ["speech"], ["glyph", "speech"]]
    assert report["rows"] == 24 and set(report["classifiers"]["label"]) == {"glyph", "speech", "all"}
    for entry in report["subsets"]:
        assert entry["elbo"] == pytest.approx(sum(entry["log_likelihood"].values()) - entry["kl"], rel=1e-4)
        assert set(entry["evidence"]) == {"1", "20"} and set(entry["reconstruction"]) == set(SILENT)
        own = entry["labels"]["label"]
        assert 0 <= own["probe"] <= 1 and set(own["coherence"]) == {"glyph", "speech"}
        assert not set(own["diversity"]) & set(entry["given"])
    assert set(report["joint"]) == {"own", "fitted"} and set(report["joint"]["own"]["frechet"]) == {"glyph"}
    assert report["active_units"].keys() == {"shared", "glyph", "speech"} and report["active_units"]["speech"][1] == 3
    assert sum(report["precision_shares"].values()) == pytest.approx(1, rel=1e-4)
    assert report["classifiers"]["label"]["speech"] > 0.9, "the tiny digits' speech says its label"


def test_several_labels_are_judged_together_where_all_of_them_are_known() -> None:
    classes = {"digit": np.array([0, 1, 2, -1, 1]), "hand": np.array([0, 1, 0, 1, 1])}
    values = {"glyph": np.zeros((5, 1)), "speech": np.zeros((5, 1))}
    own = SimpleNamespace(rows=SimpleNamespace(classes=classes, values=values))
    shown = {
        "digit": {"glyph": np.array([0, 2, 1, 0]), "speech": np.zeros(4)},
        "hand": {"glyph": np.array([0, 0, 1, 1])},
    }
    asked = {"glyph": np.array([True, True, True, True, False]), "speech": np.ones(5, dtype=bool), "text": values}
    found = Judge.all_labels_right(own, shown, np.array([0, 2, 3, 4]), asked)
    # Row 3 has no digit, row 4 no glyph; of row 0 both are right, of row 2 both; only one label judges speech.
    assert found == {"glyph": [1.0, 1.0]}
    everywhere = Judge.all_labels_right(own, shown, np.array([0, 2, 4, 4]), {"glyph": np.ones(5, bool)})
    assert everywhere == {"glyph": pytest.approx([7 / 8, 3 / 4])}


def test_the_missing_rate_curve_begins_with_everything(report: dict[str, Any]) -> None:
    curve, subsets_found = report["missing_rate"], report["subsets"]
    assert curve["rates"] == [0.0, 0.1, 0.2, 0.3, 0.4, 0.5, 0.6, 0.7, 0.8, 0.9]
    assert curve["elbo"][0] == subsets_found[-1]["elbo"]
    assert curve["probe of label"][0] == subsets_found[-1]["labels"]["label"]["probe"]
    half = [entry["elbo"] for entry in subsets_found] @ np.array([0.375, 0.375, 0.25])
    assert curve["elbo"][5] == pytest.approx(half)
    assert missing_curve(subsets_found[-1:], subsets(2)[-1:])["elbo"] == [subsets_found[-1]["elbo"]] * 10


def test_the_report_as_text_has_all_of_it(report: dict[str, Any]) -> None:
    text, whole = markdown_report("tiny on test", report), report["subsets"][-1]
    unlabelled = {**report, "subsets": [{**whole, "frechet": {}}]}
    assert "glyph: Fréchet" in text and "glyph: Fréchet" not in markdown_report("", unlabelled)
    for words in ("| glyph + speech |", "log p, K = 20", "joint coherence from the fitted prior", "| real data |"):
        assert words in text
    tables = [part.splitlines() for part in text.split("\n\n") if part.startswith("|")]
    assert len(tables) >= 7
    for table in tables:
        assert len({line.count("|") for line in table}) == 1, "rows are as wide as the header"


def test_a_summary_averages_over_what_is_not_given() -> None:
    def entry(given: str, probe: float, **coherence: float) -> dict[str, Any]:
        own = {"probe": probe, "coherence": coherence, "diversity": {"b": 0.5}, "diversity_of_right": {}}
        return {"given": given.split("+"), "labels": {"digit": own}}

    found = summarize(
        [
            entry("a", 0.8, a=0.1, b=0.6, c=1.0),
            entry("b", 0.9, a=0.4, b=0.1, c=0.4),
            entry("a+b", 0.95, a=0.1, b=0.1, c=0.7),
            entry("a+b+c", 1.0, a=0.1, b=0.1, c=0.1),
        ]
    )["digit"]
    assert found == pytest.approx({"one_to_one": 0.6, "two_to_one": 0.7, "diversity": 0.5, "synergy": 0.1})


def test_a_latent_that_a_decoder_does_not_read_costs_nothing_when_permuted() -> None:
    model, draw = latent_model(SILENT), torch.Generator().manual_seed(0)
    model.latent_head.decoders["glyph"].layers[1].weight.data[:, model.latent.size :] = 0
    found = permutation_test(model, Rows.of(model, batches()), draw)
    assert found["glyph"]["private"] == 0 and found["glyph"]["shared"] != 0
    assert found["speech"]["private"] != 0 and found["label"]["private"] == 0


def test_only_rows_that_have_what_is_given_count() -> None:
    model = latent_model(SILENT)
    rows = Rows.of(model, batches(missing=2))
    found = run_pass(model, rows, ["glyph"], torch.Generator().manual_seed(0))
    assert len(found.rows) == 20 and 0 not in found.rows and 12 not in found.rows
    assert (found.log_likelihood["speech"][:1] == 0).all(), "row 2 of the first batch has no speech"
    assert set(found.expected) == set(SILENT)


@pytest.mark.parametrize("kind", ["poe", "moe", "mopoe"])
def test_evidence_rises_with_the_samples(kind: str) -> None:
    model, batch = latent_model(SILENT, kind=kind), batches(1)[0]
    found = evidence(model, batch, ["glyph", "speech"], [1, 300], torch.Generator().manual_seed(0))
    bound = model.elbo(batch, ("glyph", "speech"), generator=torch.Generator().manual_seed(0)).bound.mean()
    assert found[300] > found[1] and found[300] > bound


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
    found = json.loads((tmp_path / "out" / "latent.json").read_text())
    assert found["rows"] == 5 and found["subsets"][0]["rows"] < 5
    assert set(found["joint"]) == {"own", "fitted"}
    assert found["problems"] == {"odd": 2 / 5, "rare": 2 / 5}
    assert all(set(entry["problems"]["auroc"]) == {"odd", "rare"} for entry in found["subsets"])
    assert len(found["missing_rate"]["AUROC of the problems"]) == 10
    assert "test/macro_auroc_image+speech" in result.output
    lines = (tmp_path / "out" / "generated.jsonl").read_text().splitlines()
    texts = found["texts"]["text"]
    assert len(lines) == 5 * texts["rows"] and json.loads(lines[0])["references"][0] in ("Side left.", "Right.")
    assert "text_bleu_4_nothing" in result.output and texts["real"]["micro_f1"] == 1
    assert "| another row's text |" in (tmp_path / "out" / "latent.md").read_text()
    assert "| macro | |" in (tmp_path / "out" / "latent.md").read_text().replace("  ", " ")


def _accelerator() -> Any:
    from accelerate import Accelerator

    return Accelerator(cpu=True)
