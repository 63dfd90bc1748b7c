"""Reports on grey images: learnt by heart, compared with controls, resumed, evaluated."""

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from PIL import Image

import m3ae
from m3ae import M3AEForReportGeneration
from m3ae.inference import load_model, write_reports
from m3ae.metrics.reports import REPORT_METRICS, register_report_metric
from m3ae.tasks.evaluation import evaluate
from m3ae.tasks.report_generation import ReportGeneration
from m3ae.training import TrainingStopped
from m3ae.training.config import ConfigError, RunConfig
from m3ae.training.loop import train
from tests.tasks.tiny_finetuning import tiny_finetuning, write_splits

REPORTS = {"dark": ["The lungs are clear."], "bright": ["A large effusion on the left.", "Large effusion."]}


def row(number: int, kind: str, value: int) -> dict[str, Any]:
    cells = {"text": REPORTS[kind], "kind": [kind], "indication": f"case {number}"}
    return {"id": f"r{number}", "image": value, **cells}


ROWS = [row(0, "dark", 0), row(1, "bright", 250), row(2, "dark", 10), row(3, "bright", 240), row(4, "dark", 5)]
SPLITS = {
    "train": [*ROWS, {"id": "none", "image": 5, "text": [], "kind": [], "indication": None}],
    "validation": [row(5, "dark", 8), row(6, "bright", 245)],
    "test": [row(7, "dark", 2), row(8, "bright", 248), row(9, "dark", 12)],
}
NO_FURTHER_TEXT = {"text_column": None, "max_text_length": 24}


@pytest.fixture
def data(tmp_path: Path) -> Path:
    return write_splits(tmp_path / "data", SPLITS)


def run(folder: Path, **sections: Any) -> RunConfig:
    sections["data"] = NO_FURTHER_TEXT | sections.get("data", {})
    return tiny_finetuning("report_generation", folder, folder.parent / "run", **sections)


def test_two_reports_are_learnt_by_heart_and_written_for_new_images(data: Path) -> None:
    training = {"max_steps": 60, "batch_size": 4, "validate_every": 30, "checkpoint_every": 60}
    config = run(
        data,
        optimizer={"lr": 3e-3},
        training=training | {"best_metric": "validation/loss"},
        report_generation={"label_column": "kind", "options": {"num_beams": 2}},
    )
    register_report_metric("words", lambda texts, references: [len(text.split()) for text in texts])
    try:
        metrics = train(config, ReportGeneration.from_config(config))
        trained = config.model.model_copy(update={"path": str(config.output_dir / "model")})
        again = evaluate(config.model_copy(update={"model": trained}))
    finally:
        REPORT_METRICS.clear()
    assert metrics["test/exact"] == metrics["test/label_macro_f1"] == metrics["test/real_label_macro_f1"] == 1
    assert metrics["test/bleu_4"] == metrics["test/rouge_l"] == pytest.approx(1)
    assert metrics["test/nearest_rouge_l"] == 1, "the image of a training report is as bright"
    assert metrics["test/frequent_label_micro_f1"] == pytest.approx(2 / 3)
    assert metrics["test/gain_label_micro_f1"] == pytest.approx(2 / 3)
    assert metrics["test/shuffled_label_micro_f1"] == pytest.approx(1 / 3), "one of three gets an image as dark"
    assert metrics["test/shuffled_rouge_l"] < 1 and metrics["test/blank_rouge_l"] < 1
    assert metrics["test/gain_loss"] == pytest.approx(metrics["test/shuffled_loss"] - metrics["test/loss"])
    assert metrics["test/gain_loss_high"] >= metrics["test/gain_loss"] > 0 < metrics["test/blank_loss"]
    assert metrics["test/rouge_l_low"] == metrics["test/rouge_l_high"] == 1
    assert metrics["test/words"] == pytest.approx(10 / 3, abs=1.4) and "test/frequent_words_low" in metrics
    assert {name: value for name, value in metrics.items() if name.startswith("test/")} == pytest.approx(again)
    folder = config.output_dir
    lines = [json.loads(line) for line in (folder / "predictions.jsonl").read_text().splitlines()]
    assert lines[0] == {
        "id": "r7",
        "input": {"split": "test", "row": 0},
        "prediction": "The lungs are clear.",
        "truth": REPORTS["dark"],
        "nearest": "The lungs are clear.",
        "shuffled": lines[1]["prediction"],
    }
    assert (folder / "figures" / "reports.png").stat().st_size > 1000
    assert "write_reports(model, processor, [image]" in (folder / "model" / "README.md").read_text()
    assert json.loads((folder / "model" / "generation_config.json").read_text())["num_beams"] == 2
    model, processor = load_model(folder, [M3AEForReportGeneration])
    images = [Image.new("L", (40, 32), value) for value in (3, 246)]
    assert write_reports(model, processor, images, batch_size=1) == [line["prediction"] for line in lines[:2]]
    (prediction,) = m3ae.predict(folder, [images[0]])
    assert prediction == {"report": REPORTS["dark"][0]}
    with pytest.raises(ValueError, match="generate has no option num_beam"):
        write_reports(model, processor, images, num_beam=2)
    with pytest.raises(ValueError, match="image 1: no image"):
        write_reports(model, processor, [images[0], None])
    assert model.generation_config.num_beams == 2
    drawn = [write_reports(model, processor, images, do_sample=True, seed=seed, temperature=9.0) for seed in (0, 0, 1)]
    assert drawn[0] == drawn[1] != drawn[2]


def test_a_run_resumes_exactly(data: Path) -> None:
    sections = {"training": {"max_steps": 4}, "evaluation": {"controls": False}}
    whole = train(run(data, **sections), ReportGeneration.from_config(run(data, **sections)))
    other = data.parent / "other"
    half = run(data, **sections).model_copy(update={"output_dir": other})
    short = half.model_copy(update={"training": half.training.model_copy(update={"max_hours": 1e-9})})
    with pytest.raises(TrainingStopped):
        train(short, ReportGeneration.from_config(short))
    assert train(half, ReportGeneration.from_config(half), resume=True) == whole


def test_phantoms_are_judged_by_their_grammar(tmp_path: Path) -> None:
    recipe = {"name": "phantom", "num_studies": 40, "image_size": 32, "num_workers": 1}
    config = run(tmp_path / "data", data={"image_columns": ["frontal"], "prepare": recipe})
    task = ReportGeneration.from_config(config)
    judge = task.judge("test")
    texts = [reports[0] for reports in judge.references]
    assert judge.score(texts).metrics()["all_factors"] == 1
    assert judge.score(texts[1:] + texts[:1]).metrics()["all_factors"] < 0.5


def test_all_views_of_a_study_and_its_indication_are_read(data: Path) -> None:
    task = ReportGeneration.from_config(run(data, data={"text_column": "indication", "views": "all"}))
    batch = task.collate([task.train_dataset.first(index) for index in range(2)])
    assert {"pixel_values", "image_present", "input_ids", "text_present", "labels"} <= batch.keys()
    model = task.model.eval()
    with torch.no_grad():
        loss = model(**batch).loss
        batch["input_ids"] = batch["input_ids"].flip(0)
        assert model(**batch).loss != loss


def test_what_cannot_be_learnt_is_refused(data: Path) -> None:
    with pytest.raises(ConfigError, match="the report that is to be written"):
        run(data, data={"text_column": "text"})
    with pytest.raises(
        ConfigError, match=r"report_generation\.options\.num_beam: unknown key; did you mean num_beams"
    ):
        run(data, report_generation={"options": {"num_beam": 4}})
    with pytest.raises(ValueError, match=r"report_column: .* has no column 'report'; it has .*text"):
        ReportGeneration.from_config(run(data, report_generation={"report_column": "report"}))


def test_the_target_is_one_of_the_reports(data: Path) -> None:
    task = ReportGeneration.from_config(run(data))
    assert len(task.train_dataset) == 5, "the row without a report is left out"
    samples = [task.train_dataset.first(1, seed=number << 32) for number in range(2)]
    labels = task.labels(samples)["labels"]
    texts = task.processor.tokenizer.batch_decode(labels.clamp(min=1), skip_special_tokens=True)
    assert [text.strip() for text in texts] == REPORTS["bright"]
    assert (labels[:, 0] == task.model.special.bos).all() and (labels == -100).any()
