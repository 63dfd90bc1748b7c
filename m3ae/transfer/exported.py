"""A model's encoders as folders that transformers or timm load, and in which they compute what they do here."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import fields
from pathlib import Path
from typing import Any, Literal

import torch
from torch import Tensor
from transformers import AutoConfig, AutoModel, CLIPImageProcessor, PreTrainedTokenizerBase

from m3ae.files import new_folder
from m3ae.models.configuration import M3AEImageConfig
from m3ae.models.encoders import PatchTransformer, activation
from m3ae.models.modeling import M3AEPreTrainedModel
from m3ae.transfer.names import renamed, transformers_names
from m3ae.transfer.sources import trunk_of
from m3ae.transfer.vision_transformers import activation_name

# What a vision transformer of transformers can be: its type, and the values of the options that it may have.
_PLAIN = {
    "pre_norm": (False,),
    "class_token": (True,),
    "num_registers": (0,),
    "layer_scale": (None,),
    "gated_mlp": (False,),
    "qk_norm": (False,),
    "qkv_bias": ("all",),
    "rope_theta": (None,),
}
_ANY: Any = None
_DINOV2 = {"layer_scale": _ANY, "gated_mlp": _ANY, "qkv_bias": _ANY}
_TYPES: dict[str, dict[str, Any]] = {
    "vit": {"qkv_bias": _ANY},
    "clip_vision_model": {"pre_norm": (True,)},
    "siglip_vision_model": {"class_token": (False,)},
    "dinov2": _DINOV2,
    "dinov2_with_registers": _DINOV2 | {"num_registers": _ANY},
    "dinov3_vit": _DINOV2 | {"num_registers": _ANY, "rope_theta": _ANY},
}


_OF_TIMM: dict[tuple[float, Any], str] = {  # epsilon, activation of a gated MLP → an architecture that has them
    (1e-6, False): "vit_base_patch16_224",
    (1e-5, False): "vit_base_patch16_clip_224",
    (1e-6, "silu"): "vit_giant_patch14_dinov2",
}


def export_encoder(
    model: M3AEPreTrainedModel,
    encoder: Literal["image", "text"],
    output: Path,
    tokenizer: PreTrainedTokenizerBase | None = None,
) -> str:
    """Write one encoder of a model as a folder for `AutoModel.from_pretrained` or `timm.create_model`.

    The last hidden state, of CLIP's images after its last normalisation, is what the encoder computes here. With an
    image encoder goes a processor, with a text encoder its tokenizer.

    Args:
        model: Any M3AE that has the encoder.
        encoder: `image` or `text`.
        output: A new or an empty folder.
        tokenizer: The text encoder's tokenizer.

    Returns:
        How the folder is loaded.

    Raises:
        FileExistsError: The folder holds something already.
        ValueError: The model has no such encoder, or neither library has one that computes what an image encoder does.
    """
    if not hasattr(trunk_of(model), f"{encoder}_encoder"):
        raise ValueError(
            f"A {type(model).__name__} of these modalities has no {encoder} encoder of its trunk to export."
        )
    module: Any = trunk_of(model).get_submodule(f"{encoder}_encoder")
    with new_folder(Path(output)) as folder:
        if encoder == "text":
            module.save_pretrained(folder)
            if tokenizer is not None:
                tokenizer.save_pretrained(folder)
            return f"transformers.AutoModel.from_pretrained({str(output)!r})"
        config = model.config.image_config
        assert isinstance(config, M3AEImageConfig)
        if config.resize == "pad":
            raise ValueError(
                "image_config.resize is 'pad', and neither transformers nor timm keeps a vision transformer from "
                "attending to padding: export a model with 'crop' or 'stretch', to which model.overrides change it."
            )
        size = {"height": config.image_size, "width": config.image_size}
        kind = _type_of(config)
        if kind is None:
            _save_for_timm(module.vit, config, folder)
            return f"timm.create_model({f'local-dir:{output}'!r}, pretrained=True)"
        _fill(kind, module.vit, config).save_pretrained(folder)
        is_cropped = config.resize == "crop"
        CLIPImageProcessor(
            size={"shortest_edge": config.image_size} if is_cropped else size,
            do_center_crop=is_cropped,
            crop_size=size,
            image_mean=config.image_mean,
            image_std=config.image_std,
        ).save_pretrained(folder)
        return f"transformers.AutoModel.from_pretrained({str(output)!r})"


def _type_of(config: M3AEImageConfig) -> str | None:
    """Return the first type of transformers that can be such an encoder, or None."""
    for kind, options in _TYPES.items():
        allowed = _PLAIN | options
        fits = all(values is _ANY or getattr(config, name) in values for name, values in allowed.items())
        if kind.startswith("dinov2"):
            fits &= _dinov2_ratio(config) is not None
        if fits and (kind == "dinov3_vit") == (config.rope_theta is not None):
            return kind
    return None


def _hidden_width(config: M3AEImageConfig) -> int:
    return int(config.hidden_size * config.mlp_ratio + 1e-4)


def _dinov2_ratio(config: M3AEImageConfig) -> int | None:
    """Return DINOv2's `mlp_ratio`, a whole number, for our width of the MLP; None if there is none."""
    width = _hidden_width(config)
    ratio = round(width / config.hidden_size * (1.5 if config.gated_mlp else 1))
    whole = config.hidden_size * ratio
    reached = (int(whole * 2 / 3) + 7) // 8 * 8 if config.gated_mlp else whole
    is_silu = not config.gated_mlp or config.hidden_act == "silu"
    return ratio if reached == width and is_silu else None


def _fill(kind: str, vit: PatchTransformer, config: M3AEImageConfig) -> Any:
    """Return a model of transformers with our parameters."""
    names = ("hidden_size", "num_hidden_layers", "num_attention_heads", "image_size", "patch_size", "num_channels")
    options: dict[str, Any] = {name: getattr(config, name) for name in (*names, "layer_norm_eps", "rope_theta")} | {
        "hidden_act": "gelu_pytorch_tanh" if config.hidden_act == "gelu_tanh" else config.hidden_act,
        "intermediate_size": _hidden_width(config),
        "mlp_ratio": _dinov2_ratio(config),
        "num_register_tokens": config.num_registers,
        "use_swiglu_ffn": config.gated_mlp,
        "use_gated_mlp": config.gated_mlp,
        "qkv_bias": config.qkv_bias != "none",
        "query_bias": config.qkv_bias != "none",
        "key_bias": config.qkv_bias == "all",
        "value_bias": config.qkv_bias != "none",
        "pos_embed_rescale": None,  # of training, and not ours
        "vision_use_head": False,
    }
    known = {field.name for field in fields(type(AutoConfig.for_model(kind)))}
    known |= {"vision_use_head"} if kind == "siglip_vision_model" else set()  # not declared by older versions
    target_config = AutoConfig.for_model(kind, **{name: value for name, value in options.items() if name in known})
    keywords = {"add_pooling_layer": False} if kind == "vit" else {}
    target: Any = AutoModel.from_config(target_config, **keywords)
    state, beginnings = target.state_dict(), transformers_names(kind, config.gated_mlp)
    in_halves = config.gated_mlp and not any(".weights_in." in name for name in state)
    parameters = _split(_parameters(vit, config), in_halves)
    for name, value in state.items():
        ours = renamed(name, beginnings) or name
        if ours in parameters:
            state[name] = parameters.pop(ours).reshape(value.shape)
        elif ours.endswith(".gamma"):
            state[name] = torch.ones_like(value)
        else:
            assert ours == "mask_token", name
    assert all(name.endswith("attn.k.bias") for name in parameters), list(parameters)  # without effect
    target.load_state_dict(state)
    return target.to(next(vit.parameters()).dtype).eval()


def _parameters(vit: PatchTransformer, config: M3AEImageConfig) -> dict[str, Tensor]:
    """Return the parameters, with zeros for a bias of keys that has no effect."""
    state: dict[str, Tensor] = dict(vit.state_dict())
    for name in (name for name in state if name.endswith(".qkv.bias") and config.qkv_bias == "no_key"):
        query, key, value = state[name].chunk(3)
        state[name] = torch.cat([query, torch.zeros_like(key), value])
    return state


def _split(state: Mapping[str, Tensor], gated: bool) -> dict[str, Tensor]:
    """Part the projections of queries, keys and values, and the halves of a gated MLP."""
    groups: dict[str, tuple[str, ...]] = {".attn.qkv.": (".attn.q.", ".attn.k.", ".attn.v.")}
    if gated:
        groups[".mlp.fc1."] = (".mlp.gate.", ".mlp.up.")
    parts = dict(state)
    for name, value in state.items():
        for whole, halves in groups.items():
            if whole in name:
                del parts[name]
                chunks = value.chunk(len(halves))
                parts |= {name.replace(whole, half): chunk for half, chunk in zip(halves, chunks, strict=True)}
    return parts


def _save_for_timm(vit: PatchTransformer, config: M3AEImageConfig, folder: Path) -> None:
    import timm  # slow to import
    from timm.models import save_for_hf

    act = activation_name(activation(config.hidden_act))
    kind = (config.layer_norm_eps, config.gated_mlp and act)
    architecture = _OF_TIMM.get(kind)
    if architecture is None or act is None or config.rope_theta is not None:
        options = {name: getattr(config, name) for name in ("hidden_act", "layer_norm_eps", *_PLAIN)}
        raise ValueError(f"Neither transformers nor timm has a vision transformer with all of {options}.")
    arguments: dict[str, Any] = {
        "img_size": config.image_size,
        "patch_size": config.patch_size,
        "in_chans": config.num_channels,
        "embed_dim": config.hidden_size,
        "depth": config.num_hidden_layers,
        "num_heads": config.num_attention_heads,
        "mlp_ratio": (_hidden_width(config) * (1 + config.gated_mlp) + 0.5) / config.hidden_size,  # rounded down
        "qkv_bias": config.qkv_bias != "none",
        "qk_norm": config.qk_norm,
        "init_values": config.layer_scale,
        "class_token": config.class_token,
        "no_embed_class": True,
        "reg_tokens": config.num_registers,
        "pre_norm": config.pre_norm,
        "global_pool": "token" if config.class_token else "avg",
        "fc_norm": False,
    } | ({} if config.gated_mlp else {"act_layer": act})
    state = _parameters(vit, config)
    if config.class_token:
        row, state["pos_embed"] = state["pos_embed"][:, :1], state["pos_embed"][:, 1:]
        state["cls_token"] = state["cls_token"] + row
    target = timm.create_model(architecture, num_classes=0, **arguments).to(next(vit.parameters()).dtype)
    target.load_state_dict(state)
    size = [config.num_channels, config.image_size, config.image_size]
    images: dict[str, Any] = {"input_size": size, "mean": config.image_mean, "std": config.image_std}
    images |= {"crop_mode": "squash", "crop_pct": 1.0} if config.resize == "stretch" else {}
    save_for_hf(
        target,
        str(folder),
        model_config={"pretrained_cfg": images, "num_classes": 0},
        model_args=arguments,
        safe_serialization=True,
    )
