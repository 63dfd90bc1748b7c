"""Answers to questions about images, and where in the image each word of a question looks.

Shapes: B batch, D fusion width, A answers, N patches, L text tokens, W words.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import NamedTuple

import torch
from PIL import Image
from torch import Tensor

from m3ae.inference.inputs import BATCH_SIZE, encode_pixels, encode_words
from m3ae.models.finetuned import M3AEForQuestionAnswering
from m3ae.models.modalities.text import spell_words, word_ids
from m3ae.models.modeling import STREAMS, M3AEModel, M3AEPreTrainedModel
from m3ae.models.processing import M3AEProcessor

POOLED = "(pooled)"


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
    """Answer questions, each about the image with the same number.

    An image that several questions of a batch share, as the same object, is encoded once.

    Args:
        model: The model, in evaluation mode.
        processor: The model's processor.
        images: An image for each question.
        questions: The questions, cut to what the model takes.
        top_k: The number of answers to each question, at most.
        batch_size: The number of questions at a time.

    Returns:
        The answers to each question, the most probable first.

    Raises:
        ValueError: The numbers of images and questions differ, or `top_k` is below 1.
    """
    if len(images) != len(questions):
        raise ValueError(f"expected an image for each question, got {len(images)} and {len(questions)}")
    if top_k < 1:
        raise ValueError(f"top_k must be at least 1, got {top_k}")
    names = model.config.id2label
    assert names is not None
    answers: list[list[Answer]] = []
    for start in range(0, len(questions), batch_size):
        batch = images[start : start + batch_size]
        distinct = {id(image): image for image in batch}
        numbers = {key: number for number, key in enumerate(distinct)}
        rows = torch.tensor([numbers[id(image)] for image in batch], device=model.device)
        image = model.m3ae.encode_image(encode_pixels(model, processor, [*distinct.values()])).select(rows)
        text = model.m3ae.encode_text(**encode_words(model, processor, questions[start : start + batch_size]))
        logits = model.vqa_head(model.m3ae.fuse_and_pool({"text": text, "image": image}))
        best = model.probabilities(logits.float()).topk(min(top_k, logits.shape[-1]))
        for columns, scores in zip(best.indices.tolist(), best.values.tolist(), strict=True):
            answers.append([Answer(names[column], score) for column, score in zip(columns, scores, strict=True)])
    return answers


class WordAttention(NamedTuple):
    """Attention maps of a text over an image.

    Attributes:
        words: `POOLED` for the first token, which the heads read, then the words of the text without punctuation.
        maps: (W, √N, √N) attention to each patch, mean over heads and over the tokens of a word; 1 is its share if all
            were equal.
    """

    words: list[str]
    maps: Tensor


@torch.no_grad()
def word_attention(
    model: M3AEPreTrainedModel, processor: M3AEProcessor, image: Image.Image, text: str
) -> WordAttention:
    """Compute the weights by which the words of a text attend to an image in the last layer.

    Only the first token's row of that layer reaches a head of the model; what the words have read in the layers before
    reaches it through self-attention. A map shows what was read, not why an answer was given.

    Args:
        model: Any M3AE model, in evaluation mode.
        processor: The model's processor, with a fast tokenizer.
        image: An image of any size.
        text: A text, cut to what tokenizer and model allow; words that are cut off have no map.
    """
    trunk = model.base_model
    assert isinstance(trunk, M3AEModel)
    encoded = processor.tokenizer(
        text,
        truncation=True,
        max_length=min(model.config.longest_text, processor.tokenizer.model_max_length),
        return_offsets_mapping=True,
        return_special_tokens_mask=True,
        return_tensors="pt",
    )
    streams = trunk.encode(encode_pixels(model, processor, [image]), encoded["input_ids"].to(model.device))
    weights = trunk.fusion.cross_attention({name: streams[name] for name in STREAMS}, "text")[0].float().mean(0).cpu()
    relative = weights * weights.shape[-1]  # (L, 1 + N)
    numbers = word_ids(text, encoded["offset_mapping"][0, :, 0].numpy())
    numbers[encoded["special_tokens_mask"][0].bool()] = -1
    words, rows = [POOLED], [relative[0]]
    for number, word in enumerate(spell_words(text, numbers, encoded["offset_mapping"][0, :, 1])):
        tokens = relative[numbers == number]
        if word[0].isalnum() and len(tokens):
            words.append(word)
            rows.append(tokens.mean(0))
    side = math.isqrt(relative.shape[1] - 1)
    return WordAttention(words, torch.stack(rows)[:, 1:].view(-1, side, side))
