"""A transformer that reads z.

Shapes: R rows, S tokens, T latent tokens, W width, Z dimensions of z and of the private latent together.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

from m3ae.models.latent_configuration import ModalityConfig


class LatentAttention(nn.Module):
    """A transformer whose tokens (R, S, W) attend to each other and to T latent tokens made of z.

    They attend to them in a layer of its own (cross-attention), or as they do to each other (prefix): the modality's
    `conditioning` says which.
    """

    def __init__(self, input_size: int, modality: ModalityConfig, num_tokens: int) -> None:
        super().__init__()
        width, count = modality.hidden_size, modality.num_layers
        self.num_tokens, self.prefix = num_tokens, modality.conditioning == "prefix"
        self.latent_tokens = nn.Linear(input_size, num_tokens * width)
        layer = (nn.TransformerEncoderLayer if self.prefix else nn.TransformerDecoderLayer)(
            width,
            modality.num_attention_heads,
            dim_feedforward=4 * width,
            dropout=0.0,
            activation="gelu",
            batch_first=True,
            norm_first=True,
        )
        self.layers: nn.Module
        if isinstance(layer, nn.TransformerEncoderLayer):
            self.layers = nn.TransformerEncoder(layer, count, nn.LayerNorm(width), enable_nested_tensor=False)
        else:
            self.layers = nn.TransformerDecoder(layer, count, nn.LayerNorm(width))

    def forward(self, tokens: Tensor, latents: Tensor, padding: Tensor | None = None) -> Tensor:
        """Update tokens (R, S, W) from latents (R, Z); `padding` (R, S) is True where nobody attends."""
        memory = self.latent_tokens(latents).unflatten(-1, (self.num_tokens, -1))  # (R, T, W)
        if not self.prefix:
            updated: Tensor = self.layers(tokens, memory, tgt_key_padding_mask=padding)
            return updated
        if padding is not None:
            padding = torch.cat([padding.new_zeros(len(padding), self.num_tokens), padding], 1)
        joined: Tensor = self.layers(torch.cat([memory, tokens], 1), src_key_padding_mask=padding)
        return joined[:, self.num_tokens :]
