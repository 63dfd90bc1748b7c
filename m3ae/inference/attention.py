"""Where in an image a model looks, and each word of a text.

Shapes: N patches, L text tokens, W words.
"""

from __future__ import annotations

import math
from typing import NamedTuple

import torch
from PIL import Image
from torch import Tensor

from m3ae.inference.inputs import encode_pixels
from m3ae.models.masking import real_patches
from m3ae.models.modalities.text import spell_words, word_ids
from m3ae.models.modeling import STREAMS, M3AEModel, M3AEPreTrainedModel
from m3ae.models.processing import M3AEProcessor

POOLED = "(pooled)"


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
    model: M3AEPreTrainedModel, processor: M3AEProcessor, image: Image.Image, text: str | None
) -> WordAttention:
    """Compute the weights by which the words of a text attend to an image in the last layer of the fusion.

    Without a text, or for a head that reads images alone, the image's first token attends to its patches. Only the
    first token's row of that layer reaches a head of the model; what the words have read in the layers before reaches
    it through self-attention. A map shows what was read, not why an answer was given.

    Args:
        model: Any M3AE model, in evaluation mode.
        processor: The model's processor, with a fast tokenizer.
        image: An image of any size.
        text: A text, cut to what tokenizer and model allow; words that are cut off have no map. None without text.
    """
    if not isinstance(text, str | None):
        raise TypeError(f"text: got {text!r}, expected one text, or None")
    trunk, pixels = model.base_model, encode_pixels(model, processor, [image])
    assert isinstance(trunk, M3AEModel)
    real = real_patches(pixels.get("pixel_mask"), trunk.image_encoder.vit.patch_size)
    if text is None or model.config.input_streams == ["image"]:
        attentions = trunk(**pixels, output_attentions=True).attentions
        row = attentions[-1][0, :, 0].float().mean(0).cpu()
        return WordAttention([POOLED], _maps(row[None], real))
    encoded = processor.tokenizer(
        text,
        truncation=True,
        max_length=min(model.config.longest_text, processor.tokenizer.model_max_length),
        return_offsets_mapping=True,
        return_special_tokens_mask=True,
        return_tensors="pt",
    )
    streams = trunk.encode(**pixels, input_ids=encoded["input_ids"].to(model.device))
    weights = trunk.fusion.cross_attention({name: streams[name] for name in STREAMS}, "text")[0].float().mean(0).cpu()
    numbers = word_ids(text, encoded["offset_mapping"][0, :, 0].numpy())
    numbers[encoded["special_tokens_mask"][0].bool()] = -1
    words, rows = [POOLED], [weights[0]]
    for number, word in enumerate(spell_words(text, numbers, encoded["offset_mapping"][0, :, 1])):
        tokens = weights[numbers == number]
        if word[0].isalnum() and len(tokens):
            words.append(word)
            rows.append(tokens.mean(0))
    return WordAttention(words, _maps(torch.stack(rows), real))


def _maps(weights: Tensor, real: Tensor | None) -> Tensor:
    """Return weights (W, 1 + N) that add up to 1 as multiples of an even share, of the patches alone (W, √N, √N).

    The share is that of the first token and the `real` patches (1, N), or of all if None.
    """
    side = math.isqrt(weights.shape[1] - 1)
    count = weights.shape[1] if real is None else 1 + int(real.sum())
    return (weights * count)[:, 1:].view(-1, side, side)
