"""Where in the image each word of a text looks: the last layer's cross-attention.

Only the first token's row of that layer reaches a head of the model; what the words have read in the layers before
reaches it through self-attention. A map shows what was read, not why an answer was given.
"""

from __future__ import annotations

import math
from typing import NamedTuple

import torch
from PIL import Image
from torch import Tensor

from m3ae.data.collate import spell_words, word_ids
from m3ae.inference.inputs import encode_pixels
from m3ae.models.base import M3AEPreTrainedModel
from m3ae.models.modeling import STREAMS, M3AEModel
from m3ae.models.processing import M3AEProcessor

POOLED = "(pooled)"


class WordAttention(NamedTuple):
    """Attention maps of a text over an image.

    Attributes:
        words: `POOLED` for the first token, which the heads read, then the words of the text without punctuation.
        maps: (W, side, side) attention to each patch, mean over heads and over the tokens of a word; 1 is its share if
            all were equal.
    """

    words: list[str]
    maps: Tensor


@torch.no_grad()
def word_attention(
    model: M3AEPreTrainedModel, processor: M3AEProcessor, image: Image.Image, text: str
) -> WordAttention:
    """Compute with what weights the words of a text attend to an image in the last layer.

    Args:
        model: Any M3AE model, in evaluation mode.
        processor: Of that model, with a fast tokenizer.
        image: Any size.
        text: Cut to what tokenizer and model allow; words that are cut off have no map.
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
    words = [(POOLED, relative[0])]
    for number, word in enumerate(spell_words(text, numbers, encoded["offset_mapping"][0, :, 1])):
        own = relative[numbers == number]
        if word[0].isalnum() and len(own):
            words.append((word, own.mean(0)))
    side = math.isqrt(relative.shape[1] - 1)
    maps = torch.stack([row[1:] for _, row in words]).view(-1, side, side)
    return WordAttention([word for word, _ in words], maps)
