"""The encoder of images: a vision transformer over the visible patches.

Shapes: B batch, N patches, K visible patches, P patch side, D width, H heads.
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


def resample_positions(table: Tensor, side: int) -> Tensor:
    """Interpolate a table of positions bicubically, as timm does; the class token's row is kept.

    Args:
        table: (1, 1 + S², D), the class token first.
        side: Patches along a side of the new image.

    Returns:
        (1, 1 + side², D) float32.

    Raises:
        ValueError: The table is not that of a square image with a class token.
    """
    rows = table.shape[1]
    old = math.isqrt(rows - 1)
    if old**2 != rows - 1:
        raise ValueError(
            f"The position table has {rows} rows; expected one for the class token and a square number for patches."
        )
    class_token, places = table.float().split([1, rows - 1], 1)
    if side != old:
        grid = places.unflatten(1, (old, old)).permute(0, 3, 1, 2)
        grid = F.interpolate(grid, size=(side, side), mode="bicubic", antialias=True)
        places = grid.permute(0, 2, 3, 1).flatten(1, 2)
    return torch.cat([class_token, places], 1)


def activation(name: str) -> nn.Module:
    """Return the activation that transformers, or timm, calls so."""
    function: nn.Module = ACT2FN["gelu_pytorch_tanh" if name == "gelu_tanh" else name]
    return function


class SelfAttention(nn.Module):
    """Multi-head self-attention with one projection of queries, keys and values."""

    def __init__(self, config: PreTrainedConfig, width: int, num_heads: int, dropout: float) -> None:
        super().__init__()
        self.config, self.num_heads, self.dropout, self.is_causal = config, num_heads, dropout, False
        self.qkv = nn.Linear(width, 3 * width)
        self.proj = nn.Linear(width, width)

    def forward(self, tokens: Tensor) -> tuple[Tensor, Tensor | None]:
        """Return the update (B, S, D), and the weights (B, H, S, S) if the implementation has them."""
        query, key, value = self.qkv(tokens).unflatten(-1, (3, self.num_heads, -1)).permute(2, 0, 3, 1, 4)
        attended, weights = attend(self, self.config, query, key, value)
        return F.dropout(self.proj(attended.flatten(-2)), self.dropout, self.training), weights


class MLP(nn.Module):
    """Two linear layers."""

    def __init__(self, width: int, hidden_width: int, act: str, dropout: float) -> None:
        super().__init__()
        self.fc1, self.fc2 = nn.Linear(width, hidden_width), nn.Linear(hidden_width, width)
        self.act, self.dropout = activation(act), nn.Dropout(dropout)

    def forward(self, tokens: Tensor) -> Tensor:
        """Map tokens (B, S, D) to (B, S, D)."""
        updated: Tensor = self.dropout(self.fc2(self.dropout(self.act(self.fc1(tokens)))))
        return updated


class Block(GradientCheckpointingLayer):
    """Self-attention and MLP, each after a normalisation: timm's block of a vision transformer, by its names.

    Args:
        config: The model's configuration, which names the activation and epsilon.
        attention: The configuration that names the implementation of attention.
        width: Width D.
        num_heads: Attention heads.
        mlp_ratio: Width of the MLP over D.
        dropout: Dropout after projections and MLP.
    """

    def __init__(
        self,
        config: M3AEConfig,
        attention: PreTrainedConfig,
        width: int,
        num_heads: int,
        mlp_ratio: float = 4.0,
        dropout: float = 0.0,
    ) -> None:
        super().__init__()
        image = config.image_config
        assert isinstance(image, M3AEImageConfig)
        self.norm1 = nn.LayerNorm(width, eps=image.layer_norm_eps)
        self.attn = SelfAttention(attention, width, num_heads, dropout)
        self.norm2 = nn.LayerNorm(width, eps=image.layer_norm_eps)
        self.mlp = MLP(width, int(width * mlp_ratio), image.hidden_act, dropout)

    def forward(self, tokens: Tensor) -> Tensor:
        """Update tokens (B, S, D)."""
        tokens = tokens + self.attn(self.norm1(tokens))[0]
        updated: Tensor = tokens + self.mlp(self.norm2(tokens))
        return updated


class PatchTransformer(nn.Module):
    """A vision transformer that is run on the visible patches only, with timm's names of parameters."""

    def __init__(self, config: M3AEConfig) -> None:
        super().__init__()
        image = config.image_config
        assert isinstance(image, M3AEImageConfig)
        width, self.patch_size = image.hidden_size, image.patch_size
        projection = nn.Conv2d(image.num_channels, width, self.patch_size, self.patch_size, bias=not image.pre_norm)
        self.patch_embed = nn.ModuleDict({"proj": projection})
        self.cls_token = nn.Parameter(torch.zeros(1, 1, width))
        self.pos_embed = nn.Parameter(torch.zeros(1, 1 + image.num_patches, width))
        self.norm_pre = nn.LayerNorm(width, eps=image.layer_norm_eps) if image.pre_norm else nn.Identity()
        self.blocks = nn.ModuleList(
            Block(config, image, width, image.num_attention_heads, image.mlp_ratio, image.dropout)
            for _ in range(image.num_hidden_layers)
        )
        self.norm = nn.LayerNorm(width, eps=image.layer_norm_eps)

    def forward(self, pixel_values: Tensor, ids_keep: Tensor | None = None) -> Tensor:
        """Encode the class token and the patches that `ids_keep` (B, K) names, or all of them: (B, 1 + K, D)."""
        tokens = self._embed_patches(pixel_values.to(self.cls_token.dtype), ids_keep)
        class_token = (self.cls_token + self.pos_embed[:, :1]).expand(tokens.shape[0], -1, -1)
        tokens = self.norm_pre(torch.cat([class_token, tokens], dim=1))
        for block in self.blocks:
            tokens = block(tokens)
        encoded: Tensor = self.norm(tokens)
        return encoded

    def _embed_patches(self, pixel_values: Tensor, ids_keep: Tensor | None) -> Tensor:
        """Return (B, K, D); the convolution does not overlap, and so takes the visible patches side by side."""
        places = self.pos_embed[:, 1:]
        if ids_keep is not None:
            patches = gather_tokens(patchify(pixel_values, self.patch_size), ids_keep)  # (B, K, P·P·C)
            squares = patches.unflatten(-1, (self.patch_size, self.patch_size, -1)).permute(0, 4, 2, 1, 3)
            pixel_values, places = squares.flatten(-2), F.embedding(ids_keep, places[0])  # (B, C, P, K·P)
        embedded: Tensor = self.patch_embed["proj"](pixel_values)
        return embedded.flatten(2).transpose(1, 2) + places


class ImageEncoder(nn.Module):
    """A `PatchTransformer` for images of one size."""

    def __init__(self, config: M3AEConfig) -> None:
        super().__init__()
        assert isinstance(config.image_config, M3AEImageConfig)
        self.image_size = config.image_config.image_size
        self.vit = PatchTransformer(config)

    def resize(self, image_size: int) -> None:
        """Take images of another size from now on; the position table is interpolated bicubically."""
        table = resample_positions(self.vit.pos_embed.detach(), image_size // self.vit.patch_size)
        self.vit.pos_embed = nn.Parameter(table.to(self.vit.pos_embed))
        self.image_size = image_size

    def forward(self, pixel_values: Tensor, ids_keep: Tensor | None = None) -> Tensor:
        """Encode the class token, which is always kept, and the visible patches.

        Args:
            pixel_values: (B, C, H, W), normalised.
            ids_keep: (B, K) visible patches; all of them if None.

        Returns:
            (B, 1 + K, D), the class token first.

        Raises:
            ValueError: The images have another size than the model's.
        """
        if pixel_values.shape[-2:] != (self.image_size, self.image_size):
            raise ValueError(
                f"The model takes images of {self.image_size}×{self.image_size} px, got "
                f"{pixel_values.shape[-2]}×{pixel_values.shape[-1]}: prepare them with the model's own M3AEProcessor."
            )
        encoded: Tensor = self.vit(pixel_values, ids_keep)
        return encoded
