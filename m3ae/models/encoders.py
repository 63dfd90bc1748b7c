"""The encoder of images: a vision transformer over the visible patches.

Shapes: B batch, N patches, K visible patches, T class token and registers, S = T + K, P patch side, D width, H heads.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from transformers import PreTrainedConfig
from transformers.activations import ACT2FN
from transformers.modeling_layers import GradientCheckpointingLayer

from m3ae.models.attention import attend
from m3ae.models.configuration import M3AEConfig, M3AEImageConfig
from m3ae.models.masking import patchify


def gather_tokens(tokens: Tensor, index: Tensor) -> Tensor:
    """Select the tokens (B, K, D) that `index` (B, K) names from tokens (B, N, D)."""
    first = torch.arange(tokens.shape[0], device=tokens.device)[:, None] * tokens.shape[1]
    return F.embedding(first + index, tokens.flatten(0, 1))  # rows at a time, where `gather` takes single numbers


def normalize_images(images: Tensor, mean: list[float], std: list[float]) -> Tensor:
    """Return images (B, C, H, W) of [0, 1] as an encoder takes them: (x − mean) / std of each channel."""
    return (images - images.new_tensor(mean)[:, None, None]) / images.new_tensor(std)[:, None, None]


def denormalize_images(pixel_values: Tensor, config: M3AEImageConfig) -> Tensor:
    """Return the images (B, C, H, W) of [0, 1] that `M3AEImageProcessor` has made pixel values of."""
    assert config.image_mean is not None and config.image_std is not None
    mean, std = (pixel_values.new_tensor(values)[:, None, None] for values in (config.image_mean, config.image_std))
    return pixel_values * std + mean


def resample_positions(
    table: Tensor, side: int, num_prefix: int = 1, mode: str = "bicubic", antialias: bool = True
) -> Tensor:
    """Interpolate a table of positions, by default as timm does; the class token's row is kept.

    Args:
        table: (1, T + S², D), the class token first.
        side: Patches along a side of the new image.
        num_prefix: Rows T in front of those of the patches.
        mode: Mode of `torch.nn.functional.interpolate`.
        antialias: Whether a smaller table is smoothed first.

    Returns:
        (1, T + side², D) float32.

    Raises:
        ValueError: The table is not that of a square image.
    """
    rows = table.shape[1] - num_prefix
    old = math.isqrt(max(rows, 0))
    if old**2 != rows:
        raise ValueError(
            f"The position table has {table.shape[1]} rows; expected {num_prefix} for the class token and a square "
            "number for patches."
        )
    class_token, patches = table.float().split([num_prefix, rows], 1)
    if side != old:
        grid = patches.unflatten(1, (old, old)).permute(0, 3, 1, 2)
        grid = F.interpolate(grid, size=(side, side), mode=mode, antialias=antialias)
        patches = grid.permute(0, 2, 3, 1).flatten(1, 2)
    return torch.cat([class_token, patches], 1)


def rotary_angles(side: int, width: int, theta: float, device: torch.device) -> Tensor:
    """Return the angles (side², width) by which DINOv3 rotates queries and keys (Siméoni et al. 2025).

    The centre of a patch has coordinates in [−1, 1]. The first quarter of the angles are 2π·row·θ^(−4i/width), the
    next quarter are those of the column, and the second half repeats the first.
    """
    centre = (torch.arange(side, device=device) + 0.5) / side * 2 - 1
    frequency = theta ** (-4 / width * torch.arange(width // 4, device=device))
    angles = 2 * math.pi * centre[:, None] * frequency  # (side, width / 4)
    rows, columns = angles[:, None].expand(-1, side, -1), angles.expand(side, -1, -1)
    return torch.cat([rows, columns], dim=-1).flatten(0, 1).repeat(1, 2)


def rotate(tokens: Tensor, cosine: Tensor, sine: Tensor) -> Tensor:
    """Rotate tokens (B, H, S, D/H): feature i and feature i + D/2H are the two coordinates of a plane."""
    first, second = tokens.chunk(2, dim=-1)
    return tokens * cosine + torch.cat([-second, first], dim=-1) * sine


def token_mask(real: Tensor | None, num_prefix: int = 1, num_views: int = 1) -> Tensor | None:
    """Return which tokens (B, V·(T + K)) may be attended to: `num_prefix` tokens T, and `real` patches (B·V, K)."""
    if real is None:
        return None
    prefix = real.new_ones(real.shape[0], num_prefix)  # `len` would fix the size in an exported program
    mask: Tensor = torch.cat([prefix, real], dim=1).unflatten(0, (-1, num_views)).flatten(1)
    return mask


def activation(name: str) -> nn.Module:
    """Return the activation that transformers, or timm, calls so."""
    function: nn.Module = ACT2FN["gelu_pytorch_tanh" if name == "gelu_tanh" else name]
    return function


class _QueryValueBias(nn.Linear):
    """A projection of queries, keys and values whose bias has no effect on the keys, as in EVA and DINOv3."""

    def forward(self, input: Tensor) -> Tensor:
        query, _, value = self.bias.chunk(3)
        return F.linear(input, self.weight, torch.cat([query, torch.zeros_like(query), value]))


class SelfAttention(nn.Module):
    """Multi-head self-attention with one projection of queries, keys and values.

    Args:
        config: The configuration that names the implementation of attention.
        width: Width D.
        num_heads: Attention heads H.
        dropout: Dropout after the projection.
        qkv_bias: `all`, `no_key` or `none`.
        norm_eps: Epsilon of a normalisation of each head's queries and keys; None leaves these out.
    """

    def __init__(
        self,
        config: PreTrainedConfig,
        width: int,
        num_heads: int,
        dropout: float,
        qkv_bias: str = "all",
        norm_eps: float | None = None,
    ) -> None:
        super().__init__()
        self.config, self.num_heads, self.dropout, self.is_causal = config, num_heads, dropout, False
        linear = _QueryValueBias if qkv_bias == "no_key" else nn.Linear
        self.qkv = linear(width, 3 * width, bias=qkv_bias != "none")
        self.proj = nn.Linear(width, width)
        normalised = norm_eps is not None
        self.q_norm = nn.LayerNorm(width // num_heads, eps=norm_eps or 0.0) if normalised else nn.Identity()
        self.k_norm = nn.LayerNorm(width // num_heads, eps=norm_eps or 0.0) if normalised else nn.Identity()

    def forward(
        self, tokens: Tensor, rotation: tuple[Tensor, Tensor] | None = None, mask: Tensor | None = None
    ) -> tuple[Tensor, Tensor | None]:
        """Return the update (B, S, D), and the weights (B, H, S, S) if the implementation has them.

        `rotation` has the cosines and the sines (B or 1, 1, S, D/H) by which queries and keys are rotated, and `mask`
        (B, S) is False where nobody attends.
        """
        query, key, value = self.qkv(tokens).unflatten(-1, (3, self.num_heads, -1)).permute(2, 0, 3, 1, 4)
        query, key = self.q_norm(query), self.k_norm(key)
        if rotation is not None:
            query, key = rotate(query, *rotation), rotate(key, *rotation)
        visible = None if mask is None else mask[:, None, None]
        attended, weights = attend(self, self.config, query, key, value, visible)
        return F.dropout(self.proj(attended.flatten(-2)), self.dropout, self.training), weights


class MLP(nn.Module):
    """Two linear layers; a gated one multiplies the activated half of the first layer's features by the other half."""

    def __init__(self, width: int, hidden_width: int, act: str, dropout: float, gated: bool = False) -> None:
        super().__init__()
        self.gated = gated
        self.fc1, self.fc2 = nn.Linear(width, hidden_width * (1 + gated)), nn.Linear(hidden_width, width)
        self.act, self.dropout = activation(act), nn.Dropout(dropout)

    def forward(self, tokens: Tensor) -> Tensor:
        """Map tokens (B, S, D) to (B, S, D)."""
        hidden = self.fc1(tokens)
        if self.gated:
            gate, hidden = hidden.chunk(2, dim=-1)
            hidden = self.act(gate) * hidden
        else:
            hidden = self.act(hidden)
        updated: Tensor = self.dropout(self.fc2(self.dropout(hidden)))
        return updated


class LayerScale(nn.Module):
    """A learned factor of each feature (Touvron et al. 2021)."""

    def __init__(self, width: int, value: float) -> None:
        super().__init__()
        self.value = value
        self.gamma = nn.Parameter(torch.full((width,), value))

    def forward(self, tokens: Tensor) -> Tensor:
        """Scale tokens (B, S, D)."""
        return tokens * self.gamma


class Block(GradientCheckpointingLayer):
    """Self-attention and MLP, each after a normalisation: timm's block of a vision transformer, by its names.

    Args:
        config: The model's configuration, which names the activation and epsilon.
        attention: The configuration that names the implementation of attention; that of an image encoder also says
            which variant of the block it has.
        width: Width D.
        num_heads: Attention heads.
        mlp_ratio: Width of the MLP over D.
        dropout: Dropout after projections and MLP.
        drop_path: Probability that training leaves out what attention, or the MLP, adds to a sample's tokens.
    """

    def __init__(
        self,
        config: M3AEConfig,
        attention: PreTrainedConfig,
        width: int,
        num_heads: int,
        mlp_ratio: float = 4.0,
        dropout: float = 0.0,
        drop_path: float = 0.0,
    ) -> None:
        super().__init__()
        image = config.image_config
        assert isinstance(image, M3AEImageConfig)
        eps, hidden_width = image.layer_norm_eps, int(width * mlp_ratio + 1e-4)
        variant = image if attention is image else M3AEImageConfig()
        self.norm1 = nn.LayerNorm(width, eps=eps)
        norm_eps = eps if variant.qk_norm else None
        self.attn = SelfAttention(attention, width, num_heads, dropout, variant.qkv_bias, norm_eps)
        self.norm2 = nn.LayerNorm(width, eps=eps)
        self.mlp = MLP(width, hidden_width, image.hidden_act, dropout, variant.gated_mlp)
        scale = variant.layer_scale
        self.ls1 = nn.Identity() if scale is None else LayerScale(width, scale)
        self.ls2 = nn.Identity() if scale is None else LayerScale(width, scale)
        self.drop_path: nn.Module = nn.Identity()
        if drop_path:
            from timm.layers.drop import DropPath  # timm is slow to import

            self.drop_path = DropPath(drop_path)

    def forward(
        self, tokens: Tensor, rotation: tuple[Tensor, Tensor] | None = None, mask: Tensor | None = None
    ) -> Tensor:
        """Update tokens (B, S, D); for `rotation` and `mask` see `SelfAttention`."""
        tokens = tokens + self.drop_path(self.ls1(self.attn(self.norm1(tokens), rotation, mask)[0]))
        updated: Tensor = tokens + self.drop_path(self.ls2(self.mlp(self.norm2(tokens))))
        return updated


class PatchTransformer(nn.Module):
    """A vision transformer that is run on the visible patches only, with timm's names of parameters."""

    def __init__(self, config: M3AEConfig) -> None:
        super().__init__()
        image = config.image_config
        assert isinstance(image, M3AEImageConfig)
        width, self.patch_size = image.hidden_size, image.patch_size
        self.side = image.image_size // image.patch_size
        self.theta, self.head_width = image.rope_theta, width // image.num_attention_heads
        projection = nn.Conv2d(image.num_channels, width, self.patch_size, self.patch_size, bias=not image.pre_norm)
        self.patch_embed = nn.ModuleDict({"proj": projection})
        self.cls_token = nn.Parameter(torch.zeros(1, 1, width)) if image.class_token else None
        self.reg_token = nn.Parameter(torch.zeros(1, image.num_registers, width)) if image.num_registers else None
        rows = image.class_token + image.num_patches
        self.pos_embed = nn.Parameter(torch.zeros(1, rows, width)) if self.theta is None else None
        self.norm_pre = nn.LayerNorm(width, eps=image.layer_norm_eps) if image.pre_norm else nn.Identity()
        depth = image.num_hidden_layers
        drop_paths = [image.drop_path_rate * number / max(depth - 1, 1) for number in range(depth)]
        self.blocks = nn.ModuleList(
            Block(config, image, width, image.num_attention_heads, image.mlp_ratio, image.dropout, drop_path)
            for drop_path in drop_paths
        )
        self.norm = nn.LayerNorm(width, eps=image.layer_norm_eps)

    def forward(self, pixel_values: Tensor, ids_keep: Tensor | None = None, real: Tensor | None = None) -> Tensor:
        """Encode the patches that `ids_keep` (B, K) names, or all of them: (B, 1 + K, D).

        The first token is the class token, or, of an encoder without one, the mean of the encoded patches. The
        registers have served their purpose and are left out. Nothing attends to patches that are not `real` (B, K).
        """
        tokens = self._embed_patches(pixel_values.to(next(self.patch_embed.parameters()).dtype), ids_keep)
        prefix: list[Tensor] = [] if self.reg_token is None else [self.reg_token]
        if self.cls_token is not None:
            prefix.insert(0, self.cls_token if self.pos_embed is None else self.cls_token + self.pos_embed[:, :1])
        count = sum(token.shape[1] for token in prefix)
        tokens = torch.cat([*(token.expand(tokens.shape[0], -1, -1) for token in prefix), tokens], dim=1)
        rotation = None if self.theta is None else self._rotation(self.theta, count, tokens, ids_keep)
        tokens, mask = self.norm_pre(tokens), token_mask(real, count)
        for block in self.blocks:
            tokens = block(tokens, rotation, mask)
        encoded: Tensor = self.norm(tokens)
        if self.cls_token is not None and count == 1:
            return encoded
        patches = encoded[:, count:]
        if self.cls_token is not None:
            first = encoded[:, :1]
        elif real is None:
            first = patches.mean(1, keepdim=True)
        else:
            first = (patches * real[..., None]).sum(1, keepdim=True) / real.sum(1)[:, None, None]
        return torch.cat([first, patches], dim=1)

    def _embed_patches(self, pixel_values: Tensor, ids_keep: Tensor | None) -> Tensor:
        """Return (B, K, D); the convolution does not overlap, and so takes the visible patches side by side."""
        positions = None if self.pos_embed is None else self.pos_embed[:, self.cls_token is not None :]
        if ids_keep is not None:
            patches = gather_tokens(patchify(pixel_values, self.patch_size), ids_keep)  # (B, K, P·P·C)
            squares = patches.unflatten(-1, (self.patch_size, self.patch_size, -1)).permute(0, 4, 2, 1, 3)
            pixel_values = squares.flatten(-2)  # (B, C, P, K·P)
            positions = None if positions is None else F.embedding(ids_keep, positions[0])
        embedded: Tensor = self.patch_embed["proj"](pixel_values)
        tokens = embedded.flatten(2).transpose(1, 2)
        return tokens if positions is None else tokens + positions

    def _rotation(
        self, theta: float, num_prefix: int, tokens: Tensor, ids_keep: Tensor | None
    ) -> tuple[Tensor, Tensor]:
        """Return cosines and sines (B or 1, 1, T + K, D/H), by which the first T tokens are not rotated."""
        angles = rotary_angles(self.side, self.head_width, theta, tokens.device)
        angles = angles[None] if ids_keep is None else F.embedding(ids_keep, angles)
        angles = F.pad(angles, (0, 0, num_prefix, 0))[:, None]
        return angles.cos().to(tokens.dtype), angles.sin().to(tokens.dtype)


class ImageEncoder(nn.Module):
    """A `PatchTransformer` for images of one size."""

    def __init__(self, config: M3AEConfig) -> None:
        super().__init__()
        assert isinstance(config.image_config, M3AEImageConfig)
        self.image_size = config.image_config.image_size
        self.vit = PatchTransformer(config)

    def resize(self, image_size: int) -> None:
        """Take images of another size from now on; a table of positions is interpolated bicubically."""
        vit = self.vit
        vit.side, self.image_size = image_size // vit.patch_size, image_size
        if vit.pos_embed is not None:
            table = resample_positions(vit.pos_embed.detach(), vit.side, int(vit.cls_token is not None))
            vit.pos_embed = nn.Parameter(table.to(vit.pos_embed))

    def forward(self, pixel_values: Tensor, ids_keep: Tensor | None = None, real: Tensor | None = None) -> Tensor:
        """Encode the visible patches and the class token, which is always kept.

        Args:
            pixel_values: (B, C, H, W), normalised.
            ids_keep: (B, K) visible patches; all of them if None.
            real: (B, K) bool, False = padding, which nothing attends to; all are real if None.

        Returns:
            (B, 1 + K, D), the class token first, or the mean of the patches of an encoder without one.

        Raises:
            ValueError: The images have another size than the model's.
        """
        if pixel_values.shape[-2:] != (self.image_size, self.image_size):
            raise ValueError(
                f"The model takes images of {self.image_size}×{self.image_size} px, got "
                f"{pixel_values.shape[-2]}×{pixel_values.shape[-1]}: prepare them with the model's own M3AEProcessor."
            )
        encoded: Tensor = self.vit(pixel_values, ids_keep, real)
        return encoded
