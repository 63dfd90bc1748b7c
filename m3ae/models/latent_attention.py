"""A transformer that reads z.

Shapes: R rows, S tokens, T latent tokens, W width, Z dimensions of z and of the private latent together.
"""

from __future__ import annotations

import copy
from typing import TYPE_CHECKING

import torch
from torch import Tensor, nn
from torch.nn import functional as F

if TYPE_CHECKING:
    from m3ae.models.modalities.base import TransformerModalityConfig


class Attention(nn.MultiheadAttention):
    """PyTorch's parameters of attention; its output layer is called, so that it may be adapted, quantised or moved."""

    def __init__(self, width: int, num_heads: int) -> None:
        super().__init__(width, num_heads, batch_first=True)

    def forward(self, tokens: Tensor, context: Tensor, visible: Tensor | None = None) -> Tensor:  # type: ignore[override]
        """Attend from tokens (R, S, W) to context (R, T, W); `visible` (R, T) is False where nobody attends."""
        assert self.in_proj_weight is not None and self.in_proj_bias is not None
        weights, biases = self.in_proj_weight.chunk(3), self.in_proj_bias.chunk(3)
        query, key, value = (
            F.linear(inputs, weight, bias).unflatten(-1, (self.num_heads, -1)).transpose(1, 2)  # (R, H, …, W / H)
            for inputs, weight, bias in zip((tokens, context, context), weights, biases, strict=True)
        )
        mask = None if visible is None else visible[:, None, None, :]
        attended = F.scaled_dot_product_attention(query, key, value, mask)
        updated: Tensor = self.out_proj(attended.transpose(1, 2).flatten(2))
        return updated


class LatentLayer(nn.Module):
    """Self-attention, cross-attention to a memory if there is to be one, and an MLP, each after a normalisation."""

    def __init__(self, width: int, num_heads: int, *, reads_memory: bool) -> None:
        super().__init__()
        self.self_attn = Attention(width, num_heads)
        self.multihead_attn = Attention(width, num_heads) if reads_memory else None
        self.linear1 = nn.Linear(width, 4 * width)
        self.linear2 = nn.Linear(4 * width, width)
        self.norm1, self.norm2 = nn.LayerNorm(width), nn.LayerNorm(width)
        self.norm3 = nn.LayerNorm(width) if reads_memory else None

    def forward(self, tokens: Tensor, memory: Tensor | None, visible: Tensor | None) -> Tensor:
        """Update tokens (R, S, W) from themselves where `visible` (R, S), and from the memory (R, T, W)."""
        normed = self.norm1(tokens)
        tokens = tokens + self.self_attn(normed, normed, visible)
        normed = self.norm2(tokens)
        if self.multihead_attn is not None and self.norm3 is not None:
            tokens = tokens + self.multihead_attn(normed, memory)
            normed = self.norm3(tokens)
        updated: Tensor = tokens + self.linear2(F.gelu(self.linear1(normed)))
        return updated


class LatentAttention(nn.Module):
    """A transformer whose tokens (R, S, W) attend to each other and to T latent tokens made of z.

    They attend to them in a layer of its own (cross-attention), or as they do to each other (prefix): the modality's
    `conditioning` says which.
    """

    def __init__(self, input_size: int, modality: TransformerModalityConfig, num_tokens: int) -> None:
        super().__init__()
        width, count = modality.hidden_size, modality.num_layers
        self.num_tokens, self.prefix = num_tokens, modality.conditioning == "prefix"
        self.latent_tokens = nn.Linear(input_size, num_tokens * width)
        layer = LatentLayer(width, modality.num_attention_heads, reads_memory=not self.prefix)
        blocks = nn.ModuleList(copy.deepcopy(layer) for _ in range(count))
        self.layers = nn.ModuleDict({"layers": blocks, "norm": nn.LayerNorm(width)})

    def forward(self, tokens: Tensor, latents: Tensor, visible: Tensor | None = None) -> Tensor:
        """Update tokens (R, S, W) from latents (R, Z); `visible` (R, S) is False where nobody attends."""
        memory = self.latent_tokens(latents).unflatten(-1, (self.num_tokens, -1))  # (R, T, W)
        if self.prefix:
            tokens = torch.cat([memory, tokens], 1)
            if visible is not None:
                visible = torch.cat([visible.new_ones(memory.shape[:2]), visible], 1)
        for layer in self.layers["layers"].children():
            tokens = layer(tokens, memory, visible)
        updated: Tensor = self.layers["norm"](tokens)
        return updated[:, self.num_tokens :] if self.prefix else updated
