"""The masked pass of pre-training by one of two schedules: which inputs are masked, encoded and fused.

Shapes: B batch, V views, S tokens, M masked tokens, K visible patches, D fusion width.
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import NamedTuple

import torch
from torch import Tensor

from m3ae.models.configuration import M3AEConfig
from m3ae.models.fusion import Stream, class_tokens, first_token
from m3ae.models.heads import Contrast
from m3ae.models.masking import PatchMask, TokenMask
from m3ae.models.modalities import Modality
from m3ae.models.modeling import STREAMS, M3AEModel
from m3ae.models.pairs import ImageTextBatch, MatchingPairs

Contrasting = Callable[[Stream, Stream], Contrast]  # of encoded texts and images


class Masks(NamedTuple):
    """What is hidden of a batch, and which text is matched with which image."""

    patches: PatchMask
    words: TokenMask
    pairs: MatchingPairs


@dataclass
class FusedTokens:
    """What the heads read, None where nothing reads it.

    Attributes:
        text: (B, M, D) the text's tokens at the positions to predict.
        image: (B, V·(1 + K), D) class token and visible patches as the pixel decoder reads them.
        pair: Stream → class tokens (B, V, D) of the pairs to match.
        pair_present: (B,) or (B, V) bool, which images of the pairs are present; None if all are.
        contrast: Texts and images beside each other, before the fusion.
        whole: Stream → the unmasked input, encoded.
    """

    text: Tensor | None = None
    image: Tensor | None = None
    pair: dict[str, Tensor] | None = None
    pair_present: Tensor | None = None
    contrast: Contrast | None = None
    whole: dict[str, Stream] = field(default_factory=dict)


def separate_passes(
    config: M3AEConfig, trunk: M3AEModel, contrast: Contrasting | None, batch: ImageTextBatch, masks: Masks
) -> FusedTokens:
    """Mask one modality at a time and match on unmasked inputs (Chen et al. 2022)."""
    fused, (patches, words, pairs) = FusedTokens(), masks
    if config.mlm_weight or config.itm_weight or contrast:
        image = fused.whole["image"] = batch.encode_image(trunk)
    if config.mim_weight or config.itm_weight or contrast:
        text = fused.whole["text"] = trunk.encode_text(batch.input_ids, batch.attention_mask, batch.text_present)
    if config.mlm_weight:
        masked = trunk.encode_text(words.input_ids, batch.attention_mask, batch.text_present)
        states = trunk.fuse({"text": masked, "image": image}, read={"text": words.positions})
        fused.text = states[-1]["text"]
    if config.mim_weight:
        visible = batch.encode_image(trunk, patches.ids_keep)
        depth = None if config.mim_layer < 0 else config.mim_layer
        states = trunk.fuse({"text": text, "image": visible}, read={"image": None}, num_layers=depth)
        fused.image = states[-1]["image"]
    if config.itm_weight:
        streams = {"text": text, "image": image.select(pairs.image_index)}
        fused.pair = trunk.fuse(streams, read=dict.fromkeys(STREAMS, first_token(pairs.labels)))[-1]
        fused.pair_present = streams["image"].present
    if contrast is not None:
        fused.contrast = contrast(text, image)
    return fused


def joint_pass(
    config: M3AEConfig, trunk: M3AEModel, contrast: Contrasting | None, batch: ImageTextBatch, masks: Masks
) -> FusedTokens:
    """Mask both modalities at once and fuse once, the mismatched pairs as further rows of the batch."""
    fused, (patches, words, pairs) = FusedTokens(), masks
    text = trunk.encode_text(words.input_ids, batch.attention_mask, batch.text_present)
    image = batch.encode_image(trunk, patches.ids_keep)
    if contrast is not None:
        fused.contrast = contrast(text, image)
    if not (config.mim_weight or config.mlm_weight or config.itm_weight):
        return fused
    size = batch.input_ids.shape[0]
    matched = torch.arange(size, device=batch.input_ids.device)
    mismatched = (1 - pairs.labels).argsort(descending=True)[: (size + 1) // 2]  # all of them, and perhaps others
    if not config.itm_weight:
        mismatched = mismatched[:0]
    texts = torch.cat([matched, mismatched])
    images = torch.cat([matched, pairs.image_index[mismatched]])
    first = first_token(texts)
    reads_last = config.mim_layer in (-1, config.num_hidden_layers)
    read = {"text": torch.cat([first, words.positions[texts]], dim=1), "image": None if reads_last else first}
    states = trunk.fuse({"text": text.select(texts), "image": image.select(images)}, read)
    fused.text = states[-1]["text"][:size, 1:]
    fused.image = states[config.mim_layer]["image"][:size]
    if config.itm_weight:
        further = size + torch.arange(mismatched.shape[0], device=matched.device)
        row = torch.where(pairs.labels == 1, matched, torch.zeros_like(matched).scatter(0, mismatched, further))
        image_tokens = class_tokens(states[-1]["image"], image.num_views)
        fused.pair = {"text": states[-1]["text"][row, :1], "image": image_tokens[row]}
        fused.pair_present = None if image.present is None else image.present[images][row]
    return fused


def contrast_alone(config: M3AEConfig) -> M3AEConfig:
    """Return a configuration whose masked pass encodes as `config` has it, contrasts, and fuses nothing."""
    alone = copy.copy(config)
    alone.mim_weight = alone.mlm_weight = alone.itm_weight = 0.0
    return alone


SCHEDULES = {"separate": separate_passes, "joint": joint_pass}


def check_modalities(config: M3AEConfig, modalities: Mapping[str, Modality]) -> None:
    """Raise ValueError unless each modality of the latent head is the trunk's text or one of its images."""
    texts = [name for name, modality in modalities.items() if modality.stream == "text"]
    images = [name for name, modality in modalities.items() if modality.stream == "image"]
    views = config.views or images[:1]
    if len(texts) > 1 or len(texts) + len(images) < len(modalities) or not set(images) <= set(views):
        kinds = {name: f"{modality.kind}, encoder {modality.config.encoder}" for name, modality in modalities.items()}
        raise ValueError(
            f"latent.modalities: M3AEForPreTraining has a text (encoder roberta) and the images "
            f"{config.views or 'of one view'} (encoder vit), got {kinds}; M3AEForGeneration trains any modalities"
        )
