"""Pictures of what models do, for commands, app and training; the extra `figures` has what they need."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from matplotlib.figure import Figure
from PIL import Image

from m3ae.data.words import WORD
from m3ae.figures import COLUMNS, Strip, draw_attention, draw_reconstructions, draw_retrieval
from m3ae.inference.attention import word_attention
from m3ae.inference.collections import Collection
from m3ae.inference.inputs import pictures
from m3ae.inference.reconstruction import MaskedWord, Reconstruction
from m3ae.inference.search import Hit
from m3ae.models.base import M3AEPreTrainedModel
from m3ae.models.pretraining import M3AEForPreTraining
from m3ae.models.processing import M3AEProcessor


def draw_samples(
    model: M3AEForPreTraining,
    samples: Sequence[Reconstruction],
    texts: Sequence[str | None],
    mask_ratio: float | None = None,
) -> Figure:
    """Draw reconstructions of images; samples without one are left out.

    Args:
        model: That has made them.
        samples: Of which at least one has an image.
        texts: Of the samples.
        mask_ratio: That was asked for; None for the model's own.
    """
    shown = [(sample, text) for sample, text in zip(samples, texts, strict=True) if sample.original is not None]
    parts = [np.stack([getattr(sample, name) for sample, _ in shown]) for name in ("original", "masked", "filled")]
    errors = np.stack([sample.errors for sample, _ in shown if sample.errors is not None])
    hidden = f"{model.config.mask_ratio if mask_ratio is None else mask_ratio:.0%} of the patches masked"
    note = "; mean and contrast of each patch are the original's" if model.config.norm_pix_loss else ""
    below = [mark_words(text, sample.words) if text else None for sample, text in shown]
    words = "\n[…] words that were masked, and what the model put there if it is another" if any(below) else ""
    return draw_reconstructions(parts[0], parts[1], parts[2], errors, below, hidden + note + words)


def mark_words(text: str, words: Sequence[MaskedWord] | None) -> str:
    """Return a text with its hidden words in brackets, and what the model puts there if it is another word."""
    predicted = {word.place: word for word in words or []}
    parts, end = [], 0
    for place, match in enumerate(WORD.finditer(text)):
        if place in predicted:
            word = predicted[place].word
            filled = "".join(char if char.isprintable() else "·" for char in predicted[place].predicted)
            parts += [text[end : match.start()], f"[{word if filled == word else f'{word} → {filled}'}]"]
            end = match.start() + len(word)
    return "".join([*parts, text[end:]])


def draw_found_images(
    processor: M3AEProcessor, collection: Collection, queries: Sequence[str], found: Sequence[Sequence[Hit]]
) -> Figure:
    """Draw the images found for texts; those that a text belongs to are framed."""
    strips = []
    for query, hits in zip(queries, found, strict=True):
        right = {owner for text, owner in zip(collection.texts, collection.owners, strict=True) if text == query}
        images = pictures(processor, [collection.load(hit.place) for hit in hits])
        places = [number for number, hit in enumerate(hits) if hit.place in right]
        strips.append(Strip(query, list(images), _captions(hits), places))
    return draw_retrieval(strips)


def draw_found_texts(
    processor: M3AEProcessor, queries: Sequence[Image.Image], found: Sequence[Sequence[Hit]]
) -> Figure:
    """Draw the texts found for images."""
    images = pictures(processor, queries)
    strips = [
        Strip(image, [hit.name for hit in hits], _captions(hits)) for image, hits in zip(images, found, strict=True)
    ]
    return draw_retrieval(strips)


def draw_word_attention(
    model: M3AEPreTrainedModel,
    processor: M3AEProcessor,
    image: Image.Image,
    text: str,
    note: str = "",
    columns: int = COLUMNS,
) -> Figure:
    """Draw an image and where in it each word of a text looks; `note` is a line below the text."""
    words, maps = word_attention(model, processor, image, text)
    return draw_attention(pictures(processor, [image])[0], words, maps.numpy(), text, note, columns)


def _captions(hits: Sequence[Hit]) -> list[str]:
    return [f"{number}. {hit.score:.2f}" for number, hit in enumerate(hits, start=1)]
