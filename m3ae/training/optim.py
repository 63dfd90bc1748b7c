"""Optimiser groups and the learning-rate schedule."""

import math
from collections.abc import Mapping
from itertools import accumulate
from typing import Any, Literal

import torch
from torch import nn

from m3ae.training.sections import OptimizerConfig

GROUPS = ("encoder", "fusion", "heads")  # of the package's models, of which one may lack some, or have them frozen


def build_optimizer(model: nn.Module, settings: OptimizerConfig) -> torch.optim.AdamW:
    """Return the optimiser of a run.

    Raises:
        ValueError: A multiplier names a group that no model has.
    """
    groups = parameter_groups(
        model, lr=settings.lr, weight_decay=settings.weight_decay, lr_multipliers=settings.lr_multipliers
    )
    return torch.optim.AdamW(groups, betas=settings.betas, eps=settings.eps, fused=True)


def parameter_groups(
    model: nn.Module, *, lr: float, weight_decay: float, lr_multipliers: Mapping[str, float]
) -> list[dict[str, Any]]:
    """Split the trainable parameters by the model's own grouping and by whether they decay.

    The model names the group of a parameter in `model.parameter_group(name)`; without that method all are "encoder".
    The split does not depend on the multipliers, so that a checkpoint loads after they change.

    Args:
        model: The model.
        lr: Learning rate of a group without a multiplier.
        weight_decay: Decay of weight matrices; norms, biases and single vectors such as a class token get none.
        lr_multipliers: Factor on `lr` by group name. That of `heads` is that of `heads.decoders.text`, too, unless one
            of a more specific name is given.

    Returns:
        Groups for a `torch.optim` optimiser, each with `params`, `lr`, `weight_decay` and `name`.

    Raises:
        ValueError: A multiplier names a group that is neither one of the model nor one of `GROUPS`.
    """
    group_of = getattr(model, "parameter_group", lambda name: "encoder")
    groups: dict[tuple[str, bool], list[nn.Parameter]] = {}
    for name, parameter in model.named_parameters():
        if parameter.requires_grad:
            groups.setdefault((group_of(name), not _is_vector(parameter)), []).append(parameter)
    known = {part for name, _ in groups for part in _with_wholes(name)}.union(GROUPS)
    if unknown := sorted(set(lr_multipliers) - known):
        raise ValueError(f"optimizer.lr_multipliers: got groups {unknown}, expected some of {sorted(known)}")
    return [
        {
            "params": parameters,
            "lr": lr * next((lr_multipliers[part] for part in _with_wholes(name) if part in lr_multipliers), 1.0),
            "weight_decay": weight_decay if decays else 0.0,
            "name": name if decays else f"{name} without decay",
        }
        for (name, decays), parameters in sorted(groups.items(), key=lambda item: item[0])
    ]


def learning_rate_factor(
    step: int, *, max_steps: int, warmup_steps: int, schedule: Literal["linear", "cosine", "constant"]
) -> float:
    """Return the factor on the learning rate of optimiser step `step`, counted from 0.

    Warm-up: (step + 1) / warmup_steps, so that the first step already learns. After it, with
    p = (step - warmup_steps) / (max_steps - warmup_steps): linear 1 - p, cosine (1 + cos πp) / 2, constant 1.
    """
    if step < warmup_steps:
        return (step + 1) / warmup_steps
    progress = min((step - warmup_steps) / max(max_steps - warmup_steps, 1), 1.0)
    return {"linear": 1 - progress, "cosine": (1 + math.cos(math.pi * progress)) / 2, "constant": 1.0}[schedule]


def warmup_steps(warmup: float, max_steps: int) -> int:
    """Return the steps of warm-up: `warmup` itself, or below 1 that fraction of `max_steps`."""
    return round(warmup * max_steps if warmup < 1 else warmup)


def _with_wholes(group: str) -> list[str]:
    """Return a group and what it is a part of, the most specific first: `a.b.c`, `a.b`, `a`."""
    return list(accumulate(group.split("."), "{}.{}".format))[::-1]


def _is_vector(parameter: nn.Parameter) -> bool:
    # A (1, D) matrix is the weight of a layer with one output, and decays; a (1, 1, D) token is a vector.
    return parameter.ndim != 2 and parameter.numel() == max(parameter.shape, default=1)
