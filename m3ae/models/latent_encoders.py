"""Encoders of the latent pass: tokens of the trunk or values of a small modality → Gaussians.

Shapes: B batch, S tokens, W width of an encoder, Q queries, D shared dimensions, P private ones.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import TYPE_CHECKING

import torch
from torch import Tensor, nn

from m3ae.models.fusion import Stream
from m3ae.models.latent import Gaussian, dtype_of
from m3ae.models.latent_attention import Attention
from m3ae.models.latent_configuration import LatentConfig
from m3ae.models.latent_decoders import mlp

if TYPE_CHECKING:
    from m3ae.models.modalities.base import Modality, ModalityConfig


class AttentionPool(nn.Module):
    """Learned queries that attend to tokens (B, S, W) and are joined to a vector (B, Q·W)."""

    def __init__(self, width: int, num_heads: int, num_queries: int) -> None:
        super().__init__()
        self.queries = nn.Parameter(torch.randn(1, num_queries, width) / width**0.5)
        self.norm = nn.LayerNorm(width)
        self.attention = Attention(width, num_heads)

    def forward(self, stream: Stream) -> Tensor:
        """Pool a stream; rows of absent modalities give something finite that nobody reads."""
        tokens, mask, *_ = stream
        visible = None if mask is None else mask | ~mask.any(1, keepdim=True)  # an empty softmax would be NaN
        queries = self.queries.expand(tokens.shape[0], -1, -1)
        pooled: Tensor = self.attention(queries, self.norm(tokens), visible)
        return pooled.flatten(1)


def mlp_encoder(shape: Sequence[int], modality: ModalityConfig) -> nn.Sequential:
    """Build a network from values (B, *shape) to features (B, W)."""
    size = math.prod(shape)
    return nn.Sequential(nn.Flatten(), mlp(size, modality.hidden_size, modality.num_layers, dropout=modality.dropout))


class HalvingConvolution(nn.Conv2d):
    """Maps (B, C, S, S) → (B, C', ⌈S/2⌉, ⌈S/2⌉); each pixel is a sum over 3·3·C values."""

    inputs_per_channel = 9

    def __init__(self, in_channels: int, out_channels: int) -> None:
        super().__init__(in_channels, out_channels, 3, stride=2, padding=1)


def cnn_encoder(shape: Sequence[int], modality: ModalityConfig) -> nn.Sequential:
    """Build a network from images (B, C, S, S) to features (B, W): convolutions of stride 2, and a linear layer.

    The last convolution has W / 8 channels, each one before it half as many as the next.
    """
    channels, height, width = shape
    layers: list[nn.Module] = []
    for number in range(modality.num_layers):
        out_channels = max(1, modality.hidden_size // 2 ** (modality.num_layers + 2 - number))
        layers += [HalvingConvolution(channels, out_channels), nn.GELU()]
        channels, height, width = out_channels, (height + 1) // 2, (width + 1) // 2
    return nn.Sequential(
        *layers, nn.Flatten(), mlp(channels * height * width, modality.hidden_size, 1, dropout=modality.dropout)
    )


class Expert(nn.Module):
    """Tokens of the trunk, or the values of a small modality → the Gaussians of z and of the private latent."""

    def __init__(self, modality: Modality, latent: LatentConfig) -> None:
        super().__init__()
        self.size, model = latent.size, modality.model
        features = modality.build_encoder()
        if features is None:
            self.pool = AttentionPool(model.hidden_size, model.num_attention_heads, latent.num_tokens)
            width = model.hidden_size * latent.num_tokens
        else:
            self.features = features
            width = modality.config.hidden_size
        self.output = nn.Linear(width, 2 * (latent.size + modality.config.private_size))

    def forward(self, inputs: Stream | Tensor) -> tuple[Gaussian, Gaussian]:
        """Return the expert over z (B, D) and over the private latent (B, P)."""
        features = self.pool(inputs) if isinstance(inputs, Stream) else self.features(self._values(inputs))
        mu, logvar = self.output(features).chunk(2, -1)
        return Gaussian(mu[:, : self.size], logvar[:, : self.size]), Gaussian(
            mu[:, self.size :], logvar[:, self.size :]
        )

    def _values(self, values: Tensor) -> Tensor:
        return values.to(dtype_of(self))
