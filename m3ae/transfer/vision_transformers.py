"""The one form that published vision transformers are brought to: our names and shapes, and what they compute."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from m3ae.models.encoders import activation
from m3ae.transfer.checkpoints import architecture_of, some
from m3ae.transfer.names import TIMM, renamed
from m3ae.transfer.sources import Normalization

SOURCES = (
    "the name of a timm model (VisionTransformer or Eva); a folder or .safetensors file that timm has saved; "
    "a folder or hub name of transformers (vit, vit_mae, dinov2, dinov2_with_registers, dinov3_vit, clip, siglip, "
    "siglip2) or of open_clip; a file of OpenAI's CLIP or of MAE's pre-training; a folder or hub name of an M3AE"
)
# Parameters beside the encoder: heads, pooling, and what only pre-training reads.
_BESIDE = ("head.", "head_dist.", "fc_norm.", "attn_pool.", "mask_token", "decoder_", "pooler.", "rope.", "rope_embed")
BICUBIC, BICUBIC_ANTIALIASED, BILINEAR = ("bicubic", False), ("bicubic", True), ("bilinear", True)


@dataclass(frozen=True)
class PublishedViT:
    """A published vision transformer.

    Attributes:
        source: Name, folder or file.
        kind: Library and class, for people.
        state: Parameters by our names and with our shapes.
        left_out: Names of parameters beside the image encoder, such as a classifier or a text tower.
        options: Options of `M3AEImageConfig` that the source states or that its parameters show.
        assumed: Options that the source does not state, as files of its kind have them by convention.
        normalization: What images are normalised with, if the source says so.
        resampling: Mode and antialiasing with which the source's library interpolates the table of positions.
        remarks: What a user should know about how the source was read.
    """

    source: str
    kind: str
    state: dict[str, Tensor]
    left_out: list[str]
    options: dict[str, Any]
    assumed: dict[str, Any] = field(default_factory=dict)
    normalization: Normalization | None = None
    resampling: tuple[str, bool] = BICUBIC_ANTIALIASED
    remarks: tuple[str, ...] = ()


def activation_name(function: Callable[[Tensor], Tensor]) -> str | None:
    """Return the name of an activation, recognised by what it computes; None for another one than those known here."""
    at = torch.linspace(-6, 6, 121)
    names = ("gelu", "quick_gelu", "gelu_tanh", "relu", "silu")
    return next((n for n in names if torch.allclose(activation(n)(at), function(at), rtol=0, atol=1e-6)), None)


def known_activation(function: Callable[[Tensor], Tensor], source: str) -> str:
    """Return the name of an activation; raise ValueError for another one than those known here."""
    name = activation_name(function)
    if name is None:
        raise refusal(source, f"has the activation {type(function).__name__}, which is not known here")
    return name


def refusal(source: str | Path, what: str) -> ValueError:
    """Return the error that a source cannot be expressed here."""
    return ValueError(f"{str(source)!r} {what}; expected {SOURCES}.")


def content_of(state: Mapping[str, Tensor]) -> str:
    """Say what a file without a vision transformer holds."""
    other = architecture_of(state)
    return f"holds {other}" if other else f"holds no vision transformer, but parameters with names like {some(state)}"


def completed(vit: PublishedViT) -> PublishedViT:
    """Bring names and shapes to ours, and add the options that the parameters show.

    Raises:
        ValueError: The parameters are not those of such a transformer, or the patches do not make a square.
    """
    state = {renamed(name, TIMM) or name: value for name, value in vit.state.items()}
    left_out = [name for name in state if name.startswith(_BESIDE)]
    state = _joined({name: value for name, value in state.items() if name not in left_out})
    needed = ("patch_embed.proj", "blocks.0.attn.qkv", "blocks.0.mlp.fc1", "blocks.0.mlp.fc2")
    if lacking := [name for name in needed if f"{name}.weight" not in state]:
        raise refusal(vit.source, f"lacks {some(lacking)} of a vision transformer")
    width, channels, *patch = state["patch_embed.proj.weight"].shape
    patch_size = square(patch, vit.source, "patches")
    if state["blocks.0.attn.qkv.weight"].shape != (3 * width, width):
        raise refusal(vit.source, "has heads whose widths do not add up to that of the tokens")
    num_registers = state["reg_token"].numel() // width if "reg_token" in state else 0
    for name in {"cls_token", "reg_token", "pos_embed"} & state.keys():
        state[name] = state[name].reshape(1, -1, width)
    side = vit.options.get("image_size", 0) // patch_size
    if vit.options.get("rope_theta") is None:
        if "pos_embed" not in state:
            raise refusal(vit.source, "states neither a table of positions nor DINOv3's rotary ones")
        state, side = _with_plain_positions(state, num_registers, side or None, vit.source)
    hidden_width = state["blocks.0.mlp.fc2.weight"].shape[1]
    gated = len(state["blocks.0.mlp.fc1.weight"]) == 2 * hidden_width
    options = {
        "patch_size": patch_size,
        "num_channels": channels,
        "hidden_size": width,
        "num_hidden_layers": 1 + max(block_number(name) for name in state),
        "mlp_ratio": hidden_width / width,
        "pre_norm": "norm_pre.weight" in state,
        "class_token": "cls_token" in state,
        "num_registers": num_registers,
        "layer_scale": 1e-5 if "blocks.0.ls1.gamma" in state else None,
        "gated_mlp": gated,
        "qk_norm": "blocks.0.attn.q_norm.weight" in state,
        "qkv_bias": "all" if "blocks.0.attn.qkv.bias" in state else "none",
        "rope_theta": None,
        **vit.options,
        "image_size": side * patch_size,  # a convolution leaves out what is over
    }
    assumed = vit.assumed | ({"hidden_act": "silu"} if gated and "hidden_act" in vit.assumed else {})
    assumed = {name: value for name, value in assumed.items() if name not in options}
    return replace(vit, state=state, left_out=vit.left_out + left_out, options=options, assumed=assumed)


def block_number(name: str) -> int:
    """Return the number of the block that a parameter belongs to; −1 outside the blocks."""
    return int(name.split(".")[1]) if name.startswith("blocks.") else -1


def _joined(state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Join the projections of queries, keys and values (D, D) into one (3·D, D), and the halves of a gated MLP.

    A projection that has no bias beside others that have one gets zeros.
    """
    joined, groups = dict(state), {"attn.qkv": ("attn.q", "attn.k", "attn.v"), "mlp.fc1": ("mlp.gate", "mlp.up")}
    for whole, halves in groups.items():
        for block in range(1 + max((block_number(name) for name in state), default=-1)):
            for kind in ("weight", "bias"):
                names = [f"blocks.{block}.{half}.{kind}" for half in halves]
                if tensors := [joined[name] for name in names if name in joined]:
                    joined[f"blocks.{block}.{whole}.{kind}"] = torch.cat(
                        [joined.pop(name, torch.zeros_like(tensors[0])) for name in names]
                    )
    return joined


def _with_plain_positions(
    state: dict[str, Tensor], num_registers: int, side: int | None, source: str
) -> tuple[dict[str, Tensor], int]:
    """Give the table of positions rows for a class token and the patches, and return it with a side's patches.

    A class token without a row gets one of zeros; rows of registers are added to these.
    """
    table, has_class = state["pos_embed"], int("cls_token" in state)
    prefixes = {has_class + num_registers, has_class, 0}
    grids = {rows: math.isqrt(max(table.shape[1] - rows, 0)) for rows in sorted(prefixes, reverse=True)}
    fitting = [rows for rows, grid in grids.items() if grid**2 == table.shape[1] - rows and side in (None, grid)]
    if not fitting:
        grid = "a square" if side is None else f"{side}×{side}"
        raise refusal(source, f"has a position table of {table.shape[1]} rows, which are not {grid} of patches")
    rows = fitting[0]
    patches = table[:, rows:]
    classes = table[:, :has_class] if rows else torch.zeros_like(patches[:, :has_class])
    changed = {"pos_embed": torch.cat([classes, patches], dim=1)}
    if rows > has_class:
        changed["reg_token"] = state["reg_token"] + table[:, has_class:rows]
    return state | changed, grids[rows]


def square(size: Any, source: str, what: str) -> int:
    """Return the side of a square; raise ValueError for a rectangle."""
    sides = {int(side) for side in size} if isinstance(size, list | tuple) else {int(size)}
    if len(sides) > 1:
        raise refusal(source, f"has {what} of {'×'.join(map(str, size))}, and ours are square")
    return sides.pop()


def normalization_of(options: Mapping[str, Any], mean: str, std: str) -> Normalization | None:
    """Return how images are normalised, if a processor's options say so under these names."""
    if options.get("do_normalize") is False:
        return [0.0] * 3, [1.0] * 3
    return (list(options[mean]), list(options[std])) if options.get(mean) and options.get(std) else None
