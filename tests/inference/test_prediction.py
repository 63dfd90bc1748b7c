import copy
import csv
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

import m3ae
from m3ae import (
    M3AEForClassification,
    M3AEForImageTextRetrieval,
    M3AEForPreTraining,
    M3AEForQuestionAnswering,
    M3AEImageProcessor,
    M3AEProcessor,
)
from m3ae.data.tokenizer import train_tokenizer
from m3ae.inference import inputs, load_model, predict
from m3ae.inference.prediction import write_predictions
from m3ae.models.modeling import M3AEPreTrainedModel
from m3ae.precision import Precision
from tests.models.tiny import tiny_of

QUESTIONS = ["Is there a mass?", "Which side?", "Is there a mass on the left, and how large is it?"]
ANSWERS = dict(enumerate(["yes", "no", "left", "right"]))
CLASSES = dict(enumerate(["mass", "effusion", "none"]))


@pytest.fixture(scope="module")
def processor() -> M3AEProcessor:
    return M3AEProcessor(M3AEImageProcessor.for_size(32), train_tokenizer(QUESTIONS, 300))


@pytest.fixture(scope="module")
def images() -> list[Image.Image]:
    draw = np.random.default_rng(0)
    return [Image.fromarray(draw.integers(0, 255, (40, 50), dtype=np.uint8)) for _ in range(2)]


def build(processor: M3AEProcessor, kind: type[M3AEPreTrainedModel], **options: Any) -> Any:
    return tiny_of(kind, text_config={"vocab_size": len(processor.tokenizer)}, **options)


@pytest.fixture(scope="module")
def answering(processor: M3AEProcessor) -> tuple[Any, M3AEProcessor]:
    return build(processor, M3AEForQuestionAnswering, id2label=ANSWERS), processor


@torch.no_grad()
def logits(model: Any, processor: M3AEProcessor, image: Any, text: str | None) -> torch.Tensor:
    """The logits of one row alone, by the model's own forward."""
    batch = dict(processor.image_processor(image, return_tensors="pt")) if image is not None else {}
    if text is not None:
        batch["input_ids"] = processor.tokenizer(text, return_tensors="pt")["input_ids"]
    return model(**batch).logits[0]


@pytest.mark.parametrize("resize", ["crop", "pad", "stretch"])
def test_answers_are_those_of_the_model_alone(processor: Any, images: list[Image.Image], resize: Any) -> None:
    processor = M3AEProcessor(M3AEImageProcessor.for_size(32, resize), processor.tokenizer)
    options = {"id2label": ANSWERS, "image_config": {"resize": resize}}
    answering = build(processor, M3AEForQuestionAnswering, **options), processor
    pairs = [(images[0], QUESTIONS[0]), (images[1], QUESTIONS[1]), (images[0], QUESTIONS[2])]
    rows = predict(answering, *map(list, zip(*pairs, strict=True)), top_k=9, batch_size=2)
    for (image, question), row in zip(pairs, rows, strict=True):
        expected = logits(*answering, image, question).sigmoid().sort(descending=True)
        assert [entry["answer"] for entry in row["answers"]] == [ANSWERS[i] for i in expected.indices.tolist()]
        probabilities = torch.tensor([entry["probability"] for entry in row["answers"]])
        torch.testing.assert_close(probabilities, expected.values)
        assert (row["prediction"], row["probability"]) == (*row["answers"][0].values(),)


def test_an_image_of_several_questions_is_encoded_once(answering: Any, images: Any, monkeypatch: Any) -> None:
    sizes = []
    encode = type(answering[0].m3ae).encode_image

    def counted(self: Any, pixel_values: torch.Tensor, **rest: Any) -> Any:
        sizes.append(len(pixel_values))
        return encode(self, pixel_values, **rest)

    monkeypatch.setattr(type(answering[0].m3ae), "encode_image", counted)
    assert [len(row["answers"]) for row in predict(answering, [images[0]] * 3, QUESTIONS, top_k=1)] == [1, 1, 1]
    assert sizes == [1]


def test_a_long_question_is_cut_to_what_the_model_takes(answering: Any, images: list[Image.Image]) -> None:
    long = " ".join(QUESTIONS[2:] * 20)
    assert predict(answering, images[:1], long) == predict(answering, images[:1], [long + " more"])


def test_one_class_a_sample(processor: M3AEProcessor, images: list[Image.Image]) -> None:
    model = build(processor, M3AEForClassification, id2label=CLASSES, calibration_temperature=2.0)
    cases = [(images[0], "a mass"), (images[1], None), (None, "a mass"), (None, None)]
    rows = predict((model, processor), *map(list, zip(*cases, strict=True)))
    for (image, text), row in zip(cases[:3], rows, strict=False):
        expected = (logits(model, processor, image, text) / 2).softmax(-1)
        torch.testing.assert_close(torch.tensor([*row["probabilities"].values()]), expected)
        assert row["prediction"] == CLASSES[int(expected.argmax())] and [*row["probabilities"]] == [*CLASSES.values()]
    assert rows[3] == {"error": "no image and no text"}


def test_several_labels_by_their_thresholds(processor: M3AEProcessor, images: list[Image.Image]) -> None:
    options = {"id2label": CLASSES, "problem_type": "multi_label_classification", "input_streams": ["image"]}
    model = build(processor, M3AEForClassification, **options)
    expected = logits(model, processor, images[0], None).sigmoid()
    for thresholds in (None, [float(expected[0]), float(expected[1]) + 0.01, 0.0]):
        model.config.decision_thresholds = thresholds
        (row,) = predict((model, processor), images[:1], "words that the head was not trained on")
        torch.testing.assert_close(torch.tensor([*row["probabilities"].values()]), expected)
        bounds = thresholds or [0.5] * 3
        reached = [name for name, p, bound in zip(CLASSES.values(), expected, bounds, strict=True) if p >= bound]
        assert row["prediction"] == reached
    assert reached == ["mass", "none"], "a probability at the threshold counts"
    assert predict((model, processor), [None], "text")[0] == {"error": "no image"}


@pytest.mark.parametrize("kind", [M3AEForImageTextRetrieval, M3AEForPreTraining])
def test_scores_of_pairs(processor: M3AEProcessor, images: list[Image.Image], kind: Any) -> None:
    model = build(processor, kind, itc_weight=1.0)
    rows = predict((model, processor), [images[0], images[1], images[1]], [*QUESTIONS[:2], None])
    for image, text, row in zip(images, QUESTIONS, rows, strict=False):
        with torch.no_grad():
            pixels = processor.image_processor(image, return_tensors="pt")["pixel_values"]
            ids = processor.tokenizer(text, return_tensors="pt")["input_ids"]
            streams = model.m3ae.encode_text(ids), model.m3ae.encode_image(pixels)
            cosine = model.itc_head.embed("text", streams[0]) @ model.itc_head.embed("image", streams[1]).T
            expected = {"score": float(model.score(*streams)), "cosine": float(cosine)}
        assert row == pytest.approx(expected, abs=1e-5)
    assert rows[2] == {"error": "no text"}
    model.config.itm_weight = model.config.num_negatives = 0
    assert predict((model, processor), images[:1], QUESTIONS[0])[0].keys() == {"cosine"}


def test_a_model_of_views_reads_those_that_a_row_has(processor: M3AEProcessor, images: list[Image.Image]) -> None:
    model = build(processor, M3AEForClassification, id2label=CLASSES, views=["frontal", "lateral"])
    both = dict(zip(("frontal", "lateral"), images, strict=True))
    rows = predict((model, processor), [both, {"lateral": images[1]}, images[0], {"a": images[0], "b": images[1]}])
    pixels = processor(images=images, return_tensors="pt")["pixel_values"].expand(3, 2, -1, -1, -1)
    present = torch.tensor([[True, True], [False, True], [True, False]])
    with torch.no_grad():
        expected = model(pixels, image_present=present).logits.softmax(-1)
    for row, probabilities in zip(rows, expected, strict=False):
        torch.testing.assert_close(torch.tensor([*row["probabilities"].values()]), probabilities)
    assert rows[3] == {"error": "images a, b: expected some of the views frontal, lateral"}


def test_any_image_is_taken_and_a_broken_one_has_a_reason(
    answering: Any, images: list[Image.Image], tmp_path: Path
) -> None:
    images[0].save(tmp_path / "x.png")
    (tmp_path / "report.png").write_text("%PDF-1.7")
    given = [tmp_path / "x.png", str(tmp_path / "x.png"), (tmp_path / "x.png").read_bytes(), images[0]]
    given += [np.asarray(images[0]), tmp_path / "report.png", tmp_path / "gone.png", None, []]
    answering[0].save_pretrained(tmp_path / "model")
    answering[1].save_pretrained(tmp_path / "model")
    rows = m3ae.predict(tmp_path / "model", given, QUESTIONS[0])
    assert all(row == rows[0] and "prediction" in row for row in rows[:5])
    assert [row["error"] for row in rows[5:-1]] == ["not an image: report.png", "image missing: gone.png", "no image"]
    assert rows[-1]["error"].startswith("got an image of type list, expected a picture")
    assert "no question" in m3ae.predict(answering, images[:1])[0]["error"]


def test_cells_of_a_table(tmp_path: Path) -> None:
    rows = [
        {"id": "a", "prediction": ["x", "y"], "probabilities": {"x": 0.75, "y": 2 / 3}},
        {"id": "b", "error": "not an image: b.png"},
    ]
    write_predictions(tmp_path / "p.csv", rows)
    lines = (tmp_path / "p.csv").read_text().splitlines()
    assert lines == [
        "id,prediction,probability_x,probability_y,error",
        "a,x;y,0.75,0.666667,",
        "b,,,,not an image: b.png",
    ]
    answers = [{"answer": "yes", "probability": 0.5}, {"answer": "no", "probability": 0.25}]
    write_predictions(tmp_path / "q.csv", [{"id": "a", "prediction": "yes", "probability": 0.5, "answers": answers}])
    with (tmp_path / "q.csv").open() as file:
        (row,) = csv.DictReader(file)
    assert row == {"id": "a", "prediction": "yes", "probability": "0.5"} | {
        "answer_2": "no",
        "probability_2": "0.25",
        "error": "",
    }


def test_what_does_not_fit_is_refused(answering: Any, images: list[Image.Image], tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="or one for all, got 1 for 2 images"):
        predict(answering, images, QUESTIONS[:1])
    with pytest.raises(ValueError, match="top_k"):
        predict(answering, images[:1], QUESTIONS[0], top_k=0)
    for model in (b"\0\0", answering[0], None):
        with pytest.raises(TypeError, match=r"model: got .*, expected a folder, a hub name, or a model with"):
            predict(model, images[:1], QUESTIONS[0])
    with pytest.raises(ValueError, match=r"expected a name that ends in \.csv or \.json"):
        write_predictions(tmp_path / "p.xlsx", [])


@pytest.mark.parametrize(("chosen", "dtype"), [("no", torch.float32), ("bf16", torch.bfloat16)])
def test_a_model_saved_in_bf16_is_computed_so_only_where_that_is_fast(
    answering: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, chosen: str, dtype: torch.dtype
) -> None:
    model, processor = answering
    copy.deepcopy(model).bfloat16().save_pretrained(tmp_path)
    processor.save_pretrained(tmp_path)
    monkeypatch.setattr(inputs, "choose_precision", lambda device: Precision(chosen, "a test"))
    assert load_model(tmp_path, [M3AEForQuestionAnswering], "cpu")[0].dtype == dtype
