import copy
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from m3ae import M3AEForQuestionAnswering, M3AEImageProcessor, M3AEProcessor
from m3ae.data.tokenizer import train_tokenizer
from m3ae.inference import answer, inputs, load_model
from m3ae.precision import Precision
from tests.models.tiny import tiny_of

QUESTIONS = ["Is there a mass?", "Which side?", "Is there a mass on the left, and how large is it?"]


@pytest.fixture(scope="module")
def loaded() -> tuple[Any, M3AEProcessor]:
    tokenizer = train_tokenizer(QUESTIONS, 300)
    names = dict(enumerate(["yes", "no", "left", "right"]))
    model = tiny_of(M3AEForQuestionAnswering, text_config={"vocab_size": len(tokenizer)}, id2label=names)
    return model, M3AEProcessor(M3AEImageProcessor.for_size(32), tokenizer)


@pytest.fixture(scope="module")
def images() -> list[Image.Image]:
    draw = np.random.default_rng(0)
    return [Image.fromarray(draw.integers(0, 255, (40, 50), dtype=np.uint8)) for _ in range(2)]


def test_answers_are_those_of_the_model_alone(loaded, images):
    model, processor = loaded
    pairs = [(images[0], QUESTIONS[0]), (images[1], QUESTIONS[1]), (images[0], QUESTIONS[2])]
    answers = answer(model, processor, *map(list, zip(*pairs, strict=True)), top_k=9, batch_size=2)
    for (image, question), row in zip(pairs, answers, strict=True):
        batch = processor(images=image, text=question, return_tensors="pt")
        with torch.no_grad():
            expected = model(**{key: batch[key] for key in ("pixel_values", "input_ids")}).logits.sigmoid()[0]
        assert [candidate.answer for candidate in row] == [
            model.config.id2label[i] for i in expected.argsort(descending=True).tolist()
        ]
        torch.testing.assert_close(
            torch.tensor([candidate.score for candidate in row]), expected.sort(descending=True).values
        )


def test_an_image_of_several_questions_is_encoded_once(loaded, images, monkeypatch):
    model, processor = loaded
    sizes = []
    encode = type(model.m3ae).encode_image

    def counted(self, pixels, *rest):
        sizes.append(len(pixels))
        return encode(self, pixels, *rest)

    monkeypatch.setattr(type(model.m3ae), "encode_image", counted)
    assert [len(row) for row in answer(model, processor, [images[0]] * 3, QUESTIONS, top_k=1)] == [1, 1, 1]
    assert sizes == [1]


def test_a_long_question_is_cut_to_what_the_model_takes(loaded, images):
    model, processor = loaded
    long = " ".join(QUESTIONS[2:] * 20)
    assert answer(model, processor, images[:1], [long]) == answer(model, processor, images[:1], [long + " more"])


def test_what_does_not_fit_is_refused(loaded, images):
    with pytest.raises(ValueError, match="an image for each question, got 2 and 1"):
        answer(*loaded, images, QUESTIONS[:1])
    with pytest.raises(ValueError, match="top_k"):
        answer(*loaded, images[:1], QUESTIONS[:1], top_k=0)


@pytest.mark.parametrize(("chosen", "dtype"), [("no", torch.float32), ("bf16", torch.bfloat16)])
def test_a_model_saved_in_bf16_is_computed_so_only_where_that_is_fast(loaded, tmp_path, monkeypatch, chosen, dtype):
    model, processor = loaded
    copy.deepcopy(model).bfloat16().save_pretrained(tmp_path)
    processor.save_pretrained(tmp_path)
    monkeypatch.setattr(inputs, "choose_precision", lambda device: Precision(chosen, "a test"))
    assert load_model(tmp_path, [M3AEForQuestionAnswering], "cpu")[0].dtype == dtype
