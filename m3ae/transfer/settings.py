"""The configuration that a released checkpoint's weights and settings imply, and the settings that ours implies."""

from __future__ import annotations

import math
import re
from collections.abc import Mapping
from typing import Any

from torch import Tensor
from transformers import PreTrainedConfig

from m3ae.models.configuration import M3AEConfig, M3AEImageConfig
from m3ae.transfer.reading import CheckpointError, Released

_VISION = "vision_encoder.visual."
_TEXT = "language_encoder."
_FUSION = "multi_modal_language_layers."
CLIP_HEAD_WIDTH = 64  # every published CLIP has heads of this width


def infer_config(released: Released) -> M3AEConfig:
    """Infer every size of a released checkpoint.

    Weights decide wherever they can. The numbers of attention heads, which they do not show, are those of CLIP
    (width / 64) for images, `num_heads` for the fusion and for a text encoder of the same width, and width / 64 for
    any other text encoder; the sections `roberta` and `vision` of the settings overrule both encoders' numbers.

    Raises:
        CheckpointError: A weight or a setting that is needed is missing.
        ValueError: Sizes that make no model.
    """
    if "m3ae" in released.settings:
        return M3AEConfig(**released.settings["m3ae"])
    state, published = released.state, released.settings["config"]
    hidden_size, intermediate_size = _shape(state, _FUSION + "0.output.dense.weight")
    has_decoder = "mim_head.decoder_embed.weight" in state
    decoder_size = _shape(state, "mim_head.decoder_embed.weight")[0] if has_decoder else None
    options = {
        "mim_layer": published.get("mim_layer"),
        "mask_ratio": published.get("mim_prob"),
        "mlm_probability": published.get("mlm_prob"),
        "norm_pix_loss": published.get("norm_pix_loss"),
        "decoder_hidden_size": decoder_size or published.get("mim_decoder_hidden_size"),
        "decoder_num_hidden_layers": _count(state, "mim_head.decoder.resblocks.")
        or published.get("mim_decoder_num_layers"),
        "decoder_num_attention_heads": published.get("mim_decoder_num_heads"),
        "hidden_dropout_prob": published.get("drop_rate"),
        "attention_probs_dropout_prob": published.get("drop_rate"),
    }
    return M3AEConfig(
        image_config=_image_config(released),
        text_config=_text_config(released, hidden_size),
        hidden_size=hidden_size,
        num_hidden_layers=_count(state, _FUSION),
        num_attention_heads=_setting(published, "num_heads"),
        intermediate_size=intermediate_size,
        **{name: value for name, value in options.items() if value is not None},
    )


def _image_config(released: Released) -> dict[str, Any]:
    state = released.state
    width, channels, patch_size, _ = _shape(state, _VISION + "conv1.weight")
    side = math.isqrt(_shape(state, _VISION + "positional_embedding")[0] - 1)
    mlp_width = _shape(state, _VISION + "transformer.resblocks.0.mlp.c_fc.weight")[0]
    return {
        "image_size": side * patch_size,
        "patch_size": patch_size,
        "num_channels": channels,
        "hidden_size": width,
        "num_hidden_layers": _count(state, _VISION + "transformer.resblocks."),
        "num_attention_heads": released.settings.get("vision", {}).get("heads", width // CLIP_HEAD_WIDTH),
        "mlp_ratio": mlp_width / width,
    }


def _text_config(released: Released, fusion_width: int) -> dict[str, Any]:
    state, settings = released.state, released.settings
    vocab_size, width = _shape(state, _TEXT + "embeddings.word_embeddings.weight")
    heads = _setting(settings["config"], "num_heads") if width == fusion_width else width // CLIP_HEAD_WIDTH
    is_bert = len(state[_TEXT + "embeddings.token_type_embeddings.weight"]) == 2
    return {
        **({"model_type": "bert", "pad_token_id": 0} if is_bert else {}),
        "vocab_size": vocab_size,
        "hidden_size": width,
        "num_hidden_layers": _count(state, _TEXT + "encoder.layer."),
        "num_attention_heads": settings.get("roberta", {}).get("num_attention_heads", heads),
        "intermediate_size": _shape(state, _TEXT + "encoder.layer.0.intermediate.dense.weight")[0],
        "max_position_embeddings": _shape(state, _TEXT + "embeddings.position_embeddings.weight")[0],
    }


def published_settings(config: M3AEConfig, loss_names: Mapping[str, float]) -> dict[str, Any]:
    """Return the published settings (`hyper_parameters.config`) of a model with our configuration."""
    image, text = config.image_config, config.text_config
    assert isinstance(image, M3AEImageConfig) and isinstance(text, PreTrainedConfig)
    return {
        "vit": f"ViT-B/{image.patch_size}",
        "tokenizer": {"roberta": "roberta-base", "bert": "bert-base-uncased"}[text.model_type],
        "vocab_size": text.vocab_size,
        "hidden_size": config.hidden_size,
        "num_layers": config.num_hidden_layers,
        "num_heads": config.num_attention_heads,
        "mlp_ratio": config.intermediate_size // config.hidden_size,
        "max_text_len": min(64, config.longest_text),
        "drop_rate": config.hidden_dropout_prob,
        "image_size": image.image_size,
        "patch_size": image.patch_size,
        "input_text_embed_size": text.hidden_size,
        "input_image_embed_size": image.hidden_size,
        "num_top_layer": config.num_hidden_layers,
        "loss_names": dict(loss_names),
        "mim_prob": config.mask_ratio,
        "mim_decoder_hidden_size": config.decoder_hidden_size,
        "mim_decoder_num_layers": config.decoder_num_hidden_layers,
        "mim_decoder_num_heads": config.decoder_num_attention_heads,
        "norm_pix_loss": config.norm_pix_loss,
        "mim_layer": config.mim_layer,
        "load_path": "",
        "test_only": False,
        "vqa_label_size": config.num_labels,
        "melinda_label_size": {"labels": config.num_labels},
        "label_column_name": "labels",
    }


def departures(config: M3AEConfig) -> list[str]:
    """Say where the published code, which fixes these options, would compute other numbers with our weights."""
    image, text = config.image_config, config.text_config
    assert isinstance(image, M3AEImageConfig) and isinstance(text, PreTrainedConfig)
    fixed = (
        ("image_config.num_attention_heads", image.num_attention_heads, image.hidden_size // CLIP_HEAD_WIDTH),
        ("image_config.hidden_act", image.hidden_act, "quick_gelu"),
        ("image_config.pre_norm", image.pre_norm, True),
        ("image_config.layer_norm_eps", image.layer_norm_eps, 1e-5),
        ("text_config.hidden_act", text.hidden_act, "gelu"),
        ("text_config.layer_norm_eps", text.layer_norm_eps, 1e-12 if text.model_type == "bert" else 1e-5),
        ("layer_norm_eps", config.layer_norm_eps, 1e-12),
    )
    return [f"{name} is {ours}, the published code has {theirs}" for name, ours, theirs in fixed if ours != theirs]


def _shape(state: Mapping[str, Tensor], name: str) -> tuple[int, ...]:
    if name not in state:
        raise CheckpointError(f"The checkpoint has no {name}, which every M3AE has; it is incomplete.")
    return tuple(state[name].shape)


def _setting(published: Mapping[str, Any], name: str) -> Any:
    if name not in published:
        raise CheckpointError(f"hyper_parameters.config has no {name}, which no weight shows; it cannot be converted.")
    return published[name]


def _count(state: Mapping[str, Tensor], prefix: str) -> int:
    """Return one more than the largest number that follows the prefix in a name; 0 if there is none."""
    found = (re.match(re.escape(prefix) + r"(\d+)\.", name) for name in state)
    return max((int(match.group(1)) + 1 for match in found if match), default=0)
