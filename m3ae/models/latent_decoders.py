"""Decoders of the latent pass: they see z and nothing else.

Shapes: R rows (any samples and components of a batch), Z dimensions of z and of the private latent together, L text
tokens, T latent tokens, N patches, W width, V vocabulary.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from itertools import pairwise

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from transformers import initialization as init

from m3ae.models.configuration import M3AEConfig, M3AEImageConfig
from m3ae.models.decoders import sincos_positions
from m3ae.models.latent import upcast
from m3ae.models.latent_configuration import LatentConfig, ModalityConfig
from m3ae.models.losses import unpatchify

FULLY_MASKED_SHARE = 0.25  # of the rows in training: what generation starts from


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


class LatentAttention(nn.Module):
    """A transformer whose tokens (R, S, W) attend to each other and to T latent tokens made of z."""

    def __init__(self, input_size: int, modality: ModalityConfig, num_tokens: int) -> None:
        super().__init__()
        width = modality.hidden_size
        self.num_tokens = num_tokens
        self.latent_tokens = nn.Linear(input_size, num_tokens * width)
        layer = nn.TransformerDecoderLayer(
            width,
            modality.num_attention_heads,
            dim_feedforward=4 * width,
            dropout=0.0,
            activation="gelu",
            batch_first=True,
            norm_first=True,
        )
        self.layers = nn.TransformerDecoder(layer, modality.num_layers, nn.LayerNorm(width))

    def forward(self, tokens: Tensor, latents: Tensor, padding: Tensor | None = None) -> Tensor:
        """Update tokens (R, S, W) from latents (R, Z); `padding` (R, S) is True where nobody attends."""
        memory = self.latent_tokens(latents).unflatten(-1, (self.num_tokens, -1))  # (R, T, W)
        updated: Tensor = self.layers(tokens, memory, tgt_key_padding_mask=padding)
        return updated


class PatchDecoder(nn.Module):
    """z (R, Z) → an image (R, C, S, S): one query for each patch attends to the latent tokens."""

    positions: Tensor

    def __init__(
        self, input_size: int, modality: ModalityConfig, shape: Sequence[int], patch_size: int, num_tokens: int
    ) -> None:
        super().__init__()
        self.channels, size, _ = shape
        if size % patch_size or modality.hidden_size % 4:
            raise ValueError(
                f"a transformer decoder of {size} px images in patches of {patch_size} px with width "
                f"{modality.hidden_size}: expected a size that is a multiple of patch_size, and a width of 4."
            )
        self.patch_size, self.side = patch_size, size // patch_size
        self.queries = nn.Parameter(sincos_positions(self.side, modality.hidden_size)[:, 1:].clone())  # (1, N, W)
        self.attention = LatentAttention(input_size, modality, num_tokens)
        self.predict = nn.Linear(modality.hidden_size, patch_size**2 * self.channels)

    def reset_queries(self) -> None:
        """Put the queries back to sine-cosine positions."""
        init.copy_(self.queries, sincos_positions(self.side, self.queries.shape[-1])[:, 1:])

    def forward(self, latents: Tensor) -> Tensor:
        """Decode latents (R, Z)."""
        tokens = self.attention(self.queries.expand(len(latents), -1, -1), latents)
        return unpatchify(self.predict(tokens), self.patch_size, self.channels)


class TextDecoder(nn.Module):
    """A masked language model given z, which also predicts how long the text is.

    Its likelihood is that of filling in the tokens in random order (Hoogeboom et al. 2022): with k of n tokens masked,
    k uniform in 1 … n, and Σ the log-probabilities of the masked ones, E[n/k · Σ] is a lower bound on log p(text | z,
    length). In training, a quarter of the rows is fully masked instead, of which Σ is a bound, too. log p(length | z)
    is added. The special tokens at both ends are certain.
    """

    def __init__(self, config: M3AEConfig, input_size: int, modality: ModalityConfig, num_tokens: int) -> None:
        super().__init__()
        text, width = config.text_config, modality.hidden_size
        assert text is not None and not isinstance(text, dict)
        self.max_length = modality.max_length
        ends = (text.bos_token_id, text.eos_token_id, text.pad_token_id)
        if not all(isinstance(token, int) for token in ends):
            raise ValueError(f"text_config: bos, eos and pad tokens of a decoded text must be known, got {ends}.")
        self.bos, self.eos, self.pad = map(int, ends)  # type: ignore[arg-type]  # checked
        self.mask = text.vocab_size - 1 if config.mask_token_id is None else config.mask_token_id
        self.special = [self.bos, self.eos, self.pad, self.mask]
        self.embed = nn.Embedding(text.vocab_size, width)
        self.positions = nn.Embedding(self.max_length, width)
        self.attention = LatentAttention(input_size, modality, num_tokens)
        self.predict = nn.Linear(width, text.vocab_size)
        self.length = nn.Linear(input_size, self.max_length - 1)  # tokens beside the special ones: 0 … max_length − 2

    def log_likelihood(self, latents: Tensor, input_ids: Tensor, attention_mask: Tensor, noise: Tensor) -> Tensor:
        """Return a sample of the bound on log p(text|z) in nats, (R,).

        Args:
            latents: (R, Z).
            input_ids: (R, L), with its special tokens.
            attention_mask: (R, L), 0 = padding.
            noise: (R, 1 + L) uniform in [0, 1): decides how many, and which tokens are masked.

        Raises:
            ValueError: The texts are longer than `max_length`.
        """
        if input_ids.shape[1] > self.max_length:
            raise ValueError(
                f"Texts of {input_ids.shape[1]} tokens, expected at most {self.max_length}: set max_length of the "
                "modality, or cut the texts (data.max_text_length)."
            )
        content = attention_mask.bool() & ~torch.isin(input_ids, input_ids.new_tensor([self.bos, self.eos, self.pad]))
        count = content.sum(1)  # n
        masked = noise[:, 1:].masked_fill(~content, 2).argsort(1).argsort(1) < self._num_masked(noise[:, :1], count)
        logits = self._logits(input_ids.masked_fill(masked, self.mask), latents, attention_mask.bool(), masked)
        found = -F.cross_entropy(upcast(logits), input_ids[masked], reduction="none")
        sums = found.new_zeros(masked.shape).masked_scatter(masked, found).sum(1)
        length = upcast(self.length(latents)).log_softmax(-1).gather(1, count[:, None])[:, 0]
        return sums * count / masked.sum(1).clamp(min=1) + length

    def _num_masked(self, noise: Tensor, count: Tensor) -> Tensor:
        if self.training:
            noise = ((noise - FULLY_MASKED_SHARE) / (1 - FULLY_MASKED_SHARE)).where(noise >= FULLY_MASKED_SHARE, 1)
        return (noise * count[:, None]).floor() + 1

    def _logits(self, input_ids: Tensor, latents: Tensor, visible: Tensor, wanted: Tensor) -> Tensor:
        """Return the logits (…, V) of the tokens for which `wanted` (R, L) is True."""
        tokens = self.embed(input_ids) + self.positions.weight[: input_ids.shape[1]]
        logits: Tensor = self.predict(self.attention(tokens, latents, ~visible)[wanted])
        return logits

    @torch.no_grad()
    def generate(self, latents: Tensor) -> Tensor:
        """Write the likeliest length, then in each step the token of which the model is surest.

        Args:
            latents: (R, Z).

        Returns:
            (R, L) token ids, padded.
        """
        count = self.length(latents).argmax(-1, keepdim=True)  # (R, 1)
        place = torch.arange(int(count.max()) + 2, device=latents.device)
        input_ids = torch.full((len(latents), len(place)), self.pad, device=latents.device)
        input_ids[:, 0] = self.bos
        input_ids.scatter_(1, count + 1, self.eos)
        hidden, visible = (place >= 1) & (place <= count), place <= count + 1
        input_ids[hidden] = self.mask
        while hidden.any():
            logits = upcast(self._logits(input_ids, latents, visible, hidden))
            logits[:, self.special] = -torch.inf
            confidence, token = logits.softmax(-1).max(-1)
            surest = confidence.new_full(hidden.shape, -1).masked_scatter(hidden, confidence).argmax(1, keepdim=True)
            chosen = hidden & (place == surest)
            input_ids[chosen] = input_ids.masked_scatter(hidden, token)[chosen]
            hidden = hidden & ~chosen
        return input_ids


def build_decoder(config: M3AEConfig, latent: LatentConfig, modality: ModalityConfig) -> nn.Module:
    """Build the decoder of a modality from the shared and its private latent."""
    size = latent.size + modality.private_size
    if modality.kind == "text":
        return TextDecoder(config, size, modality, latent.num_tokens)
    shape = shape_of(config, modality)
    if modality.decoder == "mlp":
        return MLPDecoder(size, modality, shape)
    assert isinstance(config.image_config, M3AEImageConfig)
    return PatchDecoder(
        size, modality, shape, modality.patch_size or config.image_config.patch_size, latent.num_tokens
    )


def shape_of(config: M3AEConfig, modality: ModalityConfig) -> list[int]:
    """Return the shape that a decoder predicts: of an element, or (A,) logits of classes."""
    if modality.kind == "label":
        return [len(modality.labels or [])]
    if modality.shape:
        return modality.shape
    image = config.image_config
    assert isinstance(image, M3AEImageConfig)
    return [image.num_channels, image.image_size, image.image_size]
