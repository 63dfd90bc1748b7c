"""Parameter names of the published M3AE checkpoints (Chen et al. 2022) and ours."""

from __future__ import annotations

import re
from typing import Literal, NamedTuple


class _Rule(NamedTuple):
    """A name's beginning in the released format and in ours, `#` being a number, and the rules for what follows it."""

    released: str
    ours: str
    inner: tuple[_Rule, ...] = ()


_BLOCK = (
    _Rule("attn.in_proj_", "attn.qkv."),
    _Rule("attn.out_proj.", "attn.proj."),
    _Rule("mlp.c_fc.", "mlp.fc1."),
    _Rule("mlp.c_proj.", "mlp.fc2."),
    _Rule("ln_1.", "norm1."),
    _Rule("ln_2.", "norm2."),
)
_VIT = (
    _Rule("conv1.", "patch_embed.proj."),
    _Rule("class_embedding", "cls_token"),
    _Rule("positional_embedding", "pos_embed"),
    _Rule("ln_pre.", "norm_pre."),
    _Rule("ln_post.", "norm."),
    _Rule("transformer.resblocks.#.", "blocks.#.", _BLOCK),
)
_FUSION_LAYER = (
    _Rule("attention.output.dense.", "self_attention.output."),
    _Rule("attention.output.LayerNorm.", "self_attention.norm."),
    _Rule("attention.self.", "self_attention."),
    _Rule("crossattention.output.dense.", "cross_attention.output."),
    _Rule("crossattention.output.LayerNorm.", "cross_attention.norm."),
    _Rule("crossattention.self.", "cross_attention."),
    _Rule("intermediate.dense.", "intermediate."),
    _Rule("output.dense.", "output."),
    _Rule("output.LayerNorm.", "norm."),
)
_PIXEL_DECODER = (
    _Rule("mask_token", "mask_token"),
    _Rule("decoder_pos_embed", "positions"),
    _Rule("decoder_embed.", "embed."),
    _Rule("decoder_norm.", "norm."),
    _Rule("decoder_pred.", "predict."),
    _Rule("decoder.resblocks.#.", "blocks.#.", _BLOCK),
)
_TOKEN_HEAD = (
    _Rule("transform.dense.", "dense."),
    _Rule("transform.LayerNorm.", "norm."),
    _Rule("decoder.weight", "decoder.weight"),
    _Rule("bias", "decoder.bias"),
)
_POOLED_HEAD = (_Rule("0.", "dense."), _Rule("1.", "norm."), _Rule("3.", "output."))

_RULES = (
    _Rule("vision_encoder.visual.", "m3ae.image_encoder.vit.", _VIT),
    _Rule("language_encoder.", "m3ae.text_encoder."),
    _Rule("multi_modal_language_proj.", "m3ae.projections.text."),
    _Rule("multi_modal_vision_proj.", "m3ae.projections.image."),
    _Rule("modality_type_embeddings.", "m3ae.modality_types."),
    _Rule("multi_modal_language_layers.#.", "m3ae.fusion.layers.#.text.", _FUSION_LAYER),
    _Rule("multi_modal_vision_layers.#.", "m3ae.fusion.layers.#.image.", _FUSION_LAYER),
    _Rule("multi_modal_language_pooler.", "m3ae.poolers.text."),
    _Rule("multi_modal_vision_pooler.", "m3ae.poolers.image."),
    _Rule("mim_head.", "mim_head.", _PIXEL_DECODER),
    _Rule("mlm_head.", "mlm_head.", _TOKEN_HEAD),
    _Rule("itm_head.fc.", "itm_head."),
    _Rule("itc_head.", "itc_head."),  # not published; only in files that this package has written
    _Rule("vqa_head.", "vqa_head.", _POOLED_HEAD),
    _Rule("cls_head.", "cls_head.", _POOLED_HEAD),
)

# What released checkpoints hold and the published model never reads.
_UNUSED = {
    r"vision_encoder\.(positional_embedding|text_projection|logit_scale)$": "CLIP's text tower",
    r"vision_encoder\.(token_embedding|ln_final|transformer)\.": "CLIP's text tower",
    r"vision_encoder\.visual\.proj$": "CLIP's projection of images",
    r"language_encoder\.pooler\.": "RoBERTa's pooler",
    r"language_encoder\.embeddings\.position_ids$": "an index table",
    r"(train|val|test)_\w+\.\w+$": "states of metrics",
}


def why_unused(released: str) -> str | None:
    """Say what a released parameter is that the published model never reads; None for every other name."""
    return next((reason for pattern, reason in _UNUSED.items() if re.match(pattern, released)), None)


def convert_name(released: str) -> str | None:
    """Translate a released parameter name into ours; None for an unknown one and one that is never read."""
    return None if why_unused(released) else _translate(released, _RULES, "released", "ours")


def release_name(ours: str) -> str | None:
    """Translate our parameter name into the released one; None for an unknown one."""
    return _translate(ours, _RULES, "ours", "released")


_Side = Literal["released", "ours"]


def _translate(name: str, rules: tuple[_Rule, ...], source: _Side, target: _Side) -> str | None:
    for rule in rules:
        found = re.match(re.escape(getattr(rule, source)).replace(r"\#", r"(\d+)"), name)
        if found is None:
            continue
        rest: str | None = name[found.end() :]
        if rule.inner and rest is not None:
            rest = _translate(rest, rule.inner, source, target)
        head: str = getattr(rule, target).replace("#", found.group(1) if found.groups() else "")
        return None if rest is None else head + rest
    return None
