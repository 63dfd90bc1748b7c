"""Where in an image a model looks, and each word of a text.

Shapes: N patches, L text tokens, S tokens, V views, W words.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import NamedTuple

import torch
from PIL import Image
from torch import Tensor

from m3ae.inference.inputs import encode_pixels
from m3ae.models.fusion import joined_views
from m3ae.models.modalities.text import spell_words, word_ids
from m3ae.models.modeling import M3AEModel, M3AEPreTrainedModel
from m3ae.models.processing import M3AEProcessor

POOLED = "(pooled)"


class WordAttention(NamedTuple):
    """Attention maps of a text over an image, or over the views of a study.

    Attributes:
        words: `POOLED` for the first token, which the heads read, then the words of the text without punctuation.
        maps: (W, √N, √N), or (W, V, √N, √N) of V views: attention to each patch, mean over heads and over the tokens
            of a word; 1 is an even share.
    """

    words: list[str]
    maps: Tensor


@torch.no_grad()
def word_attention(
    model: M3AEPreTrainedModel,
    processor: M3AEProcessor,
    image: Image.Image | Mapping[str, Image.Image],
    text: str | None,
) -> WordAttention:
    """Compute the weights by which the words of a text attend to an image in the last layer of the fusion.

    Without a text, or for a head that reads images alone, the first token of each image attends to its own patches.
    Heads read only the first token of that layer. The words reach this token through self-attention, from the layers
    before. A map shows where a word looks, not why an answer is given.

    Args:
        model: Any M3AE model, in evaluation mode.
        processor: The model's processor, with a fast tokenizer.
        image: An image of any size, or the images of a study by view.
        text: A text, cut to what tokenizer and model allow; words that are cut off have no map. None without text.
    """
    if not isinstance(text, str | None):
        raise TypeError(f"text: got {text!r}, expected one text, or None")
    views = image if isinstance(image, Mapping) else {"": image}
    maps = _maps_of_views(model, processor, views, None if model.config.input_streams == ["image"] else text)
    return maps if isinstance(image, Mapping) else maps._replace(maps=maps.maps[:, 0])


def _maps_of_views(
    model: M3AEPreTrainedModel, processor: M3AEProcessor, views: Mapping[str, Image.Image], text: str | None
) -> WordAttention:
    trunk = model.base_model
    assert isinstance(trunk, M3AEModel)
    pixels = encode_pixels(model, processor, [*views.values()])
    present = torch.ones(1, dtype=torch.bool, device=model.device)
    images = joined_views(
        [
            trunk.encode_image(
                **{name: values[number : number + 1] for name, values in pixels.items()},
                present=present,
                view=model.config.view_number(view),
            )
            for number, view in enumerate(views)
        ]
    )
    if text is None:
        by_view = zip(trunk.fusion.self_attention({"image": images}, "image"), images.views(), strict=True)
        shares = [_multiples(weights[0, :, :1].float().mean(0), view.mask).cpu() for weights, view in by_view]
        return WordAttention([POOLED], _maps(torch.cat(shares, dim=1), len(views)))
    encoded = processor.tokenizer(
        text,
        truncation=True,
        max_length=min(model.config.longest_text, processor.tokenizer.model_max_length),
        return_offsets_mapping=True,
        return_special_tokens_mask=True,
        return_tensors="pt",
    )
    streams = {"text": trunk.encode_text(encoded["input_ids"].to(model.device)), "image": images}
    weights: Tensor = trunk.fusion.cross_attention(streams, "text")[0].float().mean(0)
    numbers = word_ids(text, encoded["offset_mapping"][0, :, 0].numpy())
    numbers[encoded["special_tokens_mask"][0].bool()] = -1
    words, rows = [POOLED], [weights[0]]
    for number, word in enumerate(spell_words(text, numbers, encoded["offset_mapping"][0, :, 1])):
        tokens = weights[numbers == number]
        if word[0].isalnum() and len(tokens):
            words.append(word)
            rows.append(tokens.mean(0))
    return WordAttention(words, _maps(_multiples(torch.stack(rows), images.mask).cpu(), len(views)))


def _multiples(weights: Tensor, mask: Tensor | None) -> Tensor:
    """Return weights (W, S) that add up to 1 as multiples of an even share among the tokens of a mask (1, S)."""
    return weights * (weights.shape[1] if mask is None else int(mask.sum()))


def _maps(shares: Tensor, num_views: int) -> Tensor:
    """Return the shares (W, V·(1 + N)) of the patches alone (W, V, √N, √N)."""
    side = math.isqrt(shares.shape[1] // num_views - 1)
    maps: Tensor = shares.unflatten(1, (num_views, -1))[..., 1:].unflatten(-1, (side, side))
    return maps
