"""Multi-head attention by the implementation that a configuration names, one of transformers' or with its weights.

Shapes: B batch, T query tokens, S key tokens, D width, H heads.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from transformers import PreTrainedConfig
from transformers.modeling_utils import ALL_ATTENTION_FUNCTIONS


def attend(
    module: nn.Module,
    config: PreTrainedConfig,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    mask: Tensor | None = None,
    dropout: float = 0.0,
) -> tuple[Tensor, Tensor | None]:
    """Attend from queries (B, H, T, D/H) to keys and values (B, H, S, D/H).

    Args:
        module: The caller; its `is_causal` is False.
        config: Names the implementation.
        query: Queries.
        key: Keys.
        value: Values.
        mask: (B, 1, 1, S) bool, True = may be attended to.
        dropout: Share of the weights that are dropped in training.

    Returns:
        (B, T, H, D/H), and the weights (B, H, T, S) if the implementation is `eager`.
    """
    implementation = ALL_ATTENTION_FUNCTIONS.get_interface(config._attn_implementation, eager_attention)
    attended: tuple[Tensor, Tensor | None] = implementation(
        module,
        query,
        key,
        value,
        mask,
        scaling=query.shape[-1] ** -0.5,
        dropout=dropout if module.training else 0.0,
    )
    return attended


def eager_attention(
    module: nn.Module,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attention_mask: Tensor | None,
    scaling: float,
    dropout: float = 0.0,
    **_: Any,
) -> tuple[Tensor, Tensor]:
    """softmax(QKᵀ·scaling)V with its weights materialised, for looking at them."""
    weights = F.dropout(attention_weights(query, key, attention_mask, scaling), dropout, module.training)
    return (weights @ value).transpose(1, 2), weights


def attention_weights(query: Tensor, key: Tensor, attention_mask: Tensor | None, scaling: float) -> Tensor:
    """softmax(QKᵀ·scaling) of queries (B, H, T, D/H) over keys (B, H, S, D/H): (B, H, T, S)."""
    scores = query @ key.transpose(-1, -2) * scaling
    if attention_mask is not None:
        scores = scores.masked_fill(~attention_mask, torch.finfo(scores.dtype).min)
    return scores.softmax(-1)
