"""Multi-head attention by the implementation that a configuration names, and what a call records of it.

Shapes: B batch, T query tokens, S key tokens, D width, H heads.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from contextlib import ExitStack, contextmanager
from functools import partial
from typing import TYPE_CHECKING, Any, cast

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from transformers import PreTrainedConfig
from transformers.modeling_utils import ALL_ATTENTION_FUNCTIONS

if TYPE_CHECKING:
    from m3ae.models.modeling import M3AEPreTrainedModel


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
        config: The configuration that names the implementation.
        query: (B, H, T, D/H).
        key: (B, H, S, D/H).
        value: (B, H, S, D/H).
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


RECORDED = ("hidden_states", "attentions")


class _Calls:
    """The first call of each layer of a stack: tokens before and after, and the weights of its self-attention."""

    def __init__(self, stack: ExitStack, layers: Iterable[tuple[nn.Module, nn.Module]]) -> None:
        self.tokens: dict[int, tuple[Tensor, Tensor]] = {}
        self.weights: dict[int, Tensor] = {}
        for depth, (layer, attention) in enumerate(layers):
            stack.callback(layer.register_forward_hook(partial(self._keep_tokens, depth)).remove)
            stack.callback(attention.register_forward_hook(partial(self._keep_weights, depth)).remove)

    def _keep_tokens(self, depth: int, _: nn.Module, inputs: tuple[Tensor, ...], output: Tensor) -> None:
        self.tokens.setdefault(depth, (inputs[0], output))

    def _keep_weights(self, depth: int, _: nn.Module, __: Any, output: tuple[Tensor, Tensor]) -> None:
        self.weights.setdefault(depth, output[1])

    def results(self) -> dict[str, tuple[Tensor, ...]]:
        states = [self.tokens[depth] for depth in sorted(self.tokens)]
        weights = tuple(self.weights[depth] for depth in sorted(self.weights))
        return {"hidden_states": (states[0][0], *(after for _, after in states)), "attentions": weights}


class _TextCalls:
    """The first call of a text encoder of transformers, which records by itself."""

    def __init__(self, stack: ExitStack, encoder: nn.Module, requested: Mapping[str, Any]) -> None:
        self.tokens: Any = None
        options = {f"output_{name}": bool(requested[name]) for name in RECORDED}
        before = encoder.register_forward_pre_hook(lambda _, args, kwargs: (args, kwargs | options), with_kwargs=True)
        stack.callback(before.remove)
        stack.callback(encoder.register_forward_hook(self._keep).remove)

    def _keep(self, _: nn.Module, __: Any, output: Any) -> None:
        self.tokens = output if self.tokens is None else self.tokens

    def results(self) -> dict[str, tuple[Tensor, ...]]:
        return {name: tuple(self.tokens.get(name) or ()) for name in RECORDED}


@contextmanager
def recording(model: M3AEPreTrainedModel, requested: Mapping[str, Any]) -> Iterator[dict[str, tuple[Tensor, ...]]]:
    """Record the first pass of a call: that of the text in the fusion, or that of the images without a text.

    A model without fusion records its text encoder, or else its image encoder; one without either nothing. Attention
    weights exist in eager attention only, which is used meanwhile.

    Args:
        model: The model that is called.
        requested: Whether to record hidden states and attentions; for numbers of hidden states, the others are None.

    Yields:
        The records, complete after the call: `hidden_states`, the tokens (B, S, D) before the first layer and after
        each; `attentions`, the weights (B, H, S, S) of each layer's self-attention.
    """
    trunk, implementation = cast(Any, model.base_model), model.config._attn_implementation
    results: dict[str, tuple[Tensor, ...]] = {}
    with ExitStack() as stack:
        calls: list[_Calls | _TextCalls] = []
        if hasattr(trunk, "fusion"):
            trunk.fuses_every_token = True
            stack.callback(setattr, trunk, "fuses_every_token", False)
            for name in trunk.fusion.layers[0]:
                layers = [layer[name] for layer in trunk.fusion.layers]
                calls.append(_Calls(stack, ((layer, layer.self_attention) for layer in layers)))
        else:
            if hasattr(trunk, "text_encoder"):
                calls.append(_TextCalls(stack, trunk.text_encoder, requested))
            if hasattr(trunk, "image_encoder"):
                calls.append(_Calls(stack, ((block, block.attn) for block in trunk.image_encoder.vit.blocks)))
        if requested["attentions"] and implementation != "eager":
            model.set_attn_implementation("eager")
            stack.callback(model.set_attn_implementation, implementation)
        yield results
    records = next((call.results() for call in calls if call.tokens), dict.fromkeys(RECORDED, ()))
    results.update({name: _selected(records[name], requested[name]) for name in RECORDED if requested[name]})


def _selected(values: tuple[Tensor, ...], requested: Any) -> tuple[Tensor, ...]:
    if isinstance(requested, bool):
        return values
    numbers = [requested] if isinstance(requested, int) else requested
    kept = {number % len(values) for number in numbers if -len(values) <= number < len(values)}
    return tuple(value if number in kept else None for number, value in enumerate(values))  # type: ignore[misc]
