"""The co-attention transformer: every stream attends to itself, then to all other present streams.

Shapes: B batch, V views, T query tokens, S key tokens, R tokens read, D width, H heads.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import NamedTuple, cast

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from transformers import PreTrainedConfig
from transformers.modeling_layers import GradientCheckpointingLayer

from m3ae.models.attention import attend, attention_weights
from m3ae.models.encoders import gather_tokens


class Stream(NamedTuple):
    """The tokens of one modality, or of several views of it that share its parameters.

    The views of a study stand one after the other in the tokens. The fusion treats each view as a stream, which
    attends to itself and to the other views and modalities that are present.

    Attributes:
        tokens: (B, V·S, D).
        mask: (B, V·S) bool, True = a real token; None = all are.
        present: (B,) bool, True = the sample has this modality, or (B, V) bool for each of several views; None = all
            are present.
        num_views: V.
    """

    tokens: Tensor
    mask: Tensor | None = None
    present: Tensor | None = None
    num_views: int = 1

    def select(self, index: Tensor) -> Stream:
        """Return the rows that `index` names."""
        mask, present = (None if rows is None else rows[index] for rows in (self.mask, self.present))
        return Stream(self.tokens[index], mask, present, self.num_views)

    def views(self) -> list[Stream]:
        """Return a stream for each view."""
        if self.num_views == 1:
            return [self]
        masks = [None] * self.num_views if self.mask is None else self.mask.chunk(self.num_views, 1)
        present = [None] * self.num_views if self.present is None else self.present.unbind(1)
        return [Stream(*view) for view in zip(self.tokens.chunk(self.num_views, 1), masks, present, strict=True)]


def joined_views(streams: Sequence[Stream]) -> Stream:
    """Return one stream of views that have equally many tokens, each with its `present`; a single view as it is."""
    if len(streams) == 1:
        return streams[0]
    tokens, masks, present, _ = zip(*streams, strict=True)
    mask = None if masks[0] is None else torch.cat(masks, 1)
    return Stream(torch.cat(tokens, 1), mask, torch.stack(present, 1), len(streams))


def first_token(rows: Tensor) -> Tensor:
    """Return the position (B, 1) of the class token in each of the rows (B, …)."""
    return torch.zeros(rows.shape[0], 1, dtype=torch.long, device=rows.device)


def class_tokens(tokens: Tensor, num_views: int) -> Tensor:
    """Return the first token of each view, (B, V, D), of the tokens (B, V·S, D) of a stream."""
    first: Tensor = tokens.unflatten(1, (num_views, -1))[:, :, 0]
    return first


class FusionAttention(nn.Module):
    """Multi-head attention with the residual connection and post-norm of BERT."""

    def __init__(self, config: PreTrainedConfig) -> None:
        super().__init__()
        size = config.hidden_size
        self.config = config
        self.is_causal = False
        self.head_dim = size // config.num_attention_heads
        self.query = nn.Linear(size, size)
        self.key = nn.Linear(size, size)
        self.value = nn.Linear(size, size)
        self.output = nn.Linear(size, size)
        self.norm = nn.LayerNorm(size, eps=config.layer_norm_eps)

    def forward(
        self, tokens: Tensor, context: Tensor, mask: Tensor | None, gate: Tensor | None = None
    ) -> tuple[Tensor, Tensor | None]:
        """Attend from tokens (B, T, D) to context (B, S, D).

        Args:
            tokens: Queries and residual.
            context: Keys and values.
            mask: (B, 1, 1, S) bool, True = may be attended to.
            gate: (B, 1, 1), 0 where a sample has no context at all.

        Returns:
            The updated tokens (B, T, D), and the weights (B, H, T, S) if the implementation has them.
        """
        query, key, value = (
            self._heads(projected) for projected in (self.query(tokens), self.key(context), self.value(context))
        )
        dropout = self.config.attention_probs_dropout_prob
        attended, weights = attend(self, self.config, query, key, value, mask, dropout)
        update = F.dropout(self.output(attended.flatten(-2)), self.config.hidden_dropout_prob, self.training)
        if gate is not None:
            update = update * gate
        return self.norm(tokens + update), weights

    def weights(self, tokens: Tensor, context: Tensor, mask: Tensor | None) -> Tensor:
        """Return with which weights (B, H, T, S) `forward` attends from tokens (B, T, D) to context (B, S, D)."""
        queries, keys = self._heads(self.query(tokens)), self._heads(self.key(context))
        return attention_weights(queries, keys, mask, self.head_dim**-0.5)

    def _heads(self, tokens: Tensor) -> Tensor:
        return tokens.view(*tokens.shape[:2], -1, self.head_dim).transpose(1, 2)  # (B, H, T, D/H)


class FusionLayer(GradientCheckpointingLayer):
    """One stream's layer: self-attention, cross-attention, MLP, each post-norm."""

    def __init__(self, config: PreTrainedConfig) -> None:
        super().__init__()
        self.config = config
        self.self_attention = FusionAttention(config)
        self.cross_attention = FusionAttention(config)
        self.intermediate = nn.Linear(config.hidden_size, config.intermediate_size)
        self.output = nn.Linear(config.intermediate_size, config.hidden_size)
        self.norm = nn.LayerNorm(config.hidden_size, eps=config.layer_norm_eps)

    def forward(
        self,
        tokens: Tensor,
        mask: Tensor | None,
        context: Tensor | None,
        context_mask: Tensor | None,
        gate: Tensor | None,
        read: Tensor | None = None,
    ) -> Tensor:
        """Update the tokens (B, S, D), or only those (B, R, D) at the positions `read` (B, R)."""
        queries = tokens if read is None else gather_tokens(tokens, read)
        queries, _ = self.self_attention(queries, tokens, mask)
        if context is None:
            queries = self.cross_attention.norm(queries)  # as where all context is absent
        else:
            queries, _ = self.cross_attention(queries, context, context_mask, gate)
        update = self.output(F.gelu(self.intermediate(queries)))
        normed: Tensor = self.norm(queries + F.dropout(update, self.config.hidden_dropout_prob, self.training))
        return normed


class Fusion(nn.Module):
    """Layers that update all streams in parallel, each from the others' previous output.

    Any number of streams may be fused. Those of one modality, such as two views of a study, share its layers.
    """

    def __init__(self, config: PreTrainedConfig, streams: tuple[str, ...]) -> None:
        super().__init__()
        self.layers = nn.ModuleList(
            nn.ModuleDict({name: FusionLayer(config) for name in streams}) for _ in range(config.num_hidden_layers)
        )

    def forward(
        self,
        streams: Mapping[str, Stream],
        read: Mapping[str, Tensor | None] | None = None,
        num_layers: int | None = None,
    ) -> list[dict[str, Tensor]]:
        """Fuse the streams.

        Args:
            streams: Name → tokens of a modality; any non-empty subset of the model's modalities.
            read: What the caller reads of the last layer: name → positions (B, R) in each view, or None for all
                positions. The last layer leaves other streams out. None reads everything.
            num_layers: Number of layers to run; all of them if None.

        Returns:
            The tokens entering each layer, then those leaving the last, views one after the other: entry i is the
            input of layer i. The last entry has the streams and positions of `read` only.
        """
        layers = self.layers[:num_layers]
        last = dict.fromkeys(streams) if read is None else dict(read)
        views = {
            (name, number): view for name, stream in streams.items() for number, view in enumerate(stream.views())
        }
        masks = {key: _key_mask([view]) for key, view in views.items()}
        others = {key: [view for other, view in views.items() if other != key] for key in views}
        context_masks = {key: _key_mask(context) for key, context in others.items()}
        gates = {key: _gate(context) for key, context in others.items()}

        tokens = {key: view.tokens for key, view in views.items()}
        states = [_joined_views(tokens)]
        for depth, layer in enumerate(layers, start=1):
            names = last if depth == len(layers) else dict.fromkeys(streams)
            tokens = {
                key: layer[key[0]](  # type: ignore[index]
                    tokens[key],
                    masks[key],
                    _join([tokens[other] for other in views if other != key]),
                    context_masks[key],
                    gates[key],
                    read=names[key[0]],
                )
                for key in views
                if key[0] in names
            }
            states.append(_joined_views(tokens))
        return states

    def cross_attention(self, streams: Mapping[str, Stream], name: str) -> Tensor:
        """Return how the last layer's tokens of a stream attend to the other streams, in the order of `streams`.

        Computed beside `forward`, whose attention does not materialise its weights.

        Args:
            streams: Name → tokens of a modality.
            name: The stream that attends; it has one view.

        Returns:
            (B, H, T, S), over S adding up to 1; meaningless for samples without another modality.

        Raises:
            ValueError: There is no other stream.
        """
        others = [view for other, stream in streams.items() if other != name for view in stream.views()]
        states = self(streams, num_layers=len(self.layers) - 1)[-1]
        context = _join([states[other] for other in streams if other != name])
        if context is None:
            raise ValueError(f"Cross-attention of {name!r} needs another stream; got only {list(streams)}.")
        layer: FusionLayer = self.layers[-1][name]  # type: ignore[index]
        queries, _ = layer.self_attention(states[name], states[name], _key_mask([streams[name]]))
        return layer.cross_attention.weights(queries, context, _key_mask(others))

    def self_attention(self, streams: Mapping[str, Stream], name: str) -> list[Tensor]:
        """Return how the last layer's tokens of each view of a stream attend to the view itself.

        Computed beside `forward`, as `cross_attention` is.

        Returns:
            (B, H, S, S) for each view, over the last S adding up to 1.
        """
        states = self(streams, num_layers=len(self.layers) - 1)[-1][name]
        layer: FusionLayer = self.layers[-1][name]  # type: ignore[index]
        views = zip(states.chunk(streams[name].num_views, 1), streams[name].views(), strict=True)
        return [layer.self_attention.weights(tokens, tokens, _key_mask([view])) for tokens, view in views]


def _joined_views(tokens: Mapping[tuple[str, int], Tensor]) -> dict[str, Tensor]:
    """Return the tokens (B, V·S, D) of each stream from those of its views."""
    names = dict.fromkeys(name for name, _ in tokens)
    return {name: cast(Tensor, _join([view for key, view in tokens.items() if key[0] == name])) for name in names}


def _join(tokens: list[Tensor]) -> Tensor | None:
    if len(tokens) < 2:
        return tokens[0] if tokens else None
    return torch.cat(tokens, dim=1)


def _key_mask(streams: list[Stream]) -> Tensor | None:
    """(B, 1, 1, S) bool, True = may be attended to.

    It is None if all may, as in a single stream without padding, whose tokens are all present or all absent. A sample
    that has nothing to attend to attends to everything: the result is finite and never read (see `_gate`), where an
    empty softmax would be NaN.
    """
    if all(stream.mask is None and (stream.present is None or len(streams) < 2) for stream in streams):
        return None
    masks = []
    for tokens, mask, present, _ in streams:
        visible = torch.ones(tokens.shape[:2], dtype=torch.bool, device=tokens.device) if mask is None else mask
        masks.append(visible if present is None else visible & present[:, None])
    keys = torch.cat(masks, dim=1)
    return (keys | ~keys.any(1, keepdim=True))[:, None, None, :]


def _gate(context: list[Stream]) -> Tensor | None:
    """(B, 1, 1), 0 where no other modality is present."""
    if not context or any(stream.present is None for stream in context):
        return None
    present = torch.stack([stream.present for stream in context if stream.present is not None]).any(0)
    return present[:, None, None].to(context[0].tokens.dtype)
