"""Heads: fused tokens → pixels, words, pooled vectors; encoded tokens → the contrastive space.

Shapes: B batch, N patches, K visible patches, M masked tokens, D width, V vocabulary, A labels.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from transformers import initialization as init

from m3ae.models import pairs
from m3ae.models.configuration import M3AEConfig, M3AEImageConfig
from m3ae.models.encoders import Block, gather_tokens, token_mask
from m3ae.models.fusion import Stream


def sincos_positions(rows: int, width: int, columns: int | None = None) -> Tensor:
    """Two-dimensional sine-cosine positions (1, 1 + N, width), zero for the class token (He et al. 2022).

    N patches are in `rows` rows of `columns`, by default a square.
    """
    columns = columns or rows
    frequency = 1.0 / 10000 ** (torch.arange(width // 4, dtype=torch.float64) / (width // 4))
    angle = torch.arange(max(rows, columns), dtype=torch.float64)[:, None] * frequency  # (side, width / 4)
    axis = torch.cat([angle.sin(), angle.cos()], dim=1)  # (side, width / 2)
    across = axis[None, :columns].expand(rows, -1, -1)
    down = axis[:rows, None].expand(-1, columns, -1)
    grid = torch.cat([across, down], dim=-1).reshape(1, rows * columns, width)
    return torch.cat([torch.zeros(1, 1, width, dtype=grid.dtype), grid], dim=1).float()


class PixelDecoder(nn.Module):
    """A transformer that predicts all patches from the fused visible ones (He et al. 2022)."""

    positions: Tensor

    def __init__(self, config: M3AEConfig) -> None:
        super().__init__()
        image = config.image_config
        assert isinstance(image, M3AEImageConfig)
        width = config.decoder_hidden_size
        self.side = image.image_size // image.patch_size
        self.embed = nn.Linear(config.hidden_size, width)
        self.mask_token = nn.Parameter(torch.zeros(1, 1, width))
        self.register_buffer("positions", sincos_positions(self.side, width), persistent=False)
        self.blocks = nn.Sequential(
            *(
                Block(config, config, width, config.decoder_num_attention_heads)
                for _ in range(config.decoder_num_hidden_layers)
            )
        )
        self.norm = nn.LayerNorm(width, eps=image.layer_norm_eps)
        self.predict = nn.Linear(width, image.patch_size**2 * image.num_channels)

    def forward(self, tokens: Tensor, ids_restore: Tensor, real: Tensor | None = None) -> Tensor:
        """Predict all patches.

        Args:
            tokens: (B, 1 + K, D) the class token and the visible patches.
            ids_restore: (B, N) position of each patch in the order [visible, masked].
            real: (B, N) bool, False = padding, which nothing attends to; all are real if None.

        Returns:
            (B, N, P·P·C).
        """
        tokens = self.embed(tokens)
        class_token, visible = tokens[:, :1], tokens[:, 1:]
        num_masked = ids_restore.shape[1] - visible.shape[1]
        hidden = self.mask_token.to(tokens.dtype).expand(tokens.shape[0], num_masked, -1)
        patches = gather_tokens(torch.cat([visible, hidden], dim=1), ids_restore)
        tokens = torch.cat([class_token, patches], dim=1) + self.positions.to(tokens.dtype)
        mask = token_mask(real)
        for block in self.blocks:
            tokens = block(tokens, None, mask)
        predicted: Tensor = self.predict(self.norm(tokens[:, 1:]))
        return predicted


class TokenHead(nn.Module):
    """BERT's language-modelling head: dense, GELU, normalisation, vocabulary."""

    def __init__(self, config: M3AEConfig, vocab_size: int) -> None:
        super().__init__()
        self.dense = nn.Linear(config.hidden_size, config.hidden_size)
        self.norm = nn.LayerNorm(config.hidden_size, eps=config.layer_norm_eps)
        self.decoder = nn.Linear(config.hidden_size, vocab_size)

    def forward(self, tokens: Tensor) -> Tensor:
        """Map fused tokens (B, M, D) to logits (B, M, V)."""
        logits: Tensor = self.decoder(self.norm(F.gelu(self.dense(tokens))))
        return logits


class Pooler(nn.Module):
    """tanh(linear(first token))."""

    def __init__(self, size: int) -> None:
        super().__init__()
        self.dense = nn.Linear(size, size)

    def forward(self, tokens: Tensor) -> Tensor:
        """Map tokens (…, S, D) to (…, D)."""
        pooled: Tensor = self.dense(tokens[..., 0, :]).tanh()
        return pooled


class Float32Linear(nn.Linear):
    """A linear layer that ignores autocast: in bfloat16 the scores of many pairs, or of several answers, are equal."""

    def forward(self, input: Tensor) -> Tensor:
        """Map features (…, D) to float32 scores (…, A)."""
        with torch.autocast(input.device.type, enabled=False):
            return F.linear(input.float(), self.weight.float(), self.bias.float())


class PooledHead(nn.Module):
    """The published head of question answering and classification: dense, normalisation, GELU, one output a label."""

    def __init__(self, config: M3AEConfig) -> None:
        super().__init__()
        assert config.num_labels is not None
        width = 2 * config.hidden_size
        self.dense = nn.Linear(width, width)
        self.norm = nn.LayerNorm(width)  # of epsilon 1e-5, not the fusion's
        self.output = Float32Linear(width, config.num_labels)

    def forward(self, pooled: Tensor) -> Tensor:
        """Map pooled features (B, 2·D) to logits (B, A)."""
        logits: Tensor = self.output(F.gelu(self.norm(self.dense(pooled))))
        return logits


def matching_score(head: nn.Module, pooled: Tensor) -> Tensor:
    """Return how well the text and the image match that `pooled` (B, 2·D) fuses: row 1 of the head, (B,) float32.

    That is the published score of retrieval (Chen et al. 2022), whether the head was trained in pre-training, as a
    classifier of two classes, or in fine-tuning, on row 1 alone.
    """
    scores: Tensor = head(pooled)
    return scores[:, 1]


class Contrast(NamedTuple):
    """Texts and images of a batch beside each other.

    Attributes:
        loss: () what `config.itc_loss` names.
        logits: (B, B) similarity of each text and each image, or more than B of each; those of this batch come first.
        pairs: The pairs of the batch, in training those of all processes, as constants.
    """

    loss: Tensor
    logits: Tensor
    pairs: pairs.ContrastedPairs


class ContrastiveHead(nn.Module):
    """Projects each modality, encoded alone, onto the unit sphere that both share (Radford et al. 2021).

    The logit of a pair is its cosine over the temperature, plus a bias if the loss is that of SigLIP.
    """

    def __init__(self, config: M3AEConfig) -> None:
        super().__init__()
        self.text = nn.Linear(config.hidden_size, config.itc_size)
        self.image = nn.Linear(config.hidden_size, config.itc_size)
        self.log_scale = nn.Parameter(torch.empty(()))
        self.loss, biased = pairs.CONTRASTIVE_LOSSES[config.itc_loss], config.itc_loss == "sigmoid"
        self.bias = nn.Parameter(torch.empty(())) if biased else None
        self.reset_parameters()

    def reset_parameters(self) -> None:
        """Set temperature and bias to the values that the papers of the losses begin with."""
        init.constant_(self.log_scale, math.log(1 / 0.07) if self.bias is None else math.log(10))
        if self.bias is not None:
            init.constant_(self.bias, -10.0)

    def embed(self, name: str, stream: Stream) -> Tensor:
        """Average the tokens (B, S, D) of the stream called `name` and project them to unit vectors (B, E)."""
        tokens, mask, present, num_views = stream
        weights = tokens.new_ones(tokens.shape[:2]) if mask is None else mask.to(tokens.dtype)
        if num_views > 1 and present is not None:
            weights = weights * present.repeat_interleave(tokens.shape[1] // num_views, 1)
        mean = (tokens * weights[..., None]).sum(1) / weights.sum(1, keepdim=True).clamp(min=1)
        return F.normalize(getattr(self, name)(mean).float(), dim=-1)

    def forward(
        self,
        text: Stream,
        image: Stream,
        ids: tuple[Tensor, Tensor],
        valid: Tensor,
        others: Sequence[pairs.ContrastedPairs] = (),
    ) -> Contrast:
        """Contrast the texts and images of a batch, in training those of all processes.

        Args:
            text: B texts, encoded.
            image: B images, encoded.
            ids: Ids of the images and of the texts, as `match_pairs` takes them.
            valid: (B,) bool: the sample has both modalities.
            others: The pairs of the other micro-batches of the optimiser step, to contrast with them, too.
        """
        contrasted = pairs.ContrastedPairs(self.embed("text", text), self.embed("image", image), *ids, valid)
        if self.training:
            contrasted = contrasted.gather()
        whole = contrasted.beside(others)
        cosine = whole.texts @ whole.images.T
        if self.bias is None:
            logits = self.log_scale.clamp(max=math.log(100)).exp() * cosine
        else:
            logits = self.log_scale.exp() * cosine + self.bias
        return Contrast(self.loss(logits, whole.same(), whole.valid), logits, contrasted.detach())
