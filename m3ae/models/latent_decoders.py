"""Decoders of the latent pass: they see z and nothing else. Those of texts are in `m3ae.models.text_decoders`.

Shapes: R rows (any samples and components of a batch), Z dimensions of z and of the private latent together, T latent
tokens, N patches, W width.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from itertools import pairwise
from typing import TYPE_CHECKING

import torch
from torch import Tensor, nn
from transformers import initialization as init

from m3ae.models.decoders import sincos_positions
from m3ae.models.latent_attention import LatentAttention
from m3ae.models.losses import unpatchify

if TYPE_CHECKING:
    from m3ae.models.modalities.base import ModalityConfig, TransformerModalityConfig


def mlp(
    input_size: int, hidden_size: int, num_layers: int, output_size: int | None = None, *, dropout: float = 0.0
) -> nn.Sequential:
    """Build hidden layers (dropout, linear, normalisation, GELU), and a linear output if its size is given."""
    sizes = [input_size] + [hidden_size] * num_layers
    layers: list[nn.Module] = []
    for before, after in pairwise(sizes):
        layers += [nn.Dropout(dropout), nn.Linear(before, after), nn.LayerNorm(after), nn.GELU()]
    return nn.Sequential(*layers, *([] if output_size is None else [nn.Linear(hidden_size, output_size)]))


class MLPDecoder(nn.Module):
    """z (R, Z) → values of a fixed shape (R, *shape)."""

    def __init__(self, input_size: int, modality: ModalityConfig, shape: Sequence[int]) -> None:
        super().__init__()
        self.shape = tuple(shape)
        self.layers = mlp(input_size, modality.hidden_size, modality.num_layers, math.prod(shape))

    def forward(self, latents: Tensor) -> Tensor:
        """Decode latents (R, Z)."""
        values: Tensor = self.layers(latents).unflatten(-1, self.shape)
        return values


class DoublingConvolution(nn.ConvTranspose2d):
    """Maps (R, C, S, S) → (R, C', 2·S, 2·S); each pixel is a sum over 2·2·C values."""

    inputs_per_channel = 4

    def __init__(self, in_channels: int, out_channels: int) -> None:
        super().__init__(in_channels, out_channels, 4, stride=2, padding=1)


class ConvolutionalDecoder(nn.Module):
    """z (R, Z) → an image (R, C, S, S): a linear layer, and transposed convolutions that double the side.

    The mirror of `cnn_encoder`: the first map has W / 8 channels and the side S / 2^layers, the next ones half of the
    channels each.
    """

    def __init__(self, input_size: int, modality: ModalityConfig, shape: Sequence[int]) -> None:
        super().__init__()
        channels, *size = shape
        count, width = modality.num_layers, modality.hidden_size
        if any(side % 2**count for side in size):
            raise ValueError(
                f"a convolutional decoder of {_pixels(size)} px images with {count} layers, each of which doubles the "
                f"side: expected sides that are multiples of {2**count}, or fewer layers."
            )
        widths = [max(1, width // 2 ** (number + 3)) for number in range(count)]
        first = (widths[0], *(side // 2**count for side in size))
        layers: list[nn.Module] = [mlp(input_size, width, 1, math.prod(first)), nn.Unflatten(1, first)]
        for before, after in pairwise([*widths, channels]):
            layers += [nn.GELU(), DoublingConvolution(before, after)]
        self.layers = nn.Sequential(*layers)

    def forward(self, latents: Tensor) -> Tensor:
        """Decode latents (R, Z)."""
        image: Tensor = self.layers(latents)
        return image


class PatchDecoder(nn.Module):
    """z (R, Z) → an image (R, C, S, S): one query for each patch attends to the latent tokens."""

    positions: Tensor

    def __init__(
        self,
        input_size: int,
        modality: TransformerModalityConfig,
        shape: Sequence[int],
        patch_size: int,
        num_tokens: int,
    ) -> None:
        super().__init__()
        self.channels, *size = shape
        if any(side % patch_size for side in size) or modality.hidden_size % 4:
            raise ValueError(
                f"a transformer decoder of {_pixels(size)} px images in patches of {patch_size} px with width "
                f"{modality.hidden_size}: expected sides that are multiples of patch_size, and a width of 4."
            )
        self.patch_size, (self.rows, self.columns) = patch_size, (side // patch_size for side in size)
        positions = self._positions(modality.hidden_size)  # (1, N, W)
        self.queries = nn.Parameter(positions.to(torch.get_default_dtype()))
        self.attention = LatentAttention(input_size, modality, num_tokens)
        self.predict = nn.Linear(modality.hidden_size, patch_size**2 * self.channels)

    def reset_queries(self) -> None:
        """Put the queries back to sine-cosine positions."""
        init.copy_(self.queries, self._positions(self.queries.shape[-1]))

    def _positions(self, width: int) -> Tensor:
        return sincos_positions(self.rows, width, self.columns)[:, 1:].clone()

    def forward(self, latents: Tensor) -> Tensor:
        """Decode latents (R, Z)."""
        tokens = self.attention(self.queries.expand(latents.shape[0], -1, -1), latents)
        return unpatchify(self.predict(tokens), self.patch_size, self.channels, self.rows)


def _pixels(size: Sequence[int]) -> str:
    """Return the size of an image in words, a square's as one number."""
    return "×".join(map(str, dict.fromkeys(size)))
