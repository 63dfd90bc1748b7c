"""Published vision transformers as other libraries save them, brought to one form.

Everything that decides what the parameters compute is read from the source, or the source is refused. Files of bare
parameters do not state everything: the rest is taken to be what such files have by convention, and a remark says so.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import timm
from safetensors import SafetensorError
from timm.layers.attention import Attention
from timm.layers.mlp import GluMlp, Mlp, SwiGLU
from timm.models import is_model_in_modules
from timm.models.eva import Eva, EvaAttention, EvaBlock
from timm.models.vision_transformer import Block, VisionTransformer
from torch import Tensor, nn
from transformers import (
    CLIPVisionModel,
    Dinov2Model,
    Dinov2WithRegistersModel,
    DINOv3ViTModel,
    Siglip2VisionModel,
    SiglipVisionModel,
    ViTMAEModel,
    ViTModel,
)
from transformers.activations import ACT2FN
from transformers.image_processing_base import ImageProcessingMixin
from transformers.utils.hub import cached_file

from m3ae.files import load_json_object
from m3ae.models.configuration import M3AEConfig
from m3ae.models.modeling import M3AEModel
from m3ae.models.processing import M3AEImageProcessor
from m3ae.transfer.checkpoints import first_line, is_torchscript, read_tensors
from m3ae.transfer.names import OPENAI, renamed, transformers_names
from m3ae.transfer.released import CLIP_HEAD_WIDTH
from m3ae.transfer.sources import load_published, read_config
from m3ae.transfer.vision_transformers import (
    BICUBIC,
    BICUBIC_ANTIALIASED,
    BILINEAR,
    SOURCES,
    PublishedViT,
    completed,
    content_of,
    known_activation,
    normalization_of,
    refusal,
    square,
)

_OPEN_CLIP = "open_clip_config.json"
_OF_EVA = ("blocks.0.gamma_1", "blocks.0.attn.q_bias", "blocks.0.mlp.fc1_g.")
_OPEN_CLIP_WEIGHTS = ("open_clip_model.safetensors", "open_clip_pytorch_model.bin")


def read_vit(source: str) -> PublishedViT:
    """Read a published vision transformer, recognised by its configuration or by the names of its parameters.

    Args:
        source: One of `SOURCES`.

    Raises:
        ValueError: There is nothing at the source, it holds something else, or it cannot be expressed here.
    """
    path = Path(source)
    if path.is_file():
        published = _from_file(path)
    elif not path.is_dir() and "/" not in source:
        if not timm.is_model(source):
            raise ValueError(
                f"There is no file, folder or timm model called {source!r}; expected {SOURCES}. "
                'timm.list_pretrained("vit_*") lists names.'
            )
        published = _from_timm(source, source)
    elif (file := _cached(source, _OPEN_CLIP)) is not None:
        published = _from_open_clip(source, load_json_object(file))
    else:
        config = read_config(source, SOURCES)
        if "architecture" in config:  # only timm writes this key
            published = _from_timm(source, f"{'local-dir' if path.is_dir() else 'hf-hub'}:{source}")
        elif config.get("model_type") in _TRANSFORMERS:
            published = _from_transformers(source, config["model_type"])
        elif config.get("model_type") == M3AEConfig.model_type:
            published = _from_m3ae(source)
        else:
            raise refusal(source, f"holds a {config.get('model_type') or 'model of no stated type'}")
    return completed(published)


def _cached(source: str, name: str) -> Path | None:
    """Return a file of a folder or of a model of the hub, or None if there is none."""
    if Path(source).is_dir():
        return Path(source, name) if Path(source, name).is_file() else None
    try:
        file = cached_file(source, name, _raise_exceptions_for_missing_entries=False)
    except (OSError, ValueError):
        return None
    return None if file is None else Path(file)


def _from_timm(source: str, name: str) -> PublishedViT:
    try:
        model: Any = timm.create_model(name, pretrained=True)
    except (OSError, RuntimeError, ValueError, KeyError, TypeError, SafetensorError) as error:
        raise ValueError(f"timm cannot load {source!r}: {first_line(error)}") from error
    options, notes, remarks = _timm_options(model, source), str(model.pretrained_cfg.get("notes")), tuple[str, ...]()
    # timm offers OpenAI's and some other weights with an activation that they were not trained with, and notes it.
    if name == source and "natively QuickGELU" in notes and options["hidden_act"] != "quick_gelu":
        remarks = (f"taken with QuickGELU, as it was trained; timm computes {options['hidden_act']} under this name",)
        options["hidden_act"] = "quick_gelu"
    kind, normalization = f"timm's {type(model).__name__}", normalization_of(model.pretrained_cfg, "mean", "std")
    return PublishedViT(source, kind, model.state_dict(), [], options, {}, normalization, remarks=remarks)


def _timm_options(model: Any, source: str) -> dict[str, Any]:
    """Return what a model of timm computes beside its parameters.

    Raises:
        ValueError: The model is not one that can be expressed here.
    """
    known = {VisionTransformer: (Block, Attention), Eva: (EvaBlock, EvaAttention)}.get(type(model))
    if known is None:
        raise refusal(source, f"holds timm's {type(model).__name__}")
    for block in model.blocks:
        kinds = (type(block), type(getattr(block, "attn", None)))
        if kinds != known:
            names = " and ".join(kind.__name__ for kind in kinds)
            raise refusal(source, f"holds timm's {type(model).__name__} with blocks of another kind ({names})")
    block, rope = model.blocks[0], getattr(model, "rope", None)
    if not isinstance(block.norm1, nn.LayerNorm):
        raise refusal(source, f"normalises by {type(block.norm1).__name__}, which ours does not")
    gate_first = isinstance(block.mlp, SwiGLU) or (isinstance(block.mlp, GluMlp) and not block.mlp.gate_last)
    if type(block.mlp) is not Mlp and not gate_first:
        raise refusal(source, f"has timm's {type(block.mlp).__name__} for an MLP, which ours is not")
    options = {
        "num_attention_heads": block.attn.num_heads,
        "hidden_act": known_activation(block.mlp.act, source),
        "layer_norm_eps": block.norm1.eps,
        "image_size": square(model.patch_embed.img_size, source, "images"),
    }
    if rope is not None:
        plain = type(rope).__name__ == "RotaryEmbeddingDinoV3" and rope.rotate_half and not rope.grid_offset
        if not plain or rope.normalize_coords != "separate" or rope.temperature is None or model.pos_embed is not None:
            raise refusal(source, f"has other positions ({type(rope).__name__}) than a table or DINOv3's rotary ones")
        options["rope_theta"] = float(rope.temperature)
    if isinstance(model, Eva) and block.attn.q_bias is not None:
        options["qkv_bias"] = "no_key"
    return options


def _from_transformers(source: str, model_type: str) -> PublishedViT:
    model_class, resampling = _TRANSFORMERS[model_type]
    keywords = {"add_pooling_layer": False} if model_type == "vit" else {}
    model, left_out = load_published(source, model_class, **keywords)
    config, state = model.config, dict(model.state_dict())
    if model_type.startswith("siglip2"):
        name, patch_size = "embeddings.patch_embedding.weight", config.patch_size
        state[name] = state[name].unflatten(1, (patch_size, patch_size, -1)).permute(0, 3, 1, 2)
        size: Any = patch_size * math.isqrt(config.num_patches)
    else:
        size = config.image_size
    square(config.patch_size, source, "patches")
    swiglu = getattr(config, "use_swiglu_ffn", False)  # of DINOv2, whatever its hidden_act says
    options = {
        "num_attention_heads": config.num_attention_heads,
        "hidden_act": "silu" if swiglu else known_activation(ACT2FN[config.hidden_act], source),
        "layer_norm_eps": config.layer_norm_eps,
        "image_size": square(size, source, "images"),
    }
    if model_type == "dinov3_vit":
        biased = (config.query_bias, config.key_bias, config.value_bias)
        kinds = {(True, True, True): "all", (True, False, True): "no_key", (False, False, False): "none"}
        if biased not in kinds:
            raise refusal(source, f"has biases of queries, keys and values {biased}, which ours cannot have")
        options |= {"rope_theta": float(config.rope_theta), "qkv_bias": kinds[biased]}
    try:
        processor = ImageProcessingMixin.get_image_processor_dict(source)[0]
    except OSError:
        processor = {}
    names = transformers_names(model_type, swiglu or getattr(config, "use_gated_mlp", False))
    state = {renamed(name, names) or name: value for name, value in state.items()}
    normalization = normalization_of(processor, "image_mean", "image_std")
    kind = f"transformers' {model_class.__name__}"
    return PublishedViT(source, kind, state, left_out, options, {}, normalization, resampling)


def _from_m3ae(source: str) -> PublishedViT:
    model, left_out = load_published(source, M3AEModel)
    config, state = model.config.image_config, model.image_encoder.vit.state_dict()
    left_out += [name for name in model.state_dict() if not name.startswith("image_encoder.")]
    shown = ("num_attention_heads", "hidden_act", "layer_norm_eps", "image_size")
    options = {name: getattr(config, name) for name in (*shown, "layer_scale", "qkv_bias", "rope_theta")}
    normalization = (config.image_mean, config.image_std)
    return PublishedViT(source, "another M3AE", state, left_out, options, {}, normalization)


def _from_open_clip(source: str, config: Mapping[str, Any]) -> PublishedViT:
    """Read the image tower of a folder of open_clip: its own vision transformer, or one of timm, as BiomedCLIP has."""
    model, preprocessing = config.get("model_cfg", config), config.get("preprocess_cfg", {})
    vision = model.get("vision_cfg", {})
    weights = next((file for name in _OPEN_CLIP_WEIGHTS if (file := _cached(source, name)) is not None), None)
    if weights is None:
        raise ValueError(f"{source!r} has {_OPEN_CLIP} but none of {', '.join(_OPEN_CLIP_WEIGHTS)}. Fetch it again.")
    state, normalization = read_tensors(weights), normalization_of(preprocessing, "mean", "std")
    if "timm_model_name" in vision:
        trunk = {name.removeprefix("visual.trunk."): value for name, value in state.items() if ".trunk." in name}
        left_out = [name for name in state if ".trunk." not in name]
        try:
            built = timm.create_model(vision["timm_model_name"], pretrained=False, num_classes=0)
        except RuntimeError as error:
            raise ValueError(f"timm cannot build the image tower of {source!r}: {first_line(error)}") from error
        options = _timm_options(built, source)
        options["image_size"] = square(vision.get("image_size", options["image_size"]), source, "images")
        kind = f"open_clip's {vision['timm_model_name']}"
        return PublishedViT(source, kind, trunk, left_out, options, {}, normalization)
    published = _from_openai(source, state, "open_clip's CLIP")
    options = {
        "num_attention_heads": published.state["cls_token"].numel() // vision.get("head_width", CLIP_HEAD_WIDTH),
        "hidden_act": "quick_gelu" if model.get("quick_gelu") else "gelu",
        "layer_norm_eps": 1e-5,
        "image_size": square(vision.get("image_size", 224), source, "images"),
    }
    return replace(published, options=options, assumed={}, normalization=normalization, remarks=())


def _from_file(path: Path) -> PublishedViT:
    state, source = read_tensors(path), str(path)
    state = {name.removeprefix("module."): value for name, value in state.items()}
    if "visual.class_embedding" in state:
        published = _from_openai(source, state, "OpenAI's CLIP")
        if is_torchscript(path):  # as OpenAI has released them, and nobody else
            return replace(published, options=published.assumed, assumed={}, remarks=())
        return published
    if {"patch_embed.proj.weight", "blocks.0.attn.qkv.weight"} <= state.keys():
        width = len(state["patch_embed.proj.weight"])
        from_mae = "decoder_embed.weight" in state
        heads = width // (80 if from_mae and width == 1280 else 64)  # MAE's huge model has 16 heads
        assumed = {"num_attention_heads": heads, "hidden_act": "gelu", "layer_norm_eps": 1e-6}
        if "norm_pre.weight" in state:
            assumed = {}
        kind = "a pre-training file of MAE" if from_mae else "parameters with timm's names"
        sizes = _sizes_beside(path)
        if any(word in name for name in state for word in _OF_EVA):
            raise refusal(source, "has names of timm's Eva, which has rotary positions or none: name the folder")
        remarks = () if sizes else ("a file does not say more: positions are taken to be those of a square's table",)
        return PublishedViT(source, kind, state, [], sizes, assumed, remarks=remarks)
    advice = "Of what transformers has saved, name the folder rather than the file."
    raise ValueError(f"{refusal(path, content_of(state))} {advice}")


def _sizes_beside(path: Path) -> dict[str, Any]:
    """Return the image size that timm's config.json beside a file states."""
    config = path.with_name("config.json")
    try:
        content = load_json_object(config) if config.is_file() else {}
    except ValueError:
        return {}
    if "architecture" not in content:
        return {}
    if not is_model_in_modules(content["architecture"], ["vision_transformer", "deit"]):
        raise refusal(path, f"is a file of timm's {content['architecture']}, which no VisionTransformer is")
    size = content.get("model_args", {}).get("img_size")
    return {} if size is None else {"image_size": square(size, str(path), "images")}


def _from_openai(source: str, state: Mapping[str, Tensor], kind: str) -> PublishedViT:
    ours = {
        renamed(name.removeprefix("visual."), OPENAI) or name: value
        for name, value in state.items()
        if name.startswith("visual.") and name != "visual.proj"
    }
    left_out = [name for name in state if not name.startswith("visual.") or name == "visual.proj"]
    if "cls_token" not in ours:
        raise refusal(source, content_of(state))
    assumed = {
        "num_attention_heads": ours["cls_token"].numel() // CLIP_HEAD_WIDTH,
        "hidden_act": "quick_gelu",
        "layer_norm_eps": 1e-5,
    }
    normalization = (M3AEImageProcessor.image_mean, M3AEImageProcessor.image_std)
    remarks = (
        "a state dict does not say which activation and how many heads it was trained with: taken to be OpenAI's "
        f"(QuickGELU, heads of width {CLIP_HEAD_WIDTH}); open_clip's weights have the same names, as a rule with GELU",
    )
    return PublishedViT(source, kind, ours, left_out, {}, assumed, normalization, remarks=remarks)


_TRANSFORMERS: dict[str, tuple[Any, tuple[str, bool]]] = {
    "vit": (ViTModel, BICUBIC),
    "vit_mae": (ViTMAEModel, BICUBIC),
    "dinov2": (Dinov2Model, BICUBIC),
    "dinov2_with_registers": (Dinov2WithRegistersModel, BICUBIC_ANTIALIASED),
    "dinov3_vit": (DINOv3ViTModel, BICUBIC),
    "clip": (CLIPVisionModel, BICUBIC),
    "clip_vision_model": (CLIPVisionModel, BICUBIC),
    "siglip": (SiglipVisionModel, BICUBIC),
    "siglip_vision_model": (SiglipVisionModel, BICUBIC),
    "siglip2": (Siglip2VisionModel, BILINEAR),
    "siglip2_vision_model": (Siglip2VisionModel, BILINEAR),
}
