"""A transformer that reads z.

Shapes: R rows, S tokens, T latent tokens, W width, Z dimensions of z and of the private latent together.
"""

from __future__ import annotations

from torch import Tensor, nn

from m3ae.models.latent_configuration import ModalityConfig


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
