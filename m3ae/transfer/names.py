"""Parameter names of the published M3AE checkpoints (Chen et al. 2022), of other libraries' encoders, and ours."""

from __future__ import annotations

import re
from collections.abc import Mapping


def nested(outer: str, ours: str, inner: Mapping[str, str]) -> dict[str, str]:
    """Return the beginnings `inner` of names, behind the beginning `outer` of others' names and behind `ours`."""
    return {outer + theirs: ours + name for theirs, name in inner.items()}


def renamed(name: str, beginnings: Mapping[str, str]) -> str | None:
    """Replace the first of the beginnings that a name has, `#` being a number; None for any other name."""
    for old, new in beginnings.items():
        if match := re.match(re.escape(old).replace(r"\#", r"(\d+)"), name):
            return new.replace("#", match.group(1) if match.groups() else "") + name[match.end() :]
    return None


_BLOCK = {
    "attn.in_proj_": "attn.qkv.",
    "attn.out_proj.": "attn.proj.",
    "mlp.c_fc.": "mlp.fc1.",
    "mlp.c_proj.": "mlp.fc2.",
    "ln_1.": "norm1.",
    "ln_2.": "norm2.",
}
OPENAI = {  # the vision transformer of OpenAI's CLIP → timm's names, which ours are
    "conv1.": "patch_embed.proj.",
    "class_embedding": "cls_token",
    "positional_embedding": "pos_embed",
    "ln_pre.": "norm_pre.",
    "ln_post.": "norm.",
    **nested("transformer.resblocks.#.", "blocks.#.", _BLOCK),
}

# Vision transformers of transformers → timm's names. Queries, keys and values, and the halves of a gated MLP, are
# joined afterwards.
_ATTENTION = {
    "attention.q_proj.": "attn.q.",
    "attention.k_proj.": "attn.k.",
    "attention.v_proj.": "attn.v.",
    "attention.o_proj.": "attn.proj.",
}
_OLD_DINOV2 = {  # as older versions of transformers have them
    "attention.attention.query.": "attn.q.",
    "attention.attention.key.": "attn.k.",
    "attention.attention.value.": "attn.v.",
    "attention.output.dense.": "attn.proj.",
    "mlp.weights_in.": "mlp.fc1.",
    "mlp.weights_out.": "mlp.fc2.",
}
_MLP = {"mlp.fc1.": "mlp.fc1.", "mlp.fc2.": "mlp.fc2."}
_GATED_MLP = {"mlp.gate_proj.": "mlp.gate.", "mlp.up_proj.": "mlp.up.", "mlp.down_proj.": "mlp.fc2."}
_SCALED = {
    "norm1.": "norm1.",
    "norm2.": "norm2.",
    "layer_scale1.lambda1": "ls1.gamma",
    "layer_scale2.lambda1": "ls2.gamma",
    **_ATTENTION,
}
_TOKENS = {
    "embeddings.cls_token": "cls_token",
    "embeddings.register_tokens": "reg_token",
    "embeddings.mask_token": "mask_token",  # left out afterwards
}
_EMBEDDINGS = {
    **_TOKENS,
    "embeddings.position_embeddings": "pos_embed",
    "embeddings.patch_embeddings.projection.": "patch_embed.proj.",
    "layernorm.": "norm.",
}
_VIT = _EMBEDDINGS | nested(
    "layers.#.",
    "blocks.#.",
    {"layernorm_before.": "norm1.", "layernorm_after.": "norm2.", **_ATTENTION, **_MLP},
)
_CLIP = {
    "embeddings.class_embedding": "cls_token",
    "embeddings.position_embedding.weight": "pos_embed",
    "embeddings.patch_embedding.": "patch_embed.proj.",
    "pre_layrnorm.": "norm_pre.",
    "post_layernorm.": "norm.",
    **nested(
        "encoder.layers.#.",
        "blocks.#.",
        {
            "layer_norm1.": "norm1.",
            "layer_norm2.": "norm2.",
            "self_attn.q_proj.": "attn.q.",
            "self_attn.k_proj.": "attn.k.",
            "self_attn.v_proj.": "attn.v.",
            "self_attn.out_proj.": "attn.proj.",
            "mlp.": "mlp.",
        },
    ),
}


def transformers_names(model_type: str, gated: bool) -> dict[str, str]:
    """Return the beginnings of the names that an encoder of transformers has, and ours.

    Args:
        model_type: The type of its configuration.
        gated: Whether the encoder has a gated MLP.
    """
    if model_type.startswith("dinov2"):
        mlp = _GATED_MLP if gated else _MLP
        return _EMBEDDINGS | nested("encoder.layer.#.", "blocks.#.", _SCALED | mlp | _OLD_DINOV2)
    if model_type == "dinov3_vit":
        mlp = _GATED_MLP if gated else {"mlp.up_proj.": "mlp.fc1.", "mlp.down_proj.": "mlp.fc2."}
        embeddings = {**_TOKENS, "embeddings.patch_embeddings.": "patch_embed.proj.", "norm.": "norm."}
        return embeddings | nested("model.layer.#.", "blocks.#.", _SCALED | mlp)
    return _VIT if model_type in ("vit", "vit_mae") else _CLIP


# timm's variants of its own names, and those of Meta's DINOv2 files.
TIMM = {
    "register_tokens": "reg_token",
    **nested(
        "blocks.#.",
        "blocks.#.",
        {
            "gamma_1": "ls1.gamma",
            "gamma_2": "ls2.gamma",
            "attn.q_bias": "attn.q.bias",
            "attn.v_bias": "attn.v.bias",
            "mlp.fc1_g.": "mlp.gate.",
            "mlp.fc1_x.": "mlp.up.",
            "mlp.w12.": "mlp.fc1.",
            "mlp.w3.": "mlp.fc2.",
        },
    ),
}

_FUSION_LAYER = {
    "attention.output.dense.": "self_attention.output.",
    "attention.output.LayerNorm.": "self_attention.norm.",
    "attention.self.": "self_attention.",
    "crossattention.output.dense.": "cross_attention.output.",
    "crossattention.output.LayerNorm.": "cross_attention.norm.",
    "crossattention.self.": "cross_attention.",
    "intermediate.dense.": "intermediate.",
    "output.dense.": "output.",
    "output.LayerNorm.": "norm.",
}
_PIXEL_DECODER = {
    "mask_token": "mask_token",
    "decoder_pos_embed": "positions",
    "decoder_embed.": "embed.",
    "decoder_norm.": "norm.",
    "decoder_pred.": "predict.",
    **nested("decoder.resblocks.#.", "blocks.#.", _BLOCK),
}
_TOKEN_HEAD = {
    "transform.dense.": "dense.",
    "transform.LayerNorm.": "norm.",
    "decoder.weight": "decoder.weight",
    "bias": "decoder.bias",
}
_POOLED_HEAD = {"0.": "dense.", "1.": "norm.", "3.": "output."}

_RELEASED = {
    **nested("vision_encoder.visual.", "m3ae.image_encoder.vit.", OPENAI),
    "language_encoder.": "m3ae.text_encoder.",
    "multi_modal_language_proj.": "m3ae.projections.text.",
    "multi_modal_vision_proj.": "m3ae.projections.image.",
    "modality_type_embeddings.": "m3ae.modality_types.",
    **nested("multi_modal_language_layers.#.", "m3ae.fusion.layers.#.text.", _FUSION_LAYER),
    **nested("multi_modal_vision_layers.#.", "m3ae.fusion.layers.#.image.", _FUSION_LAYER),
    "multi_modal_language_pooler.": "m3ae.poolers.text.",
    "multi_modal_vision_pooler.": "m3ae.poolers.image.",
    **nested("mim_head.", "mim_head.", _PIXEL_DECODER),
    **nested("mlm_head.", "mlm_head.", _TOKEN_HEAD),
    "itm_head.fc.": "itm_head.",
    "itc_head.": "itc_head.",  # not published; only in files that this package has written
    **nested("vqa_head.", "vqa_head.", _POOLED_HEAD),
    **nested("cls_head.", "cls_head.", _POOLED_HEAD),
}
_OURS = {ours: released for released, ours in _RELEASED.items()}

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
    return None if why_unused(released) else renamed(released, _RELEASED)


def release_name(ours: str) -> str | None:
    """Translate our parameter name into the released one; None for an unknown one."""
    return renamed(ours, _OURS)
