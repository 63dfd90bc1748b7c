import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from accelerate import Accelerator

from m3ae import M3AEForClassification
from m3ae.data.samples import Sample
from m3ae.metrics.calibration import calibration_error
from m3ae.tasks.classification import Classification, Labels, choose_classes, class_weights, encode
from m3ae.training.config import RunConfig
from m3ae.training.finetuning_sections import ClassificationConfig
from m3ae.training.loop import train
from tests.tasks.tiny_finetuning import save_model, tiny_finetuning, write_splits

SINGLE = {"data": {"text_column": "text"}, "classification": {"label_column": "kind"}}
MULTI = {"data": {"text_column": None}, "classification": {"multi_label": True}}


def row(number: int, kind: str | None, labels: list[str] | None = None, *uncertain: str) -> dict[str, Any]:
    cells = {"kind": kind, "labels": labels, "labels_uncertain": [*uncertain]}
    return {"id": f"r{number}", "image": 25 * number, "text": [f"seen: {kind}"], **cells}


TRAIN = [
    row(0, "gel", ["fluid", "air"]),
    row(1, "gel", ["fluid"], "air"),
    row(2, "blot", []),
    row(3, None, None),
    row(4, "gel", ["air", "rare"]),
]
VALIDATION = [row(5, "gel", ["fluid"]), row(6, "blot", ["air"])]
TEST = [row(7, "gel", ["fluid"]), row(8, "blot", [], "fluid"), row(9, "assay", ["air"])]
SPLITS = {"train": TRAIN, "validation": VALIDATION, "test": TEST}


@pytest.fixture
def data(tmp_path: Path) -> Path:
    return write_splits(tmp_path / "data", SPLITS)


def run(folder: Path, sections: dict[str, Any]) -> RunConfig:
    return tiny_finetuning("classification", folder, folder.parent / "run", **sections)


def build(folder: Path, sections: dict[str, Any], **classification: Any) -> Classification:
    merged = sections | {"classification": sections["classification"] | classification}
    return Classification.from_config(run(folder, merged))


def examples(*labels: Labels) -> list[Sample]:
    return [Sample(str(i), {}, target=own, row=i) for i, own in enumerate(labels)]


def fixed(*rows: list[float]) -> Any:
    """A model that has these logits for the samples, in their order."""
    left = list(rows)

    def forward(**batch: torch.Tensor) -> Any:
        size = len(next(iter(batch.values())))
        return type("Output", (), {"logits": torch.tensor([left.pop(0) for _ in range(size)])})

    return forward


def test_classes_are_those_of_the_training_rows_the_most_frequent_first(data: Path) -> None:
    assert build(data, SINGLE).classes == ["gel", "blot"]
    assert build(data, MULTI).classes == ["air", "fluid", "rare"], "equally frequent ones by alphabet"
    assert build(data, MULTI, num_labels=2).classes == ["air", "fluid"]
    assert build(data, MULTI, labels=["rare", "air"]).classes == ["rare", "air"]


@pytest.mark.parametrize(("policy", "value"), [("ignore", -100), ("zero", 0), ("one", 1)])
def test_uncertain_labels_follow_the_policy(data: Path, policy: str, value: int) -> None:
    task = build(data, MULTI, uncertain=policy)
    encoded = task.labels(task.train_dataset.samples)["labels"]
    assert encoded.tolist() == [[1, 1, 0], [value, 1, 0], [0, 0, 0], [1, 0, 1]], "the row without labels is left out"


def test_a_class_that_is_not_in_the_list_is_unknown_in_training_and_wrong_in_measuring(data: Path) -> None:
    task = build(data, SINGLE)
    assert [sample.id for sample in task.train_dataset.samples] == ["r0", "r1", "r2", "r4"]
    assert task.labels(task.dataset("test").samples)["labels"].tolist() == [0, 1, -100]
    found = task.score(task.dataset("test").samples, np.array([[1.0, 0], [0, 1], [0, 1]]))
    assert found["accuracy"] == found["ceiling"] == pytest.approx(2 / 3)
    assert found["macro_f1"] == pytest.approx((1 + 2 / 3 + 0) / 3)


def test_final_of_one_class_a_sample(data: Path) -> None:
    task = build(data, SINGLE)
    model = fixed(*[[2.0, 0.0]] * 3, *[[0.0, 1.0]] * 3, *[[2.0, 0.0]] * 3)
    found = task.metrics(model, Accelerator(cpu=True), "test", at_length=True)
    assert found["accuracy"] == found["majority_accuracy"] == pytest.approx(1 / 3)
    assert found["ece"] == pytest.approx(1 / (1 + np.exp(-2)) - 1 / 3)
    (path,) = task.illustrate(task.model, task.folder.root / "figures")
    assert path.name == "reliability.png"
    assert found["blank_accuracy"] == found["shuffled_accuracy"] == pytest.approx(1 / 3)
    assert found["bag_of_words_accuracy"] == pytest.approx(2 / 3)
    assert found["accuracy_low"] <= found["accuracy"] <= found["accuracy_high"] and "macro_f1_low" in found
    lines = [json.loads(line) for line in (task.folder.root / "predictions.jsonl").read_text().splitlines()]
    assert lines[1] == {
        "id": "r8",
        "input": {"split": "test", "row": 1},
        "prediction": "gel",
        "top": [{"label": "gel", "score": 0.8808}, {"label": "blot", "score": 0.1192}],
        "truth": "blot",
        "correct": False,
    }


def test_controls_choose_among_the_classes(tmp_path: Path) -> None:
    kinds = ["gel", "gel", "gel", "blot", "blot", "assay"]
    train = [row(number, kind) for number, kind in enumerate(kinds)]
    folder = write_splits(tmp_path / "data", SPLITS | {"train": train, "test": [row(8, "blot"), row(9, "assay")]})
    task = build(folder, SINGLE, labels=["assay", "blot"])
    found = task.metrics(fixed(*[[1.0, 0.0]] * 6), Accelerator(cpu=True), "test", at_length=True)
    assert found["accuracy"] == 0.5 and found["majority_accuracy"] == 0.5
    chosen = task.scores_without_model(task.dataset("test"))
    assert chosen["majority"].argmax(1).tolist() == [1, 1], "gel is more frequent, and no class"
    assert chosen["bag_of_words"].argmax(1).tolist() == [1, 0]


def test_final_of_several_labels(data: Path) -> None:
    task = build(data, MULTI, num_labels=2)
    own = [[-1.0, 2.0], [-2.0, 3.0], [1.0, -1.0]]  # air, fluid; of the second sample fluid is uncertain
    found = task.metrics(fixed(*own, *[[0.0, 0.0]] * 6), Accelerator(cpu=True), "test", at_length=True)
    assert (found["air_auroc"], found["fluid_auroc"], found["macro_auroc"]) == (1, 1, 1)
    assert found["blank_macro_auroc"] == 0.5 and "bag_of_words_macro_auroc" not in found
    lines = [json.loads(line) for line in (task.folder.root / "predictions.jsonl").read_text().splitlines()]
    assert [line["prediction"] for line in lines] == [["fluid"], ["fluid"], ["air"]]
    assert (lines[1]["truth"], lines[1]["uncertain"]) == ([], ["fluid"])
    assert lines[0]["scores"] == pytest.approx({"air": 0.26894, "fluid": 0.8808}), "1 / (1 + e), 1 / (1 + e⁻²)"
    paths = task.illustrate(task.model, task.folder.root / "figures")
    assert [path.name for path in paths] == ["roc.png", "reliability.png"]
    assert all(path.stat().st_size > 1000 for path in paths)


def test_thresholds_and_temperature_are_chosen_on_validation_alone(data: Path) -> None:
    task, accelerator = build(data, MULTI, num_labels=2, calibrate=True), Accelerator(cpu=True)
    validation = [[-3.0, -1.0], [-2.0, -4.0]]  # the truth is (no air, fluid), (air, no fluid)
    found = task.metrics(fixed(*validation), accelerator, "validation", at_length=False)
    assert "ece" not in found and "macro_f1" not in found
    config = task.model.config
    assert config.calibration_temperature != 1
    chosen = torch.tensor([-2.0, -1.0]).div(config.calibration_temperature).sigmoid().tolist()
    assert config.decision_thresholds == pytest.approx(chosen), "the only probability of a row with the label"
    test = [[-3.0, -1.0], [-1.5, -1.0], [-2.5, 0.0]]  # (no air, fluid), (no air, unknown), (air, no fluid)
    found = task.metrics(fixed(*test, *[[0.0, 0.0]] * 6), accelerator, "test", at_length=True)
    assert config.decision_thresholds == pytest.approx(chosen), "the test changes nothing"
    assert (found["macro_f1"], found["micro_f1"]) == pytest.approx(((0 + 2 / 3) / 2, 2 / 5))
    p = torch.tensor(test).div(config.calibration_temperature).sigmoid()
    errors = [
        calibration_error(p[:, 0].numpy(), np.array([0, 0, 1])),
        calibration_error(p[[0, 2], 1].numpy(), np.array([1, 0])),
    ]
    assert found["ece"] == pytest.approx(np.mean(errors))
    lines = [json.loads(line) for line in (task.folder.root / "predictions.jsonl").read_text().splitlines()]
    assert [line["prediction"] for line in lines] == [["fluid"], ["air", "fluid"], ["fluid"]]
    results = task.describe()
    assert (results["thresholds"], results["temperature"]) == (
        config.decision_thresholds,
        config.calibration_temperature,
    )


def test_decisions_are_saved_with_the_model_and_a_new_head_has_none(data: Path) -> None:
    config = run(data, MULTI)
    train(config, Classification.from_config(config))
    saved = M3AEForClassification.from_pretrained(config.output_dir / "model").config
    results = json.loads((config.output_dir / "results.json").read_text())
    assert saved.decision_thresholds == results["thresholds"] and len(saved.decision_thresholds) == 3
    assert saved.input_streams == ["image"] and results["temperature"] == 1
    evaluated = Classification.from_config(
        run(data, MULTI | {"model": {"path": str(config.output_dir / "model")}}), for_training=False
    )
    with torch.no_grad():
        measured = evaluated.measure(evaluated.model.eval(), Accelerator(cpu=True), "test")
    assert measured["test/macro_f1"] == pytest.approx(results["metrics"]["test/macro_f1"], nan_ok=True)
    again = build(data, MULTI | {"model": {"path": str(config.output_dir / "model")}}, num_labels=2)
    assert again.model.config.decision_thresholds is None


def test_the_model_gets_only_what_the_config_names(data: Path) -> None:
    image, text = {"pixel_values", "image_present"}, {"input_ids", "attention_mask", "text_present"}
    of_texts = SINGLE | {"data": {"image_columns": [], "text_column": "text"}}
    for sections, names in ((SINGLE, image | text), (MULTI, image), (of_texts, text)):
        task = build(data, sections)
        samples = [task.dataset("test").first(i) for i in range(3)]
        assert task.inputs(samples).keys() == names


def test_balanced_weights() -> None:
    single, names = ClassificationConfig(class_weights="balanced"), ["gel", "blot"]
    rows = examples(Labels(("gel",)), Labels(("gel",)), Labels(("gel",)), Labels(("blot",)), Labels(("other",)))
    assert class_weights(rows, names, single) == [4 / 6, 2.0]
    multi = ClassificationConfig(class_weights="balanced", multi_label=True)
    rows = examples(Labels(("a",)), Labels(("a", "b")), Labels((), ("b",)), Labels(()))
    assert class_weights(rows, ["a", "b"], multi) == [1.0, 2.0]
    assert encode(rows, ["b"], multi).tolist() == [[0], [1], [-100], [0]]


def test_a_probe_changes_the_head_alone(data: Path) -> None:
    saved = save_model(data.parent / "model", M3AEForClassification, id2label={0: "gel", 1: "blot"})
    probing = {"model": {"path": saved}, "finetuning": {"frozen": "trunk"}, "optimizer": {"lr_multipliers": {}}}
    config = run(data, SINGLE | probing)
    train(config, Classification.from_config(config))
    before, after = (M3AEForClassification.from_pretrained(path) for path in (saved, config.output_dir / "model"))
    trunk = after.m3ae.state_dict()
    assert all(torch.equal(value, trunk[name]) for name, value in before.m3ae.state_dict().items())
    assert not torch.equal(before.cls_head.dense.weight, after.cls_head.dense.weight)
    results = json.loads((config.output_dir / "results.json").read_text())
    assert (results["frozen"], results["classes"]) == ("trunk", ["gel", "blot"])


@pytest.mark.parametrize(
    ("sections", "classification", "message"),
    [
        (SINGLE, {"label_column": "type"}, "classification.label_column: .* has no column 'type'; it has id, image"),
        (
            SINGLE,
            {"labels": ["gel", "bolt"]},
            "classification.labels: 'bolt' in no training row, expected some of 'gel'",
        ),
        (SINGLE, {"num_labels": 1}, "expected at least two classes"),
        (SINGLE, {"label_column": "labels"}, "row 'r0' has 2 labels .*; set classification.multi_label to true"),
        (MULTI, {"class_weights": [1.0, 2.0]}, "got 2 weights, expected one for each of the 3 classes"),
    ],
)
def test_bad_input_is_explained(data: Path, sections: Any, classification: Any, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        build(data, sections, **classification)


def test_a_split_without_any_of_the_classes_is_explained(tmp_path: Path) -> None:
    folder = write_splits(tmp_path / "data", SPLITS | {"test": [row(7, "assay")]})
    with pytest.raises(
        ValueError, match=r"has one of the model's 2 classes \('gel', 'blot'\); its labels are 'assay'"
    ):
        build(folder, SINGLE)
    for split in ("validation", "test"):
        unlabelled = write_splits(tmp_path / split, SPLITS | {split: [row(7, None)]})
        with pytest.raises(ValueError, match=rf"no row of .*, {split}, has a label in 'kind'"):
            build(unlabelled, SINGLE)


def test_classes_need_not_be_found(data: Path) -> None:
    section = ClassificationConfig(multi_label=True)
    with pytest.raises(ValueError, match=r"got \[\] .* expected at least one label"):
        choose_classes(examples(Labels(())), section)
