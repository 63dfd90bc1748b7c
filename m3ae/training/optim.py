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
            too, unless a more specific name has one; its decay with the layers above a parameter; decay of weight
            matrices, while norms, biases and single vectors such as a class token get none.

    Returns:
        Groups for a `torch.optim` optimiser, each with `params`, `lr`, `weight_decay` and `name`.

    Raises:
        ValueError: A multiplier names a group that is neither one of the model nor one of `GROUPS`; or the rate is to
            decay with depth, and no layer of encoders or fusion is trained.
    """
    group_of = getattr(model, "parameter_group", lambda name: "encoder")
    above = {} if settings.layer_decay == 1 else layers_above(model)
    groups: dict[tuple[str, bool, int], list[nn.Parameter]] = {}
    for name, parameter in model.named_parameters():
        if parameter.requires_grad:
            key = (group_of(name), not _is_vector(parameter), above.get(parameter, 0))
            groups.setdefault(key, []).append(parameter)
    if settings.layer_decay != 1 and not any(number for *_, number in groups):
        raise ValueError(
            f"optimizer.layer_decay: got {settings.layer_decay:g}, but no layer of encoders or fusion is trained; "
            "expected 1"
        )
    multipliers = settings.lr_multipliers
    known = {prefix for name, *_ in groups for prefix in _prefixes(name)}.union(GROUPS)
    if unknown := sorted(set(multipliers) - known):
        raise ValueError(f"optimizer.lr_multipliers: got groups {unknown}, expected some of {sorted(known)}")
    return [
        {
            "params": parameters,
            "lr": settings.lr
            * next((multipliers[key] for key in _prefixes(name) if key in multipliers), 1.0)
            * settings.layer_decay**number,
            "weight_decay": settings.weight_decay if decays else 0.0,
            "name": name + (f", {number} layers deep" if number else "") + ("" if decays else " without decay"),
        }
        for (name, decays, number), parameters in sorted(groups.items(), key=lambda item: item[0])
    ]


def layers_above(model: nn.Module) -> dict[nn.Parameter, int]:
    """Return how many layers stand between the parameters of a model's trunk and its heads, by the count of BEiT.

    The last fusion layer is 1 deep, the first of F is F deep, as are the projections that lead to it. A layer of an
    encoder adds its own count, and the embeddings come one below the first layer. Poolers and heads are not listed.
    """
    trunk: Any = getattr(model, "base_model", model)
    above: dict[nn.Parameter, int] = {}
    depth = 0
    if hasattr(trunk, "fusion"):
        above = _count_from_top(trunk.fusion)
        depth = max(above.values(), default=0)
    for name, module in trunk.named_children():
        if name in ("image_encoder", "text_encoder"):
            above |= {parameter: depth + number for parameter, number in _count_from_top(module).items()}
        elif name in ("projections", "modality_types", "view_types"):
            above |= dict.fromkeys(module.parameters(), depth)
    return above


def _count_from_top(stack: nn.Module) -> dict[nn.Parameter, int]:
    """Return N − i for layer i of N, counted from 0, N + 1 for what leads to the first layer, and 0 for what follows.

    The layers are the list that has the most parameters, whatever a library calls it.
    """
    lists = [module for module in stack.modules() if isinstance(module, nn.ModuleList)] or [nn.ModuleList()]
    layers = max(lists, key=lambda layers: sum(parameter.numel() for parameter in layers.parameters()))
    inside = {parameter: number for number, layer in enumerate(layers) for parameter in layer.parameters()}
    tables = {table.weight for table in stack.modules() if isinstance(table, nn.Embedding)}
    counts: dict[nn.Parameter, int] = {}
    for parameter in stack.parameters():
        if parameter in inside:
            counts[parameter] = len(layers) - inside[parameter]
        else:
            leads = parameter in tables or inside.keys().isdisjoint(counts)
            counts[parameter] = len(layers) + 1 if leads else 0
    return counts


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
