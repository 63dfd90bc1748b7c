"""Optimiser groups and the learning-rate schedule."""

import math
from itertools import accumulate
from typing import Any

import torch
from torch import nn

from m3ae.training.sections import OptimizerConfig

GROUPS = ("encoder", "fusion", "heads")  # of the package's models; a model may lack some, or have them frozen


def build_optimizer(model: nn.Module, settings: OptimizerConfig) -> torch.optim.AdamW:
    """Return the optimiser of a run; ValueError for a multiplier of a group that no model has."""
    return torch.optim.AdamW(parameter_groups(model, settings), betas=settings.betas, eps=settings.eps, fused=True)


def parameter_groups(model: nn.Module, settings: OptimizerConfig) -> list[dict[str, Any]]:
    """Split the trainable parameters by the model's grouping and by whether they decay.

    The model names the group of a parameter in `model.parameter_group(name)`; without that method all are "encoder".
    The split does not depend on the multipliers, so that a checkpoint loads after they change.

    Args:
        model: The model.
        settings: Learning rate and its multipliers by group, where that of `heads` is that of `heads.decoders.text`,
            too, unless a more specific name has one; decay of weight matrices, while norms, biases and single vectors
            such as a class token get none.

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
    multipliers = settings.lr_multipliers
    known = {prefix for name, _ in groups for prefix in _prefixes(name)}.union(GROUPS)
    if unknown := sorted(set(multipliers) - known):
        raise ValueError(f"optimizer.lr_multipliers: got groups {unknown}, expected some of {sorted(known)}")
    return [
        {
            "params": parameters,
            "lr": settings.lr * next((multipliers[key] for key in _prefixes(name) if key in multipliers), 1.0),
            "weight_decay": settings.weight_decay if decays else 0.0,
            "name": name if decays else f"{name} without decay",
        }
        for (name, decays), parameters in sorted(groups.items(), key=lambda item: item[0])
    ]


def learning_rate_factor(settings: OptimizerConfig, step: int, max_steps: int) -> float:
    """Return the factor on the learning rate of optimiser step `step`, counted from 0.

    Warm-up: (step + 1) / w, so that the first step already learns, in w = `warmup` steps, or below 1 that fraction of
    `max_steps`. After it, with p = (step - w) / (max_steps - w): linear 1 - p, cosine (1 + cos πp) / 2, constant 1.
    """
    warmup = round(settings.warmup * max_steps if settings.warmup < 1 else settings.warmup)
    if step < warmup:
        return (step + 1) / warmup
    progress = min((step - warmup) / max(max_steps - warmup, 1), 1.0)
    schedules = {"linear": 1 - progress, "cosine": (1 + math.cos(math.pi * progress)) / 2, "constant": 1.0}
    return schedules[settings.schedule]


def _prefixes(group: str) -> list[str]:
    """Return a group and the groups that it belongs to, the most specific first: `a.b.c`, `a.b`, `a`."""
    return list(accumulate(group.split("."), "{}.{}".format))[::-1]


def _is_vector(parameter: nn.Parameter) -> bool:
    # A (1, D) matrix is the weight of a layer with one output, and decays; a (1, 1, D) token is a vector.
    return parameter.ndim != 2 and parameter.numel() == max(parameter.shape, default=1)
