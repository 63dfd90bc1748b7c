"""Published vision transformers as others save them: reading them, starting a model from one, resizing."""

from __future__ import annotations

import math
import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import timm
import torch
from timm.models.vision_transformer import Block, VisionTransformer
from torch import Tensor
from transformers import CLIPVisionModel, ViTMAEModel
from transformers.activations import ACT2FN
from transformers.image_processing_base import ImageProcessingMixin

from m3ae.models.configuration import M3AEConfig, M3AEImageConfig
from m3ae.models.encoders import activation, resample_positions
from m3ae.models.heads import PixelDecoder, sincos_positions
from m3ae.models.modeling import M3AEModel, M3AEPreTrainedModel
from m3ae.models.processing import M3AEImageProcessor
from m3ae.transfer.checkpoints import first_line, is_torchscript, read_tensors, some
from m3ae.transfer.names import OPENAI, renamed
from m3ae.transfer.released import CLIP_HEAD_WIDTH
from m3ae.transfer.sources import (
    InitReport,
    Normalization,
    load_published,
    read_config,
    require_encoder,
    require_none,
    trunk_of,
)

SOURCES = (
    "the name of a timm model, a folder or .safetensors file that timm has saved, a folder or hub name of a "
    "transformers CLIPModel, CLIPVisionModel, ViTMAEModel or ViTMAEForPreTraining, a CLIP file of OpenAI, or a folder "
    "or hub name of another M3AE"
)


def init_image_encoder(model: M3AEPreTrainedModel, source: str) -> InitReport:
    """Copy a published vision transformer into the image encoder, its position table interpolated to our image size.

    The configuration takes over how the source's images are normalised; the processor is to be built from it.
    A source with more blocks than ours gives its first ones: the published M3AE takes 11 of CLIP's 12. The encoder
    then computes what the source does up to there, and applies the source's last normalisation.

    Args:
        model: Any M3AE.
        source: Name of a timm model; a folder or `.safetensors` file that timm has saved; a folder or hub name of a
            transformers `CLIPModel`, `CLIPVisionModel`, `ViTMAEModel` or `ViTMAEForPreTraining`; a CLIP file of
            OpenAI, TorchScript archive or state dict. Nothing in a file is run.

    Raises:
        ValueError: The source cannot be read, is something else, or has another width, depth, patch size, activation …
            than `config.image_config`; or the model has no image encoder, as one for generation may.
    """
    encoder: Any = require_encoder(model, "image_encoder", "vit")
    vit, config = encoder.vit, model.config.image_config
    assert isinstance(config, M3AEImageConfig)
    published = read_vit(source)
    sizes = _sizes(published.state, source)
    _check_image_options(config, sizes | published.stated | _stated_normalization(config, published), source)
    state, expected = dict(published.state), vit.state_dict().keys()
    deeper = [name for name in state if _block(name) >= config.num_hidden_layers]
    surplus = [name for name in state if name not in expected and name not in deeper]
    missing = [name for name in expected if name not in state]
    # Without a last normalisation the source pools first and normalises then; any other gap changes what is computed.
    if surplus or any(not name.startswith("norm.") for name in missing):
        raise ValueError(
            f"The vision transformer in {source!r} computes something else than ours: it has parameters that we have "
            f"no place for ({some(surplus)}) or lacks some of ours ({some(missing)}). Start from a plain one, such as "
            "CLIP's or MAE's."
        )
    state["cls_token"] = state["cls_token"].reshape(1, 1, -1)
    table = state["pos_embed"].reshape(1, -1, config.hidden_size)
    state["pos_embed"] = resample_positions(table, config.image_size // config.patch_size)
    copied = [name for name in expected if name in state]
    vit.load_state_dict({name: state[name] for name in copied}, strict=False)
    if published.normalization is not None:
        config.image_mean, config.image_std = map(list, published.normalization)
    remarks = _image_remarks(config, published, sizes)
    where = f"{source} ({published.kind})"
    left_out = deeper + published.left_out
    return InitReport("image encoder", where, copied, missing, left_out, remarks, published.normalization)


def resize_images(model: M3AEPreTrainedModel, image_size: int) -> None:
    """Make a model take images of another size, as fine-tuning at 384 px of a model pre-trained at 288 px does.

    The image encoder's position table is interpolated bicubically, its class token kept. The pixel decoder's fixed
    sine-cosine table is computed for the new size. The processor is to be built anew: `M3AEImageProcessor.for_size`.

    Args:
        model: Any M3AE; changed in place, its configuration too. Do this before an optimiser is made.
        image_size: Side in pixels, a multiple of the patch size.

    Raises:
        ValueError: It is no such multiple.
    """
    config = model.config.image_config
    assert isinstance(config, M3AEImageConfig)
    M3AEImageConfig(image_size=image_size, patch_size=config.patch_size)  # raises if the patches do not fit
    trunk_of(model).image_encoder.resize(image_size)
    for module in model.modules():
        if isinstance(module, PixelDecoder):
            module.side = image_size // config.patch_size
            module.positions = sincos_positions(module.side, module.positions.shape[-1]).to(module.positions)
    config.image_size = image_size


def _sizes(state: Mapping[str, Tensor], source: str) -> dict[str, Any]:
    """Return the options of `M3AEImageConfig` that the parameters show."""
    needed = ("patch_embed.proj.weight", "cls_token", "pos_embed", "blocks.0.mlp.fc1.weight")
    if lacking := [name for name in needed if name not in state]:
        raise ValueError(
            f"The vision transformer in {source!r} lacks {some(lacking)}; ours has a patch embedding, a class token, "
            "a position table, and blocks of attention and MLP. Start from a plain one, such as CLIP's or MAE's."
        )
    width, channels, patch_size, _ = state["patch_embed.proj.weight"].shape
    side = math.isqrt(state["pos_embed"].numel() // width - 1)
    return {
        "image_size": side * patch_size,
        "patch_size": patch_size,
        "num_channels": channels,
        "hidden_size": width,
        "num_hidden_layers": 1 + max(_block(name) for name in state),
        "mlp_ratio": state["blocks.0.mlp.fc1.weight"].shape[0] / width,
        "pre_norm": "norm_pre.weight" in state,
    }


def _check_image_options(config: M3AEImageConfig, theirs: Mapping[str, Any], source: str) -> None:
    """Raise on options that would make the copied parameters compute something else."""
    same = {name: value == getattr(config, name) for name, value in theirs.items()}
    same |= {
        "image_size": True,  # interpolated
        "layer_norm_eps": True,  # remarked on
        "num_hidden_layers": theirs["num_hidden_layers"] >= config.num_hidden_layers,
        "mlp_ratio": math.isclose(theirs["mlp_ratio"], config.mlp_ratio, rel_tol=1e-3),  # rounded to whole widths
        "hidden_act": theirs.get("hidden_act") in (None, activation_name(activation(config.hidden_act))),
    }
    different = {name: value for name, value in theirs.items() if not same[name]}
    hint = ""
    if (different.get("hidden_act"), config.hidden_act) == ("gelu", "quick_gelu"):
        hint = (
            " OpenAI's CLIP was trained with quick_gelu, although timm offers it with gelu too: of a folder with its "
            "weights, name the .safetensors file, which states neither."
        )
    require_none("vision transformer", source, config, different, "image_config", hint)


def _stated_normalization(config: M3AEImageConfig, published: PublishedViT) -> dict[str, Any]:
    """Return how the source's images are normalised, if the configuration has other values than the default ones."""
    default = M3AEImageConfig(num_channels=config.num_channels)
    if published.normalization is None or (config.image_mean, config.image_std) == (
        default.image_mean,
        default.image_std,
    ):
        return {}
    return dict(zip(("image_mean", "image_std"), map(list, published.normalization), strict=True))


def _image_remarks(config: M3AEImageConfig, published: PublishedViT, sizes: Mapping[str, Any]) -> list[str]:
    remarks = []
    if sizes["num_hidden_layers"] > config.num_hidden_layers:
        remarks.append(f"the first {config.num_hidden_layers} of its {sizes['num_hidden_layers']} blocks")
    if sizes["image_size"] != config.image_size:
        old, new = (size // config.patch_size for size in (sizes["image_size"], config.image_size))
        remarks.append(f"position table interpolated from {old}×{old} to {new}×{new} patches")
    unknown = [n for n in ("num_attention_heads", "hidden_act", "layer_norm_eps") if n not in published.stated]
    if unknown:
        said = ", ".join(f"{name} {getattr(config, name)}" for name in unknown)
        remarks.append(f"it does not say these, taken to be as here: {said}")
    eps = published.stated.get("layer_norm_eps", config.layer_norm_eps)
    if eps != config.layer_norm_eps:
        remarks.append(f"layer_norm_eps is {eps:g} there and {config.layer_norm_eps:g} here")
    if published.normalization is None:
        remarks.append("it does not say how images are normalised: image_mean and image_std of image_config stay")
    return [*remarks, *published.remarks]


def _block(name: str) -> int:
    """Return the number of the block that a parameter belongs to; −1 outside the blocks."""
    found = re.match(r"blocks\.(\d+)\.", name)
    return int(found.group(1)) if found else -1


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
        source: One of `SOURCES`.

    Raises:
        ValueError: There is nothing at the source, or it holds something else.
    """
    path = Path(source)
    if path.is_file():
        return _from_file(path)
    if not path.is_dir() and "/" not in source:
        if not timm.is_model(source):
            raise ValueError(
                f"There is no file, folder or timm model called {source!r}; expected {SOURCES}. "
                'timm.list_pretrained("vit_*") lists names.'
            )
        return _from_timm(source, source)
    config = read_config(source, SOURCES)
    if "architecture" in config:  # only timm writes this key
        return _from_timm(source, f"{'local-dir' if path.is_dir() else 'hf-hub'}:{source}")
    if config.get("model_type") in _TRANSFORMERS:
        return _from_transformers(source, *_TRANSFORMERS[config["model_type"]])
    if config.get("model_type") == M3AEConfig.model_type:
        return _from_m3ae(source)
    raise ValueError(
        f"{source!r} holds a {config.get('model_type') or 'model of no stated type'}; expected {SOURCES}."
    )


def activation_name(function: Callable[[Tensor], Tensor]) -> str:
    """Return the name of an activation, recognised by what it computes."""
    at = torch.linspace(-6, 6, 121)
    for name in ("gelu", "quick_gelu", "gelu_tanh", "relu", "silu"):
        if torch.allclose(activation(name)(at), function(at), rtol=0, atol=1e-6):
            return name
    return type(function).__name__


def _from_timm(source: str, name: str) -> PublishedViT:
    try:
        vit: Any = timm.create_model(name, pretrained=True)
    except (OSError, RuntimeError, ValueError, KeyError, TypeError) as error:
        raise ValueError(f"timm cannot load {source!r}: {first_line(error)}") from error
    if not _is_plain(vit):
        raise ValueError(
            f"{source!r} holds timm's {type(vit).__name__}; expected its VisionTransformer with plain blocks (its "
            f"class Block), or {SOURCES}."
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
    model, left_out = load_published(source, model_class)
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
    state = _fuse_qkv({renamed(name, names) or name: value for name, value in model.state_dict().items()})
    kind = f"transformers' {model_class.__name__}"
    return PublishedViT(kind, state, left_out, stated, _normalization(processor, "image_mean", "image_std"))


def _from_m3ae(source: str) -> PublishedViT:
    model, left_out = load_published(source, M3AEModel)
    options = model.config.image_config
    stated = {name: getattr(options, name) for name in ("num_attention_heads", "hidden_act", "layer_norm_eps")}
    normalization = (options.image_mean, options.image_std)
    state, left_out = model.image_encoder.vit.state_dict(), left_out + _beside(model, "image_encoder.")
    return PublishedViT("another M3AE", state, left_out, stated, normalization)


def _beside(model: M3AEModel, part: str) -> list[str]:
    return [name for name in model.state_dict() if not name.startswith(part)]


def _from_file(path: Path) -> PublishedViT:
    state = read_tensors(path)
    if "visual.class_embedding" in state:
        return _from_openai(state, scripted=is_torchscript(path))
    if {"patch_embed.proj.weight", "blocks.0.attn.qkv.weight"} <= state.keys():
        return PublishedViT("parameters with timm's names", *_split_timm(state), stated={})
    raise ValueError(
        f"{path} holds no vision transformer that is known here, but parameters with names like {some(state)}; "
        f"expected {SOURCES}. Of what transformers has saved, name the folder rather than the file."
    )


def _from_openai(state: Mapping[str, Tensor], scripted: bool) -> PublishedViT:
    ours: dict[str, Tensor] = {}
    for name, value in state.items():
        if name.startswith("visual.") and name != "visual.proj":
            ours[renamed(name.removeprefix("visual."), OPENAI) or name] = value
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


_CLIP_NAMES = {
    "embeddings.class_embedding": "cls_token",
    "embeddings.position_embedding.weight": "pos_embed",
    "embeddings.patch_embedding.": "patch_embed.proj.",
    "pre_layrnorm.": "norm_pre.",
    "post_layernorm.": "norm.",
    "encoder.layers.#.layer_norm1.": "blocks.#.norm1.",
    "encoder.layers.#.layer_norm2.": "blocks.#.norm2.",
    "encoder.layers.#.self_attn.q_proj.": "blocks.#.attn.q.",
    "encoder.layers.#.self_attn.k_proj.": "blocks.#.attn.k.",
    "encoder.layers.#.self_attn.v_proj.": "blocks.#.attn.v.",
    "encoder.layers.#.self_attn.out_proj.": "blocks.#.attn.proj.",
    "encoder.layers.#.mlp.": "blocks.#.mlp.",
}
_MAE_NAMES = {
    "embeddings.cls_token": "cls_token",
    "embeddings.position_embeddings": "pos_embed",
    "embeddings.patch_embeddings.projection.": "patch_embed.proj.",
    "layernorm.": "norm.",
    "layers.#.layernorm_before.": "blocks.#.norm1.",
    "layers.#.layernorm_after.": "blocks.#.norm2.",
    "layers.#.attention.q_proj.": "blocks.#.attn.q.",
    "layers.#.attention.k_proj.": "blocks.#.attn.k.",
    "layers.#.attention.v_proj.": "blocks.#.attn.v.",
    "layers.#.attention.o_proj.": "blocks.#.attn.proj.",
    "layers.#.mlp.": "blocks.#.mlp.",
}
_TRANSFORMERS: dict[str, tuple[Any, Mapping[str, str]]] = {
    "clip": (CLIPVisionModel, _CLIP_NAMES),
    "clip_vision_model": (CLIPVisionModel, _CLIP_NAMES),
    "vit_mae": (ViTMAEModel, _MAE_NAMES),
}
