import numpy as np
import pytest
import torch
from PIL import Image
from transformers import pipeline

from m3ae import M3AEForQuestionAnswering, M3AEImageProcessor, M3AEProcessor
from m3ae.models.hub import QuestionAnsweringPipeline
from m3ae.transfer.text_encoders import load_tokenizer
from tests.images.test_dicom import write
from tests.models.tiny import tiny_of
from tests.transfer.released import word_tokenizer

ANSWERS = ["yes", "no", "left", "right", "effusion", "none", "mass"]
IMAGE = Image.linear_gradient("L").resize((50, 40))
QUESTION = {"image": IMAGE, "question": "is there an effusion"}


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory):
    folder = tmp_path_factory.mktemp("model")
    tokenizer = load_tokenizer(word_tokenizer(tmp_path_factory.mktemp("words"), 128))
    tokenizer.model_max_length = 16
    tiny_of(M3AEForQuestionAnswering, id2label=dict(enumerate(ANSWERS))).save_pretrained(folder)
    M3AEProcessor(M3AEImageProcessor.for_size(32), tokenizer).save_pretrained(folder)
    return folder


@pytest.fixture(scope="module")
def answer(folder) -> QuestionAnsweringPipeline:
    return pipeline("m3ae-question-answering", str(folder), device="cpu")


def test_answers_with_probabilities(answer, folder) -> None:
    assert isinstance(answer, QuestionAnsweringPipeline)
    found = answer(QUESTION)
    inputs = M3AEProcessor.from_pretrained(folder)(
        images=IMAGE.convert("RGB"), text=QUESTION["question"], return_tensors="pt"
    )
    with torch.no_grad():
        scores = answer.model(**{name: inputs[name] for name in ("pixel_values", "input_ids", "attention_mask")})
    scores = scores.logits[0].sigmoid()
    best = scores.argsort(descending=True)[:5].tolist()
    assert [row["answer"] for row in found] == [ANSWERS[index] for index in best]
    assert [row["score"] for row in found] == pytest.approx(scores[best].tolist())


def test_lists_batches_files_and_long_questions(answer, tmp_path) -> None:
    IMAGE.save(tmp_path / "image.png")
    questions = [QUESTION, {"image": str(tmp_path / "image.png"), "question": "is there " * 30}]
    alone = [answer(question, top_k=2) for question in questions]
    together = answer(questions, top_k=2, batch_size=2)
    assert [len(rows) for rows in together] == [2, 2]
    for rows, own in zip(together, alone, strict=True):
        assert [row["answer"] for row in rows] == [row["answer"] for row in own]
        assert [row["score"] for row in rows] == pytest.approx([row["score"] for row in own], abs=1e-4)
    assert len(answer(QUESTION, top_k=100)) == len(ANSWERS)


def test_wide_images_arrays_and_dicom_are_answered_like_8_bit_ones(answer, tmp_path) -> None:
    pixels = np.asarray(IMAGE)
    low, high = int(pixels.min()), int(pixels.max())
    pixels = np.round((pixels - low) * (255.0 / (high - low))).astype(np.uint8)
    Image.fromarray(pixels.astype(np.uint16) * 16).save(tmp_path / "a.png")
    write(tmp_path / "a.dcm", pixels.astype(np.uint16) * 16, bits=12)
    kinds = [Image.fromarray(pixels), pixels / 255, pixels, str(tmp_path / "a.png"), tmp_path / "a.dcm"]
    answers = [answer({**QUESTION, "image": image}) for image in kinds]
    assert answers[1:] == answers[:1] * 4


def test_a_saved_pipeline_loads_again_in_bfloat16(answer, tmp_path) -> None:
    answer.save_pretrained(tmp_path)
    again = pipeline("m3ae-question-answering", str(tmp_path), device="cpu", dtype=torch.bfloat16)
    assert again(QUESTION)[0]["score"] == pytest.approx(answer(QUESTION)[0]["score"], abs=0.05)


def test_wrong_calls(answer) -> None:
    with pytest.raises(ValueError, match="or a list of these; got Image"):
        answer(IMAGE)
    with pytest.raises(ValueError, match=r"got \['image', 'text'\]"):
        answer({"image": IMAGE, "text": "?"})
    with pytest.raises(ValueError, match="no option topk; it has top_k and batch_size"):
        answer(QUESTION, topk=3)
    with pytest.raises(ValueError, match="top_k must be at least 1, got 0"):
        answer(QUESTION, top_k=0)
