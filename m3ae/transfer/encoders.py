"""Published encoders as others save them, brought to one form: timm, transformers, OpenAI's CLIP files."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import timm
import torch
from safetensors import SafetensorError
from safetensors.torch import load_file
from timm.models.vision_transformer import Block, VisionTransformer
from torch import Tensor
from transformers import AutoConfig, CLIPVisionModel, PreTrainedConfig, PreTrainedModel, ViTMAEModel
from transformers.activations import ACT2FN
from transformers.image_processing_base import ImageProcessingMixin
from transformers.utils import logging

from m3ae.models.configuration import M3AEConfig
from m3ae.models.encoders import activation
from m3ae.models.modeling import M3AEModel
from m3ae.models.processing import M3AEImageProcessor
from m3ae.models.text_encoder import check_text_encoder, encoder_class, encoder_options
from m3ae.transfer.names import convert_name
from m3ae.transfer.reading import _load as load_checkpoint
from m3ae.transfer.reading import some
from m3ae.transfer.settings import CLIP_HEAD_WIDTH
from m3ae.transfer.torchscript import is_torchscript, read_torchscript

Normalization = tuple[list[float], list[float]]  # mean and standard deviation of each channel

IMAGE_SOURCES = (
    "the name of a timm model, a folder or .safetensors file that timm has saved, a folder or hub name of a "
    "transformers CLIPModel, CLIPVisionModel, ViTMAEModel or ViTMAEForPreTraining, a CLIP file of OpenAI, or a folder "
    "or hub name of another M3AE"
)
TEXT_SOURCES = (
    "a folder or hub name of a bidirectional text encoder of transformers (bert, roberta, xlm-roberta, camembert, "
    "distilbert, electra, modernbert, deberta-v2, …) or of another M3AE"
)


@dataclass(frozen=True)
class PublishedViT:
    """A published vision transformer.

    Attributes:
        kind: What it is, for people.
        state: Parameters by timm's names.
        left_out: Names of parameters beside the image encoder, such as a classifier or a text tower.
        stated: Options of `M3AEImageConfig` that weights do not show, as far as they are known.
        normalization: What images are normalised with, if that is known.
        remarks: What a user should know about how the source was read.
    """

    kind: str
    state: dict[str, Tensor]
    left_out: list[str]
    stated: dict[str, Any]
    normalization: Normalization | None = None
    remarks: tuple[str, ...] = ()


def read_vit(source: str) -> PublishedViT:
    """Read a published vision transformer, recognised by its configuration or by the names of its parameters.

    Args:
        source: One of `IMAGE_SOURCES`.

    Raises:
        ValueError: There is nothing at the source, or it holds something else.
    """
    path = Path(source)
    if path.is_file():
        return _from_file(path)
    if not path.is_dir() and "/" not in source:
        if not timm.is_model(source):
            raise ValueError(
                f"There is no file, folder or timm model called {source!r}; expected {IMAGE_SOURCES}. "
                'timm.list_pretrained("vit_*") lists names.'
            )
        return _from_timm(source, source)
    config = _read_config(source, IMAGE_SOURCES)
    if "architecture" in config:  # only timm writes this key
        return _from_timm(source, f"{'local-dir' if path.is_dir() else 'hf-hub'}:{source}")
    if config.get("model_type") in _TRANSFORMERS:
        return _from_transformers(source, *_TRANSFORMERS[config["model_type"]])
    if config.get("model_type") == M3AEConfig.model_type:
        return _from_m3ae(source)
    raise ValueError(f"{source!r} holds a {_model_type(config)}; expected {IMAGE_SOURCES}.")


def read_text_encoder(source: str) -> tuple[PreTrainedModel, list[str]]:
    """Read a text encoder of any architecture without its pooler and heads.

    Returns:
        The model, and the names of the parameters that are left out.

    Raises:
        ValueError: There is nothing at the source, or it holds something else.
    """
    config = read_text_config(source)
    if _read_config(source, TEXT_SOURCES)["model_type"] == M3AEConfig.model_type:
        model, left_out = _load_transformers(source, M3AEModel)
        return model.text_encoder, left_out + _beside(model, "text_encoder.")
    return _load_transformers(source, encoder_class(config), **encoder_options(config))


def read_text_config(source: str) -> PreTrainedConfig:
    """Read the configuration of a text encoder without its weights.

    Raises:
        ValueError: There is nothing at the source, or it holds something else.
    """
    config = _read_config(source, TEXT_SOURCES)
    if config.get("model_type") == M3AEConfig.model_type:
        config = config["text_config"]
    try:
        check_text_encoder(config.get("model_type"), config)
    except ValueError as error:
        raise ValueError(f"{source!r} holds a {_model_type(config)}; expected {TEXT_SOURCES}.") from error
    found: PreTrainedConfig = type(AutoConfig.for_model(config["model_type"])).from_dict(config)
    return found


def activation_name(function: Callable[[Tensor], Tensor]) -> str:
    """Return the name of an activation, recognised by what it computes."""
    at = torch.linspace(-6, 6, 121)
    for name in ("gelu", "quick_gelu", "gelu_tanh", "relu", "silu"):
        if torch.allclose(activation(name)(at), function(at), rtol=0, atol=1e-6):
            return name
    return type(function).__name__


def _read_config(source: str, expected: str) -> dict[str, Any]:
    try:
        config: dict[str, Any] = PreTrainedConfig.get_config_dict(source)[0]
    except (OSError, ValueError) as error:
        raise ValueError(f"No config.json in {source!r} ({_first_line(error)}); expected {expected}.") from error
    if not config:
        raise ValueError(f"No config.json in {source!r}; expected {expected}.")
    return config


def _model_type(config: Mapping[str, Any]) -> str:
    return config.get("model_type") or "model of no stated type"


def _from_timm(source: str, name: str) -> PublishedViT:
    try:
        vit: Any = timm.create_model(name, pretrained=True)
    except (OSError, RuntimeError, ValueError, KeyError, TypeError) as error:
        raise ValueError(f"timm cannot load {source!r}: {_first_line(error)}") from error
    if not _is_plain(vit):
        raise ValueError(
            f"{source!r} holds timm's {type(vit).__name__}; expected its VisionTransformer with plain blocks (its "
            f"class Block), or {IMAGE_SOURCES}."
        )
    block = vit.blocks[0]
    cfg, hidden_act = vit.pretrained_cfg, activation_name(block.mlp.act)
    remarks: tuple[str, ...] = ()
    # timm offers OpenAI's and some other weights with an activation that they were not trained with, and notes it.
    if name == source and "natively QuickGELU" in str(cfg.get("notes")) and hidden_act != "quick_gelu":
        remarks = (f"taken with QuickGELU, as it was trained; timm computes {hidden_act} under this name",)
        hidden_act = "quick_gelu"
    heads, eps = block.attn.num_heads, block.norm1.eps
    stated = {"num_attention_heads": heads, "hidden_act": hidden_act, "layer_norm_eps": eps}
    normalization = _normalization(cfg, "mean", "std")
    return PublishedViT("timm's VisionTransformer", *_split_timm(vit.state_dict()), stated, normalization, remarks)


def _is_plain(model: Any) -> bool:
    return type(model) is VisionTransformer and type(model.blocks[0]) is Block


def _split_timm(state: Mapping[str, Tensor]) -> tuple[dict[str, Tensor], list[str]]:
    """Part timm's encoder from what reads it: classifier, its normalisation, attention pooling."""
    left_out = [name for name in state if name.startswith(("head.", "fc_norm.", "attn_pool."))]
    return {name: value for name, value in state.items() if name not in left_out}, left_out


def _from_transformers(source: str, model_class: Any, names: Mapping[str, str]) -> PublishedViT:
    model, left_out = _load_transformers(source, model_class)
    config = model.config
    stated = {
        "num_attention_heads": config.num_attention_heads,
        "hidden_act": activation_name(ACT2FN[config.hidden_act]),
        "layer_norm_eps": config.layer_norm_eps,
    }
    try:
        processor = ImageProcessingMixin.get_image_processor_dict(source)[0]
    except OSError:
        processor = {}
    state = _fuse_qkv({_renamed(name, names): value for name, value in model.state_dict().items()})
    kind = f"transformers' {model_class.__name__}"
    return PublishedViT(kind, state, left_out, stated, _normalization(processor, "image_mean", "image_std"))


def _from_m3ae(source: str) -> PublishedViT:
    model, left_out = _load_transformers(source, M3AEModel)
    options = model.config.image_config
    stated = {name: getattr(options, name) for name in ("num_attention_heads", "hidden_act", "layer_norm_eps")}
    normalization = (options.image_mean, options.image_std)
    state, left_out = model.image_encoder.vit.state_dict(), left_out + _beside(model, "image_encoder.")
    return PublishedViT("another M3AE", state, left_out, stated, normalization)


def _beside(model: M3AEModel, part: str) -> list[str]:
    return [name for name in model.state_dict() if not name.startswith(part)]


def _load_transformers(source: str, model_class: Any, **options: Any) -> tuple[Any, list[str]]:
    try:
        with _quiet():
            model, info = model_class.from_pretrained(source, output_loading_info=True, **options)
    except (OSError, RuntimeError, ValueError, SafetensorError) as error:
        raise ValueError(f"transformers cannot load {source!r}: {_first_line(error)}") from error
    if missing := sorted(info["missing_keys"]):
        raise ValueError(
            f"{source!r} is incomplete: it lacks {len(missing)} parameters of a {model_class.__name__} "
            f"({some(missing)}). Fetch or save it again."
        )
    return model, sorted(info["unexpected_keys"])


@contextmanager
def _quiet() -> Iterator[None]:
    """Keep transformers from printing the table of parameters that our own report sums up."""
    level = logging.get_verbosity()
    logging.set_verbosity_error()
    try:
        yield
    finally:
        logging.set_verbosity(level)


def _from_file(path: Path) -> PublishedViT:
    state = _read_state(path)
    if "visual.class_embedding" in state:
        return _from_openai(state, scripted=is_torchscript(path))
    if {"patch_embed.proj.weight", "blocks.0.attn.qkv.weight"} <= state.keys():
        return PublishedViT("parameters with timm's names", *_split_timm(state), stated={})
    raise ValueError(
        f"{path} holds no vision transformer that is known here, but parameters with names like {some(state)}; "
        f"expected {IMAGE_SOURCES}. Of what transformers has saved, name the folder rather than the file."
    )


def _read_state(path: Path) -> dict[str, Tensor]:
    if path.suffix == ".safetensors":
        try:
            return load_file(path)
        except SafetensorError as error:
            raise ValueError(f"{path} is not a safetensors file, or is cut short ({_first_line(error)}).") from error
    if is_torchscript(path):
        return read_torchscript(path)
    content = load_checkpoint(path)
    state = content.get("state_dict", content.get("model", content)) if isinstance(content, Mapping) else {}
    return {name: value for name, value in state.items() if isinstance(value, Tensor)}


def _from_openai(state: Mapping[str, Tensor], scripted: bool) -> PublishedViT:
    ours: dict[str, Tensor] = {}
    for name, value in state.items():
        if name.startswith("visual.") and name != "visual.proj":
            known = convert_name(f"vision_encoder.{name}")  # the published M3AE holds a whole CLIP under this name
            ours[known.removeprefix("m3ae.image_encoder.vit.") if known else name] = value
    stated = {
        "num_attention_heads": ours["cls_token"].numel() // CLIP_HEAD_WIDTH,
        "hidden_act": "quick_gelu",
        "layer_norm_eps": 1e-5,
    }
    remarks = (
        "a state dict does not say which activation and how many heads it was trained with: taken to be OpenAI's "
        f"(QuickGELU, heads of width {CLIP_HEAD_WIDTH}); open_clip's weights have the same names, as a rule with GELU",
    )
    left_out = [name for name in state if not name.startswith("visual.") or name == "visual.proj"]
    normalization = (M3AEImageProcessor.image_mean, M3AEImageProcessor.image_std)
    return PublishedViT("OpenAI's CLIP", ours, left_out, stated, normalization, () if scripted else remarks)


def _renamed(name: str, names: Mapping[str, str]) -> str:
    for pattern, ours in names.items():
        if re.match(pattern, name):
            return re.sub(pattern, ours, name, count=1)
    return name


def _fuse_qkv(state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Join the projections of queries, keys and values (D, D) into one (3·D, D), as timm has them."""
    fused = {name: value for name, value in state.items() if not re.search(r"\.attn\.[qkv]\.", name)}
    for name in state:
        if ".attn.q." in name:
            parts = [state[name.replace(".attn.q.", f".attn.{part}.")] for part in "qkv"]
            fused[name.replace(".attn.q.", ".attn.qkv.")] = torch.cat(parts)
    return fused


def _normalization(options: Mapping[str, Any], mean: str, std: str) -> Normalization | None:
    return (list(options[mean]), list(options[std])) if mean in options and std in options else None


def _first_line(error: Exception) -> str:
    return (str(error).strip().splitlines() or [type(error).__name__])[0]


_CLIP_NAMES = {
    r"embeddings\.class_embedding": "cls_token",
    r"embeddings\.position_embedding\.weight": "pos_embed",
    r"embeddings\.patch_embedding\.": "patch_embed.proj.",
    r"pre_layrnorm\.": "norm_pre.",
    r"post_layernorm\.": "norm.",
    r"encoder\.layers\.(\d+)\.layer_norm([12])\.": r"blocks.\1.norm\2.",
    r"encoder\.layers\.(\d+)\.self_attn\.([qkv])_proj\.": r"blocks.\1.attn.\2.",
    r"encoder\.layers\.(\d+)\.self_attn\.out_proj\.": r"blocks.\1.attn.proj.",
    r"encoder\.layers\.(\d+)\.mlp\.": r"blocks.\1.mlp.",
}
_MAE_NAMES = {
    r"embeddings\.cls_token": "cls_token",
    r"embeddings\.position_embeddings": "pos_embed",
    r"embeddings\.patch_embeddings\.projection\.": "patch_embed.proj.",
    r"layernorm\.": "norm.",
    r"layers\.(\d+)\.layernorm_before\.": r"blocks.\1.norm1.",
    r"layers\.(\d+)\.layernorm_after\.": r"blocks.\1.norm2.",
    r"layers\.(\d+)\.attention\.([qkv])_proj\.": r"blocks.\1.attn.\2.",
    r"layers\.(\d+)\.attention\.o_proj\.": r"blocks.\1.attn.proj.",
    r"layers\.(\d+)\.mlp\.": r"blocks.\1.mlp.",
}
_TRANSFORMERS: dict[str, tuple[Any, Mapping[str, str]]] = {
    "clip": (CLIPVisionModel, _CLIP_NAMES),
    "clip_vision_model": (CLIPVisionModel, _CLIP_NAMES),
    "vit_mae": (ViTMAEModel, _MAE_NAMES),
}
