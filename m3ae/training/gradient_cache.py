"""Contrast over all micro-batches of an optimiser step, by gradient caching (Gao et al. 2021, arXiv 2101.06983)."""

from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager
from typing import Any

import torch
from torch import nn


def check_contrast(model: nn.Module) -> None:
    """Raise ValueError unless a model contrasts pairs."""
    if getattr(model, "itc_head", None) is None:
        raise ValueError(
            f"training.contrast_over: got step, but the {type(model).__name__} has no contrastive head; expected "
            "micro_batch, or pre-training or retrieval with model.overrides.itc_weight"
        )


def beside_others(
    model: nn.Module, batches: Sequence[dict[str, Any]], autocast: Callable[[], AbstractContextManager[Any]]
) -> Iterator[dict[str, Any]]:
    """Yield the micro-batches of an optimiser step, each with the pairs of the others in the space of contrast.

    A first pass without gradients computes the pairs. The random generators are put back before a micro-batch is
    yielded, so that its pass with gradients draws the same dropout.

    Args:
        model: The model in training, as the engine has it.
        batches: The micro-batches, on the device.
        autocast: Makes the context of a pass.
    """
    states, contrasted = [], []
    for batch in batches:
        states.append(_random_states())
        with torch.no_grad(), autocast():
            contrasted.append(model(**batch, pairs_only=True).contrasted)
    for number, batch in enumerate(batches):
        _set_random_states(*states[number])
        yield batch | {"other_pairs": contrasted[:number] + contrasted[number + 1 :]}


def _random_states() -> tuple[torch.Tensor, torch.Tensor | None]:
    return torch.get_rng_state(), torch.cuda.get_rng_state() if torch.cuda.is_initialized() else None


def _set_random_states(cpu: torch.Tensor, cuda: torch.Tensor | None) -> None:
    torch.set_rng_state(cpu)
    if cuda is not None:
        torch.cuda.set_rng_state(cuda)
