"""Texts that a latent model writes, and how they are judged."""

from collections.abc import Iterator
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from m3ae.evaluation.latent import LatentEvaluator
from m3ae.evaluation.probes import Problems
from m3ae.evaluation.report import TextResult, markdown_report
from m3ae.evaluation.texts import TextEvaluator, Texts
from m3ae.training.config import GenerationConfig
from tests.models.tiny_latent import STUDY, latent_model, study_batch

REAL = [["large heart"], ["clear lungs"], ["large heart", "heart"], ["clear"], ["large heart"], ["clear lungs"]]
LEARNT = [["large heart"], ["clear lungs"], ["heart, large"], ["lungs are clear", "clear"]]


def words(ids: Tensor) -> list[str]:
    return [" ".join(str(token) for token in row if token != 1) for row in ids.tolist()]  # without padding


@pytest.fixture(scope="module", autouse=True)
def hasty_classifiers() -> Iterator[None]:
    """What classifiers say does not matter here."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("m3ae.evaluation.probes.MIN_STEPS", 3)
        yield


@pytest.fixture(scope="module")
def writer() -> TextEvaluator:
    """Of six rows, the second of which lacks the lateral view."""
    batches = [study_batch(4), study_batch(2)]
    for batch in batches:
        for tensors in batch.values():
            tensors["present"] = torch.ones(len(next(iter(tensors.values()))), dtype=torch.bool)
    batches[0]["lateral"]["present"][1] = False

    problems = Problems(
        ["large heart", "new"], np.array([[1, 0], [0, 0], [1, 0], [0, 0]]), np.array([[1, 0], [0, 0]] * 3)
    )
    evaluator = LatentEvaluator(latent_model(STUDY), batches[:1], batches, GenerationConfig(), 0, problems)
    return TextEvaluator(evaluator, words, max_rows=3)


def test_texts_are_written_from_the_mean_of_z(writer: TextEvaluator) -> None:
    rows = np.array([0, 3, 4])
    texts = writer.write("text", ["frontal"], rows)
    selected = [{"frontal": batch["frontal"]} for batch in writer.rows.select(rows)]
    assert [len(batch["frontal"]["present"]) for batch in selected] == [2, 1]
    expected = [writer.model.generate_modalities(batch, ["text"], temperature=0)["text"][0] for batch in selected]
    assert texts == [line for ids in expected for line in words(ids)]
    assert len(set(writer.write("text", [], rows))) == 1, "nothing is given, so nothing tells the rows apart"


def test_what_is_written_is_judged(writer: TextEvaluator, monkeypatch: pytest.MonkeyPatch) -> None:
    made = {
        "": ["clear lungs"] * 3,
        "frontal": ["large heart", "clear lungs", "large heart"],
        "lateral": ["heart", "clear", "clear"],
    }

    def write(name: str, given: list[str], rows: Any) -> list[str]:
        return made.get("+".join(given), ["large heart"] * 3)

    monkeypatch.setattr(writer, "write", write)
    report, written = writer.evaluate({"text": Texts(LEARNT, REAL)}, [f"s{row}" for row in range(6)])
    judged = report["text"]
    # Complete are rows 0, 2, 3, 4, 5, of which 0, 3 and 5 are evenly spaced: heart, clear, clear lungs.
    lines = {"+".join(result.given): result for result in judged.generated}
    assert set(lines) == {"", "frontal", "lateral", "frontal+lateral", "frontal+lateral+text"} and judged.rows == 3
    assert [lines[given].exact for given in ("", "frontal", "lateral")] == pytest.approx([1 / 3, 1 / 3, 1 / 3])
    assert [lines[given].distinct for given in ("", "frontal")] == pytest.approx([1 / 3, 2 / 3])
    assert lines["lateral"].bleu_1 == pytest.approx(np.exp(1 - 5 / 3)) and lines["lateral"].bleu_2 == 0
    # Only row 0 has the problem; the other problem is never learnt, and left out of the mean.
    assert [lines[given].macro_f1 for given in lines] == pytest.approx([0, 2 / 3, 1, 1 / 2, 1 / 2])
    assert judged.real == TextResult(macro_f1=1, micro_f1=1)
    assert judged.shuffled.macro_f1 == 0 and judged.shuffled.exact == 0
    assert written[0] == {
        "id": "s0",
        "modality": "text",
        "given": [],
        "text": "clear lungs",
        "references": ["large heart"],
    }
    assert len(written) == 15 and written[-1]["given"] == ["frontal", "lateral", "text"]


def test_problems_are_looked_for_in_images_that_were_not_given(writer: TextEvaluator) -> None:
    evaluator, everything = writer.evaluator, np.arange(6)
    judge = evaluator.judge
    assert set(judge.problem_classifiers) == {"frontal", "lateral"}
    looked_at: list[Any] = []
    for classifier in judge.problem_classifiers.values():
        classifier.log_odds = lambda values: (looked_at.append(len(values)), values[:, 0, :1, 0].repeat(2, 1))[1]
    truth = evaluator.problems.judged[:, 0]
    right = {name: truth[:, None, None, None].astype(float) for name in ("frontal", "lateral")}
    assert judge.problems_seen(right, everything, evaluator.rows.present) == {"frontal": 1.0, "lateral": 1.0}
    assert sorted(looked_at) == [5, 6], "row 1 lacks the lateral view"
    wrong = {"frontal": -right["frontal"], "lateral": right["lateral"]}
    assert judge.problems_seen(wrong, everything, {"frontal": np.ones(6, dtype=bool)}) == {"frontal": 0.0}
    result = evaluator.measure_subset(0)
    assert result.given == ["frontal"] and set(result.problems_seen) == {"lateral"}
    assert set(result.frechet) == {"frontal", "lateral"}, "on features of these classifiers, as there is no label"


def test_texts_are_judged_by_the_labels_that_real_texts_name() -> None:
    label = {"kind": "label", "encoder": "none", "hidden_size": 8, "num_layers": 1}
    size, kind = {**label, "labels": ["small", "large"]}, {**label, "labels": ["nodule", "opacity"]}
    study = {name: STUDY[name] for name in ("frontal", "text")}
    model = latent_model(study | {"kind": kind, "silent": {**label, "labels": ["a", "b"]}, "size": size})
    batch = {name: tensors for name, tensors in study_batch(4).items() if name in study}
    classes = {"kind": [0, 1, 1, 0], "silent": [0, 1, 0, 1], "size": [0, 0, 1, 1]}
    batch |= {name: {"labels": torch.tensor(numbers)} for name, numbers in classes.items()}
    for tensors in batch.values():
        tensors["present"] = torch.ones(4, dtype=torch.bool)
    evaluator = LatentEvaluator(model, [batch], [batch], GenerationConfig())
    writer = TextEvaluator(evaluator, words, max_rows=4)
    rows, real = np.arange(4), ["small nodule", "small opacity", "large opacity", "large nodule"]
    labels = writer.labels_named(real, rows)
    assert labels == {"kind": ["nodule", "opacity"], "size": ["small", "large"]}, "no text names the silent one"
    lines = ["small nodule", "small nodule", "large small opacity", "large nodule"]
    shares = writer.compare_labels(lines, rows, labels)
    assert shares["labels"] == pytest.approx({"kind": 3 / 4, "size": 3 / 4})
    assert shares["all_labels"] == pytest.approx([3 / 4, 1 / 2])

    whole = evaluator.evaluate()
    writer.decode_text = lambda ids: lines
    evaluator.judge.classes_shown = lambda values: {
        "kind": {"frontal": np.array([0, 1, 1, 1])},
        "size": {"frontal": np.array([0, 0, 0, 1])},
    }
    # Of kind samples 0 and 2 agree, of size 0, 1 and 3.
    assert writer.measure_prior("text", "own", 4, labels) == pytest.approx([5 / 8, 1 / 4])
    corpus = Texts([[line] for line in real], [[line] for line in real])
    report = writer.measure("text", corpus, rows, writer.write_all("text", rows))
    assert report.real.all_labels == [1.0, 1.0] and set(report.joint) == {"own"}
    assert "| real text | 100.0 | 100.0 |" in markdown_report("tiny", replace(whole, texts={"text": report}))
