"""Parameter names of the published M3AE checkpoints (Chen et al. 2022) and ours."""

from __future__ import annotations

import re
from collections.abc import Mapping

from torch import Tensor

# Applied in order to a released name; the first group that matches wins within each list.
_PARTS = (
    (r"^vision_encoder\.visual\.", "m3ae.image_encoder.vit."),
    (r"^language_encoder\.", "m3ae.text_encoder."),
    (r"^multi_modal_language_proj\.", "m3ae.projections.text."),
    (r"^multi_modal_vision_proj\.", "m3ae.projections.image."),
    (r"^modality_type_embeddings\.", "m3ae.modality_types."),
    (r"^multi_modal_language_layers\.(\d+)\.", r"m3ae.fusion.layers.\1.text."),
    (r"^multi_modal_vision_layers\.(\d+)\.", r"m3ae.fusion.layers.\1.image."),
    (r"^multi_modal_language_pooler\.", "m3ae.poolers.text."),
    (r"^multi_modal_vision_pooler\.", "m3ae.poolers.image."),
    (r"^mim_head\.decoder_embed\.", "mim_head.embed."),
    (r"^mim_head\.decoder_pos_embed$", "mim_head.positions"),
    (r"^mim_head\.decoder_norm\.", "mim_head.norm."),
    (r"^mim_head\.decoder_pred\.", "mim_head.predict."),
    (r"^mlm_head\.bias$", "mlm_head.decoder.bias"),
    (r"^mlm_head\.transform\.dense\.", "mlm_head.dense."),
    (r"^mlm_head\.transform\.LayerNorm\.", "mlm_head.norm."),
    (r"^itm_head\.fc\.", "itm_head."),
)
_INNER = {
    "m3ae.image_encoder.vit.": (
        (r"vit\.conv1\.", "vit.patch_embed.proj."),
        (r"vit\.class_embedding$", "vit.cls_token"),
        (r"vit\.positional_embedding$", "vit.pos_embed"),
        (r"vit\.ln_pre\.", "vit.norm_pre."),
        (r"vit\.ln_post\.", "vit.norm."),
        (r"vit\.transformer\.resblocks\.", "vit.blocks."),
    ),
    "mim_head.": ((r"decoder\.resblocks\.", "blocks."),),
    "m3ae.fusion.": (
        (r"\.attention\.self\.", ".self_attention."),
        (r"\.attention\.output\.dense\.", ".self_attention.output."),
        (r"\.attention\.output\.LayerNorm\.", ".self_attention.norm."),
        (r"\.crossattention\.self\.", ".cross_attention."),
        (r"\.crossattention\.output\.dense\.", ".cross_attention.output."),
        (r"\.crossattention\.output\.LayerNorm\.", ".cross_attention.norm."),
        (r"\.intermediate\.dense\.", ".intermediate."),
        (r"\.output\.dense\.", ".output."),
        (r"\.output\.LayerNorm\.", ".norm."),
    ),
}
_CLIP_BLOCK = (
    (r"\.attn\.in_proj_(weight|bias)$", r".attn.qkv.\1"),
    (r"\.attn\.out_proj\.", ".attn.proj."),
    (r"\.mlp\.c_fc\.", ".mlp.fc1."),
    (r"\.mlp\.c_proj\.", ".mlp.fc2."),
    (r"\.ln_([12])\.", r".norm\1."),
)

# What released checkpoints hold and the published model never reads: CLIP's text tower, RoBERTa's pooler, an index
# table.
UNUSED = (
    r"^vision_encoder\.(positional_embedding|token_embedding\.|ln_final\.|text_projection|logit_scale|transformer\.)",
    r"^vision_encoder\.visual\.proj$",
    r"^language_encoder\.pooler\.",
    r"^language_encoder\.embeddings\.position_ids$",
)


def convert_name(released: str) -> str | None:
    """Translate a released parameter name; None for a part that the published model never reads."""
    if any(re.search(pattern, released) for pattern in UNUSED):
        return None
    name = released
    for pattern, replacement in _PARTS:
        name, count = re.subn(pattern, replacement, name)
        if count:
            break
    for prefix, rules in _INNER.items():
        if name.startswith(prefix):
            for pattern, replacement in rules:
                name = re.sub(pattern, replacement, name)
    for pattern, replacement in _CLIP_BLOCK:
        name = re.sub(pattern, replacement, name)
    return name


def convert_state_dict(released: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Translate a released state dict, leaving out what the published model never reads."""
    converted = {}
    for key, value in released.items():
        name = convert_name(key)
        if name is None:
            continue
        if name.endswith("vit.cls_token"):
            value = value[None, None]
        elif name.endswith("vit.pos_embed"):
            value = value[None]
        converted[name] = value
    return converted
