"""Pictures of what models do, for commands, app and training; the extra `figures` has the libraries that draw."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np
from matplotlib.figure import Figure
from PIL import Image

from m3ae.figures import COLUMNS, Strip, draw_attention, draw_reconstructions, draw_retrieval
from m3ae.inference.attention import word_attention
from m3ae.inference.collections import Collection
from m3ae.inference.inputs import pictures
from m3ae.inference.reconstruction import MaskedWord, Reconstruction
from m3ae.inference.search import Hit
from m3ae.models.modeling import M3AEPreTrainedModel
from m3ae.models.pretraining import M3AEForPreTraining
from m3ae.models.processing import M3AEProcessor
from m3ae.words import WORD


def draw_samples(
    model: M3AEForPreTraining,
    samples: Sequence[Reconstruction],
    texts: Sequence[str | None],
    mask_ratio: float | None = None,
) -> Figure:
    """Draw reconstructions of images; samples without an image are left out.

    Args:
        model: The model that has made the reconstructions.
        samples: The reconstructions; at least one has an image.
        texts: The texts of the samples.
        mask_ratio: The share of the patches that was hidden; None for the model's own.
    """
    with_images = [(sample, text) for sample, text in zip(samples, texts, strict=True) if sample.original is not None]
    original, masked, filled, errors = (
        np.stack([getattr(sample, name) for sample, _ in with_images])
        for name in ("original", "masked", "filled", "errors")
    )
    hidden = f"{model.config.mask_ratio if mask_ratio is None else mask_ratio:.0%} of the patches masked"
    note = "; mean and contrast of each patch are the original's" if model.config.norm_pix_loss else ""
    below = [mark_words(text, sample.words) if text else None for sample, text in with_images]
    words = "\n[…] words that were masked, and what the model put there if it is another" if any(below) else ""
    return draw_reconstructions(original, masked, filled, errors, below, hidden + note + words)


def mark_words(text: str, words: Sequence[MaskedWord] | None) -> str:
    """Return a text with its hidden words in brackets, and the model's word where it is another one."""
    hidden = {word.position: word for word in words or []}
    pieces, end = [], 0
    for position, match in enumerate(WORD.finditer(text)):
        if position in hidden:
            word = hidden[position].word
            filled = "".join(char if char.isprintable() else "·" for char in hidden[position].predicted)
            pieces += [text[end : match.start()], f"[{word if filled == word else f'{word} → {filled}'}]"]
            end = match.start() + len(word)
    return "".join([*pieces, text[end:]])


def draw_hits(
    processor: M3AEProcessor, collection: Collection, query: str | Image.Image, hits: Sequence[Hit]
) -> Figure:
    """Draw the images that were found for a text, framed where the text belongs to them, or the texts for an image."""
    captions = [f"{number}. {hit.score:.2f}" for number, hit in enumerate(hits, start=1)]
    if not isinstance(query, str):
        return draw_retrieval([Strip(pictures(processor, [query])[0], [hit.texts[0] for hit in hits], captions)])
    images = pictures(processor, [collection.load(hit.row) for hit in hits])
    framed = [number for number, hit in enumerate(hits) if query in hit.texts]
    return draw_retrieval([Strip(query, list(images), captions, framed)])


def draw_word_attention(
    model: M3AEPreTrainedModel,
    processor: M3AEProcessor,
    image: Image.Image | Mapping[str, Image.Image],
    text: str | None,
    note: str = "",
    columns: int = COLUMNS,
) -> Figure:
    """Draw an image, or the views of a study side by side, and where in it each word of a text looks.

    See `word_attention`; `note` stands below the text.
    """
    views = image if isinstance(image, Mapping) else {"image": image}
    words, maps = word_attention(model, processor, views, text)
    picture = np.hstack([*pictures(processor, [*views.values()])])
    beside = maps.transpose(1, 2).flatten(2).numpy()  # (W, n, V·n)
    return draw_attention(picture, [", ".join(views), *words], beside, text or "", note, columns)
