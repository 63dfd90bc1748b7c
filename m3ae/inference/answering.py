"""Answers to questions about images.

Shapes: B batch, D fusion width, A answers.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import torch
from PIL import Image

from m3ae.inference.inputs import BATCH_SIZE, encode_pixels, encode_words
from m3ae.models.finetuned import M3AEForQuestionAnswering
from m3ae.models.processing import M3AEProcessor


class Answer(NamedTuple):
    """An answer of the model's list and its probability."""

    answer: str
    score: float


@torch.inference_mode()
def answer(
    model: M3AEForQuestionAnswering,
    processor: M3AEProcessor,
    images: Sequence[Image.Image],
    questions: Sequence[str],
    *,
    top_k: int = 5,
    batch_size: int = BATCH_SIZE,
) -> list[list[Answer]]:
    """Answer questions, each about the image in the same place.

    An image that several questions of a batch share, as the same object, is encoded once.

    Args:
        model: In evaluation mode.
        processor: Of that model.
        images: As many as questions.
        questions: Cut to what the model takes.
        top_k: Answers to each, at most.
        batch_size: Questions at a time.

    Returns:
        For each question its answers, the most probable first.

    Raises:
        ValueError: Not as many images as questions, or `top_k` is below 1.
    """
    if len(images) != len(questions):
        raise ValueError(f"expected an image for each question, got {len(images)} and {len(questions)}")
    if top_k < 1:
        raise ValueError(f"top_k must be at least 1, got {top_k}")
    names = model.config.id2label
    assert names is not None
    found: list[list[Answer]] = []
    for start in range(0, len(questions), batch_size):
        batch = images[start : start + batch_size]
        distinct = {id(image): image for image in batch}
        places = {key: place for place, key in enumerate(distinct)}
        rows = torch.tensor([places[id(image)] for image in batch], device=model.device)
        image = model.m3ae.encode_image(encode_pixels(model, processor, [*distinct.values()])).select(rows)
        text = model.m3ae.encode_text(**encode_words(model, processor, questions[start : start + batch_size]))
        logits = model.vqa_head(model.m3ae.fuse_and_pool({"text": text, "image": image}))
        best = model.probabilities(logits.float()).topk(min(top_k, logits.shape[-1]))
        for columns, scores in zip(best.indices.tolist(), best.values.tolist(), strict=True):
            found.append([Answer(names[column], score) for column, score in zip(columns, scores, strict=True)])
    return found
