import json
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch
from accelerate import Accelerator
from safetensors.torch import load_file

from m3ae import M3AEForPreTraining, M3AEForQuestionAnswering
from m3ae.data.samples import Visit
from m3ae.data.sources import vqa_rad
from m3ae.tasks import finetuning
from m3ae.tasks.question_answering import QuestionAnswering, answer_list, open_questions
from m3ae.training.config import RunConfig
from m3ae.training.loop import train
from tests.tasks.tiny_finetuning import save_model, tiny_finetuning, write_splits
from tests.training.toy import checkpoint_weights

QUESTION = {"text_column": "question"}


def row(number: int, question: str, *answers: str, kind: str = "pres", **cells: Any) -> dict[str, Any]:
    closed = "closed" if set(answers) <= {"yes", "no"} else "open"
    types = {"answer_type": closed, "question_type": kind}
    return {"id": f"q{number}", "image": 25 * number, "question": question, "answers": [*answers], **types, **cells}


TRAIN = [
    row(0, "is there a nodule", "yes"),
    row(1, "is there fluid", "yes"),
    row(2, "is there air", "no"),
    row(3, "which side", "left", kind="pos"),
    row(4, "which side is it", "left", "both", kind="pos"),
]
VALIDATION = [row(5, "is there a nodule", "yes"), row(6, "which side", "left", kind="pos")]
TEST = [
    row(7, "is there fluid", "no"),
    row(8, "which side", "left", kind="pos"),
    row(9, "which side", "above", kind="pos"),
]
SPLITS = {"train": TRAIN, "validation": VALIDATION, "test": TEST}


@pytest.fixture
def data(tmp_path: Path) -> Path:
    return write_splits(tmp_path / "data", SPLITS)


def run(folder: Path, output: Path, **sections: Any) -> RunConfig:
    return tiny_finetuning("question_answering", folder, output, **{"data": QUESTION} | sections)


def build(folder: Path, **sections: Any) -> QuestionAnswering:
    return QuestionAnswering.from_config(run(folder, folder.parent / "run", **sections))


class Fixed(torch.nn.Module):
    """Answers by the brightness of the image: dark ones with column 0, bright ones with 1."""

    def __init__(self, task: QuestionAnswering) -> None:
        super().__init__()
        self.answers, self.seen = len(task.answers), []

    def forward(self, **batch: torch.Tensor) -> Any:
        self.seen.append(batch)
        logits = torch.zeros(len(batch["input_ids"]), self.answers)
        bright = batch["pixel_values"].mean((1, 2, 3)) > 0
        logits[torch.arange(len(logits)), bright.long()] = 1
        return type("Output", (), {"logits": logits})


def test_answers_come_from_the_training_questions_or_from_the_file(data: Path, tmp_path: Path) -> None:
    config = run(data, tmp_path / "run")
    questions = partial(open_questions, config)
    assert answer_list(config, questions) == ["left", "yes", "both", "no"]
    (data / "answers.json").write_text(json.dumps({"answers_from": "all", "answers": ["no", "yes", "left"]}))
    assert answer_list(config, questions) == ["no", "yes", "left"]
    task = QuestionAnswering.from_config(config)
    assert task.answers == ["no", "yes", "left"]
    described = task.describe()
    assert described["answers"] == 3 and described["answers_from"] == "all"
    (data / "answers.json").write_text("[]")
    with pytest.raises(ValueError, match="holds no list of answers"):
        answer_list(config, questions)


def test_every_right_answer_is_a_target_and_others_are_left_out_of_training(data: Path) -> None:
    (data / "answers.json").write_text(json.dumps({"answers_from": "train", "answers": ["left", "both", "no"]}))
    task = build(data)
    assert [sample.id for sample in task.train_dataset.samples] == ["q2", "q3", "q4"]
    assert task.labels(task.train_dataset.samples)["labels"].tolist() == [[0, 0, 1], [1, 0, 0], [1, 1, 0]]


def test_of_each_training_text_another_share_of_the_tokens_is_masked(data: Path) -> None:
    task, masking = build(data), build(data, finetuning={"token_dropout": 0.4})
    samples = [task.train_dataset[Visit(index, seed=7)] for index in range(3)]
    whole, masked = (one.collate(samples)["input_ids"] for one in (task, masking))
    noise = task.training_collator(samples)
    draws = noise["text_noise"][..., 0]
    hidden = (draws < 0.8 * draws[:, :1]) & ~noise["special_tokens_mask"].bool()
    assert 0 < hidden.sum() < (~noise["special_tokens_mask"].bool()).sum()
    assert torch.equal(masked, whole.masked_fill(hidden, task.processor.tokenizer.mask_token_id))
    assert torch.equal(masking.inputs(samples)["input_ids"], whole)


def test_scores_controls_and_predictions_of_known_answers(data: Path) -> None:
    task, accelerator = build(data, evaluation={"batch_size": 2}), Accelerator(cpu=True)
    model = Fixed(task)  # test images are bright: always the second answer, "yes"
    found = task.metrics(model, accelerator, "test", at_length=True)
    assert task.answers[:2] == ["left", "yes"]
    assert (found["accuracy"], found["closed_accuracy"], found["open_accuracy"]) == (0, 0, 0)
    assert (found["ceiling"], found["open_ceiling"], found["pos_type_questions"]) == (pytest.approx(2 / 3), 0.5, 2)
    assert (found["majority_accuracy"], found["majority_closed_accuracy"]) == (pytest.approx(1 / 3), 0)
    assert (found["bag_of_words_open_accuracy"], found["shuffled_accuracy"]) == (0.5, 0)
    assert found["blank_accuracy"] == pytest.approx(1 / 3), "a blank image is dark: always left"
    assert {"nearest_accuracy", "nearest_closed_accuracy", "nearest_open_accuracy"} <= found.keys()
    assert found["accuracy_low"] <= found["accuracy"] <= found["accuracy_high"]
    lines = [json.loads(line) for line in (task.folder.root / "predictions.jsonl").read_text().splitlines()]
    assert [line["id"] for line in lines] == ["q7", "q8", "q9"]
    assert lines[1] == {
        "id": "q8",
        "input": {"split": "test", "row": 1},
        "question": "which side",
        "answer_type": "open",
        "question_type": "pos",
        "prediction": "yes",
        "top": lines[1]["top"],
        "truth": ["left"],
        "correct": False,
        "in_list": True,
    }
    assert lines[1]["top"][0] == {"label": "yes", "score": pytest.approx(0.73106)} and len(lines[1]["top"]) == 4
    assert [line["in_list"] for line in lines] == [True, True, False]


def test_the_majority_is_that_of_questions_of_the_same_kind(tmp_path: Path) -> None:
    rows = [row(0, "is it", "yes"), row(1, "is it", "yes"), row(2, "is it so", "no"), row(3, "what is it", "air")]
    folder = write_splits(tmp_path / "data", {"train": rows, "validation": VALIDATION, "test": [*rows[2:], *TEST[1:]]})
    task = build(folder)
    given = task.answers_without_model(task.dataset("test"))
    assert given["majority"] == ["yes", "air", "yes", "yes"], "the last two have a type that training has not"


@pytest.mark.real_data
def test_the_majority_on_vqa_rad(shared: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    names = ("id", "question", "answers", "answer_type", "question_type")
    rows = [*vqa_rad.rows(shared / "data" / "vqa_rad", carve_validation=False)]
    splits = {
        split: [{name: row[name] for name in names} for row in rows if row["split"] == split] for split in SPLITS
    }
    folder = write_splits(tmp_path / "data", splits | {"validation": VALIDATION})
    monkeypatch.setattr("m3ae.tasks.question_answering.bag_of_words", lambda *_: [])
    task = build(folder, data=QUESTION | {"image_columns": []})
    dataset = task.dataset("test")
    found = task.score(dataset.samples, task.answers_without_model(dataset)["majority"])
    # Known as 35.7, 49.6 and 14.5, where a question of two types has a type of its own; here the first one counts.
    assert round(100 * found["accuracy"], 1) == 35.5
    assert round(100 * found["closed_accuracy"], 1) == 49.3 and round(100 * found["open_accuracy"], 1) == 14.5


def test_controls_differ_from_the_own_images_in_the_image_alone(data: Path) -> None:
    task, accelerator = build(data), Accelerator(cpu=True)
    seen = {}
    for images in ("original", "blank", "other"):
        model = Fixed(task)
        task.predict(model, accelerator, task.dataset("test"), images)
        seen[images] = model.seen
    assert len(seen["original"]) == 2
    for images in ("blank", "other"):
        for own, changed in zip(seen["original"], seen[images], strict=True):
            assert own.keys() == changed.keys()
            assert not torch.equal(own["pixel_values"], changed["pixel_values"])
            assert all(torch.equal(own[name], changed[name]) for name in own if name != "pixel_values")
    assert not any(batch["pixel_values"].any() for batch in seen["blank"])


def test_predictions_do_not_depend_on_batches_and_processes(data: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    task, accelerator = build(data, evaluation={"batch_size": 3}), Accelerator(cpu=True)
    dataset, model = task.dataset("test"), task.model.eval()
    with torch.no_grad():
        logits, images = task.predict(model, accelerator, dataset)
        monkeypatch.setattr(finetuning, "gather_rows", list)
        for process in (0, 1):
            number = {"process_index": process, "num_processes": 2, "is_main_process": process == 0}
            state = type("", (), number | {"device": "cpu"})
            state.autocast = accelerator.autocast
            share = task.predict(model, state, dataset)
            assert torch.allclose(share.logits, logits[process::2], atol=1e-6)
            assert share.images == images[process::2]


def test_a_run_keeps_and_measures_the_best_model(data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    pretrained = save_model(tmp_path / "pretrained", M3AEForPreTraining, ["which side is there a nodule"])
    config = run(data, tmp_path / "run", model={"path": pretrained})
    task, losses = QuestionAnswering.from_config(config), iter([1.0, 2.0])
    evaluate = task.evaluate
    monkeypatch.setattr(task, "evaluate", lambda *arguments: evaluate(*arguments) | {"loss": next(losses, 3.0)})
    metrics = train(config, task)
    best, last = (load_file(config.output_dir / name / "model.safetensors") for name in ("best", "model"))
    checkpoint = checkpoint_weights(config.output_dir / "checkpoints" / "step-00000002")
    assert all(torch.equal(best[name], last[name]) for name in best), "the model of step 1, not of step 2"
    assert not torch.equal(checkpoint["vqa_head.output.weight"], best["vqa_head.output.weight"])
    assert metrics["validation/loss"] == 3.0 and metrics["test/questions"] == 3
    results = json.loads((config.output_dir / "results.json").read_text())
    assert results["metrics"]["test/accuracy"] == metrics["test/accuracy"]
    assert (results["model"], results["from_scratch"], results["answers_from"]) == (pretrained, False, "train")
    for name in ("mistakes.png", "attention_1.png", "attention_3.png"):
        assert (config.output_dir / "figures" / name).stat().st_size > 1000
    saved = M3AEForQuestionAnswering.from_pretrained(config.output_dir / "model")
    assert list(saved.config.id2label.values()) == ["left", "yes", "both", "no"]
    assert "| test | accuracy |" in (config.output_dir / "model" / "README.md").read_text()


def test_a_run_without_validation_measures_the_last_model(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    whole = write_splits(tmp_path / "data", {"train": TRAIN + VALIDATION, "test": TEST})
    config = run(whole, tmp_path / "run", training={"validate_every": None})
    metrics = train(config, QuestionAnswering.from_config(config))
    assert metrics["test/questions"] == 3 and not [name for name in metrics if name.startswith("validation/")]
    checkpoint = checkpoint_weights(config.output_dir / "checkpoints" / "step-00000002")
    last = load_file(config.output_dir / "model" / "model.safetensors")
    assert all(torch.equal(checkpoint[name], last[name]) for name in last)
    assert not (config.output_dir / "best").exists() and "undefined" not in capsys.readouterr().out


def test_a_run_without_a_best_model_says_so(data: Path, capsys: pytest.CaptureFixture[str]) -> None:
    task = build(data)
    before = {name: value.clone() for name, value in task.model.state_dict().items()}
    task.use_best(task.model)
    assert "validation/loss was undefined in every validation: the last model is measured" in capsys.readouterr().out
    assert all(torch.equal(value, before[name]) for name, value in task.model.state_dict().items())
    assert task.describe()["selected_by"] is None


def test_phantoms_are_asked_about_what_they_show(tmp_path: Path) -> None:
    prepared = {"name": "phantom", "num_studies": 20, "image_size": 32, "num_workers": 1}
    config = run(
        tmp_path / "phantoms", tmp_path / "run", data={**QUESTION, "prepare": prepared, "image_columns": ["frontal"]}
    )
    task = QuestionAnswering.from_config(config)
    assert {"yes", "no", "left", "right", "small"} < set(task.answers)
    samples = open_questions(config, "test").samples
    assert {sample.row for sample in samples} == {0, 1} and len({sample.id for sample in samples}) == len(samples)
    assert task.train_dataset[Visit(1, seed=5)].images


def test_own_data_need_no_types(tmp_path: Path) -> None:
    rows = [
        {"id": "a", "image": 9, "question": "Is it?", "answer": "Yes."},
        {"id": "b", "image": 9, "question": "Is it?"},
    ]
    rows += [{"id": "c", "image": 9, "question": "Where?", "answer": "The left"}]
    folder = write_splits(tmp_path / "data", {"train": rows, "validation": rows})
    samples = open_questions(run(folder, tmp_path / "run"), "train").samples
    truths = [sample.target for sample in samples]
    assert [(truth.answers, truth.answer_type) for truth in truths] == [(("yes",), "closed"), (("left",), "open")]


@pytest.mark.parametrize(
    ("splits", "sections", "message"),
    [
        (SPLITS | {"test": []}, {}, "split 'test' of .* is empty: all its 3 rows are in rejected.jsonl"),
        ({"train": TRAIN}, {}, "no split 'validation': training.validate_every=1 .*=null trains"),
        ({"train": TRAIN}, {"training": {"validate_every": None}}, "no split 'test': .* last model is"),
        (SPLITS, {"data": {"text_column": None}}, "data.text_column: got null"),
        (SPLITS, {"data": {"text_column": "text"}}, "no column 'text'; it has id, image, question"),
        (SPLITS, {"data": {**QUESTION, "streaming": True}}, "data.streaming: unknown key; it is an option of pre"),
        (SPLITS, {"question_answering": {"answers": "checkpoint"}}, "got checkpoint without model.path"),
        (SPLITS | {"test": [{"id": "q", "image": 1, "question": "Is it?", "answer": ""}]}, {},
         "no row of .*, test, has both question and answer"),
        (SPLITS | {"test": [{"id": "q", "image": 1, "question": "What?", "answer": "a cat"}]}, {},
         r"no question of .*, test, has an answer among the \d+ of the list .*; its answers are cat"),
        ({"train": [{"id": "a", "question": "x"}], "validation": TEST}, {"data": {**QUESTION, "image_columns": []}},
         "has no column 'answer'"),
    ],
)  # fmt: skip
def test_bad_input_is_explained(tmp_path: Path, splits: Any, sections: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        build(write_splits(tmp_path / "data", splits), **sections)


def test_a_list_that_answers_nothing_is_explained(data: Path, tmp_path: Path) -> None:
    saved = save_model(tmp_path / "model", M3AEForQuestionAnswering, id2label={0: "mri", 1: "ct"})
    with pytest.raises(
        ValueError, match=r"no question of .*, train, has an answer among the 2 of the list \(mri, ct, …\)"
    ):
        build(data, model={"path": saved}, question_answering={"answers": "checkpoint"})


def test_of_equal_scores_the_answer_that_is_measured_comes_first() -> None:
    scores = torch.zeros(400).index_fill(0, torch.tensor([7, 90, 301]), 1.0)
    names = [str(column) for column in range(400)]
    assert [entry["label"] for entry in finetuning.best_of(names, scores)] == ["7", "90", "301", "0", "1"]
    assert int(scores.argmax()) == 7
