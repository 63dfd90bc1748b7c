"""Released checkpoints of the published M3AE: their content, and the configuration that it implies."""

from __future__ import annotations

import math
import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from torch import Tensor
from transformers import PreTrainedConfig

from m3ae.files import load_json
from m3ae.models.configuration import M3AEConfig, M3AEImageConfig
from m3ae.transfer.checkpoints import CheckpointError, architecture_of, load_checkpoint, some, state_of

CLIP_HEAD_WIDTH = 64  # every published CLIP has heads of this width
_VISION = "vision_encoder.visual."
_TEXT = "language_encoder."
_FUSION = "multi_modal_language_layers."


@dataclass(frozen=True)
class Released:
    """A released checkpoint.

    Attributes:
        state: Parameters by released name.
        settings: `hyper_parameters`: the published settings under `config`; files written by this package also have
            the whole configuration under `m3ae`.
    """

    state: dict[str, Tensor]
    settings: dict[str, Any]


def read_released(path: str | Path) -> Released:
    """Read a released checkpoint (`m3ae.ckpt`) with `weights_only=True`.

    A `config.json` beside the file that has the sections `roberta` or `vision` adds these to the settings: they state
    the numbers of attention heads, which no weight shows.

    Raises:
        CheckpointError: The file is missing, cut short, asks to run code, or holds something else.
    """
    path = Path(path)
    content = load_checkpoint(path)
    state = state_of(content)
    _check_is_m3ae(path, state)
    settings = content.get("hyper_parameters")
    if not isinstance(settings, Mapping) or not isinstance(settings.get("config"), Mapping):
        raise CheckpointError(
            f"{path} has the weights of an M3AE but no hyper_parameters.config, which says how many attention heads "
            f"they make up; got the entries {some(content)}. Use the whole Lightning file, not its state_dict alone."
        )
    settings = {**settings, **_sections(path.parent / "config.json")}
    _check_encoders(path, state, settings["config"])
    return Released(state, settings)


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
    decoder = state.get("mim_head.decoder_embed.weight")
    options = {
        "mim_layer": published.get("mim_layer"),
        "mask_ratio": published.get("mim_prob"),
        "mlm_probability": published.get("mlm_prob"),
        "norm_pix_loss": published.get("norm_pix_loss"),
        "decoder_hidden_size": published.get("mim_decoder_hidden_size") if decoder is None else len(decoder),
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


def _sections(path: Path) -> dict[str, Any]:
    """Return those of the sections `roberta` and `vision` that a JSON file has."""
    if not path.is_file():
        return {}
    try:
        content = load_json(path)
    except ValueError as error:
        raise CheckpointError(f"{error}; correct this entry, or remove it.") from error
    content = content if isinstance(content, dict) else {}
    sections = {key: content[key] for key in ("roberta", "vision") if key in content}
    if wrong := [key for key, section in sections.items() if not isinstance(section, dict)]:
        raise CheckpointError(f"{path}: {wrong[0]} is {sections[wrong[0]]!r:.99}, expected an object of settings.")
    return sections


def _check_is_m3ae(path: Path, state: Mapping[str, Tensor]) -> None:
    if any(key.startswith(_FUSION) for key in state):
        return
    architecture = architecture_of(state)
    what = f"the weights of {architecture}" if architecture else "other weights" if state else "no weights"
    raise CheckpointError(
        f"{path} is not an M3AE checkpoint: it holds {what}, with names like {some(state)}; expected names like "
        "multi_modal_language_layers.0.attention.self.query.weight."
    )


def _check_encoders(path: Path, state: Mapping[str, Tensor], config: Mapping[str, Any]) -> None:
    if _VISION + "conv1.weight" not in state:
        names = [key for key in state if key.startswith("vision_encoder.")]
        raise CheckpointError(
            f"{path}: the image encoder is {config.get('vit', 'unknown')!r}, with names like {some(names)}; expected "
            f"a vision transformer of CLIP ({_VISION}conv1.weight). Swin encoders are not supported."
        )
    types = state.get(_TEXT + "embeddings.token_type_embeddings.weight")
    tokenizer, count = str(config.get("tokenizer", "roberta")), 0 if types is None else len(types)
    if count != (1 if "roberta" in tokenizer.lower() else 2):
        raise CheckpointError(
            f"{path}: the text encoder is neither a RoBERTa nor a BERT: its tokenizer is {tokenizer!r} and it has "
            f"{count} token types; expected 1 with a RoBERTa tokenizer and 2 with another."
        )


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
    matches = (re.match(re.escape(prefix) + r"(\d+)\.", name) for name in state)
    return max((int(match.group(1)) + 1 for match in matches if match), default=0)
