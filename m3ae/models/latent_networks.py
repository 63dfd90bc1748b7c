"""Networks of the latent head: encoders of small modalities, and decoders that see z and nothing else.

The decoders of texts are in `m3ae.models.text_decoders`.

Shapes: B batch, R rows (any samples and components of a batch), S tokens, T latent tokens, Q queries, N patches, W
width, D shared dimensions, P private ones, Z both together, E the shape of an element, A classes.
"""

from __future__ import annotations

import copy
import math
from collections.abc import Mapping, Sequence
from itertools import pairwise
from typing import TYPE_CHECKING

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from transformers import initialization as init

from m3ae.models.fusion import Stream
from m3ae.models.gaussians import Gaussian, dtype_of
from m3ae.models.heads import sincos_positions
from m3ae.models.latent_configuration import LatentConfig
from m3ae.models.masking import unpatchify

if TYPE_CHECKING:
    from m3ae.models.modalities.base import Modality
    from m3ae.models.modalities.options import ModalityConfig, TransformerModalityConfig

FREQUENCIES = (0.5, 1.0, 2.0)  # half turns of the sines across an image or volume


def mlp(
    input_size: int, hidden_size: int, num_layers: int, output_size: int | None = None, *, dropout: float = 0.0
) -> nn.Sequential:
    """Build hidden layers (dropout, linear, normalisation, GELU), and a linear output unless its size is None."""
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


class DoublingConvolution3d(nn.ConvTranspose3d):
    """Maps (R, C, S, S, S) → (R, C', 2·S, 2·S, 2·S); each voxel is a sum over 2·2·2·C values."""

    inputs_per_channel = 8

    def __init__(self, in_channels: int, out_channels: int) -> None:
        super().__init__(in_channels, out_channels, 4, stride=2, padding=1)


class ConvolutionalDecoder(nn.Module):
    """z (R, Z) → an image (R, C, S, S) or a volume (R, C, S, S, S): transposed convolutions that double the side.

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
        doubling = DoublingConvolution if len(size) == 2 else DoublingConvolution3d
        layers: list[nn.Module] = [mlp(input_size, width, 1, math.prod(first)), nn.Unflatten(1, first)]
        for before, after in pairwise([*widths, channels]):
            layers += [nn.GELU(), doubling(before, after)]
        self.layers = nn.Sequential(*layers)

    def forward(self, latents: Tensor) -> Tensor:
        """Decode latents (R, Z)."""
        image: Tensor = self.layers(latents)
        return image


class ImplicitDecoder(nn.Module):
    """z (R, Z) → a volume (R, C, D, H, W): an MLP reads the coordinates of each position.

    z scales and shifts its layers (FiLM, Perez et al. 2018), as in occupancy networks (Mescheder et al. 2019). The MLP
    has the width W / 2 and residual layers. A sharp surface that moves with z is easier to learn than by convolutions.
    """

    def __init__(self, input_size: int, modality: ModalityConfig, shape: Sequence[int]) -> None:
        super().__init__()
        channels, *self.sides = shape
        count, width = modality.num_layers, max(8, modality.hidden_size // 2)
        self.condition = mlp(input_size, width, 2)
        self.place = nn.Linear(len(self.sides) * (2 * len(FREQUENCIES) + 1), width)
        self.layers = nn.ModuleList(nn.Linear(width, width) for _ in range(count))
        self.styles = nn.ModuleList(nn.Linear(width, 2 * width) for _ in range(count))
        self.predict = nn.Linear(width, channels)

    def forward(self, latents: Tensor) -> Tensor:
        """Decode latents (R, Z)."""
        values: Tensor = self.place(self._coordinates(latents))  # (N, W / 2)
        condition = self.condition(latents)
        for layer, style in zip(self.layers, self.styles, strict=True):
            scale, shift = style(condition)[:, None].chunk(2, -1)  # (R, 1, W / 2)
            values = values + F.gelu(layer(values) * (1 + scale) + shift)
        decoded: Tensor = self.predict(values).transpose(1, 2).unflatten(-1, self.sides)
        return decoded

    def _coordinates(self, like: Tensor) -> Tensor:
        """Return the coordinates of the N positions, in [-1, 1], and their sines and cosines (N, 7·dimensions)."""
        axes = [(torch.arange(side, device=like.device) + 0.5) * (2 / side) - 1 for side in self.sides]
        places = torch.stack(torch.meshgrid(*axes, indexing="ij"), -1).flatten(0, -2)
        angles = [places * frequency * torch.pi for frequency in FREQUENCIES]
        waves = [wave(angle) for angle in angles for wave in (torch.sin, torch.cos)]
        return torch.cat([places, *waves], -1).to(like.dtype)


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


class HalvingConvolution3d(nn.Conv3d):
    """Maps (B, C, S, S, S) → (B, C', ⌈S/2⌉, ⌈S/2⌉, ⌈S/2⌉); each voxel is a sum over 3·3·3·C values."""

    inputs_per_channel = 27

    def __init__(self, in_channels: int, out_channels: int) -> None:
        super().__init__(in_channels, out_channels, 3, stride=2, padding=1)


CONVOLUTIONS = (DoublingConvolution, DoublingConvolution3d, HalvingConvolution, HalvingConvolution3d)


def cnn_encoder(shape: Sequence[int], modality: ModalityConfig) -> nn.Sequential:
    """Build a network from images (B, C, S, S) or volumes (B, C, S, S, S) to features (B, W).

    Convolutions of stride 2 come first, then a linear layer. The last convolution has W / 8 channels, each one before
    it half as many as the next.
    """
    channels, *size = shape
    halving = HalvingConvolution if len(size) == 2 else HalvingConvolution3d
    layers: list[nn.Module] = []
    for number in range(modality.num_layers):
        out_channels = max(1, modality.hidden_size // 2 ** (modality.num_layers + 2 - number))
        layers += [halving(channels, out_channels), nn.GELU()]
        channels, size = out_channels, [(side + 1) // 2 for side in size]
    features = mlp(channels * math.prod(size), modality.hidden_size, 1, dropout=modality.dropout)
    return nn.Sequential(*layers, nn.Flatten(), features)


def read_gaussian(predicted: Tensor, std: float) -> Gaussian:
    """Return the Gaussians (…, D) of predicted means and log-variances (…, 2·D), where 0 is N(0, σ²)."""
    mu, logvar = predicted.chunk(2, -1)
    return Gaussian(mu, logvar + 2 * math.log(std))


class Vectors(nn.ParameterDict):
    """Learned vectors by name, each drawn from N(0, σ²).

    transformers initialises what a checkpoint lacks in modules that have parameters of their own, as this one does.
    """

    def __init__(self, shapes: Mapping[str, Sequence[int]], std: float) -> None:
        super().__init__({name: nn.Parameter(torch.empty(*shape)) for name, shape in shapes.items()})
        self.std = std
        self.reset()

    def reset(self) -> None:
        """Draw the vectors."""
        for vector in self.values():
            init.normal_(vector, std=self.std)


class Expert(nn.Module):
    """Tokens of the trunk, or the values of a small modality → the Gaussians of z and of the private latent."""

    def __init__(self, modality: Modality, latent: LatentConfig) -> None:
        super().__init__()
        self.size, self.initial_std, model = latent.size, latent.initial_std, modality.model
        features = modality.build_encoder()
        if features is None:
            self.pool = AttentionPool(model.hidden_size, model.num_attention_heads, latent.num_tokens)
            self.width = model.hidden_size * latent.num_tokens
        else:
            self.features = features
            self.width = modality.config.hidden_size
        self.output = nn.Linear(self.width, 2 * (latent.size + modality.config.private_size))

    def read(self, inputs: Stream | Tensor) -> Tensor:
        """Return features (B, W)."""
        features = self.pool(inputs) if isinstance(inputs, Stream) else self.features(inputs.to(dtype_of(self)))
        assert isinstance(features, Tensor)
        return features

    def forward(self, features: Tensor) -> tuple[Gaussian, Gaussian]:
        """Return the expert over z (B, D) and over the private latent (B, P)."""
        both = read_gaussian(self.output(features), self.initial_std)
        return both.columns(slice(self.size)), both.columns(slice(self.size, None))


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
    """Self-attention, cross-attention to a memory if the layer reads one, and an MLP, each after a normalisation."""

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

    The modality's `conditioning` says whether they attend to them in a cross-attention, or as to each other (prefix).
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
