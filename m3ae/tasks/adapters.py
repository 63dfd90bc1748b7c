"""Fine-tuning with few trainable weights: low-rank adapters of peft on the linear layers of the trunk.

A layer's weight becomes W + (alpha / rank)·B·A, of which A (rank, in) and B (out, rank) learn (Hu et al. 2022, LoRA);
B starts at zero. Checkpoints hold the adapters, saved models the sums: they load without peft.
"""

from __future__ import annotations

from importlib.util import find_spec
from typing import Any

from torch import Tensor, nn

from m3ae.models.modeling import TRUNK, M3AEPreTrainedModel
from m3ae.training.config import LoraConfig


def add_adapters(model: M3AEPreTrainedModel, settings: LoraConfig) -> None:
    """Put adapters on every linear layer of encoders and fusion; only they and the head learn from now on.

    Raises:
        ValueError: peft is not installed.
    """
    if find_spec("peft") is None:
        raise ValueError("finetuning.lora: needs peft, which is not installed; pip install 'm3ae[lora]'")
    import peft

    layers = [name for name, layer in model.named_modules() if isinstance(layer, nn.Linear)]
    trunk = [name for name in layers if model.parameter_group(name) in TRUNK]
    peft.inject_adapter_in_model(
        peft.LoraConfig(
            r=settings.rank, lora_alpha=settings.alpha, lora_dropout=settings.dropout, target_modules=trunk
        ),
        model,
    )
    for name, parameter in model.named_parameters():
        if model.parameter_group(name) not in TRUNK:
            parameter.requires_grad_(True)


def merged_weights(model: nn.Module) -> dict[str, Tensor]:
    """Return the weights of a model with its adapters added, under the names that they have without adapters."""
    weights = {
        name.replace(".base_layer.", "."): weight
        for name, weight in model.state_dict().items()
        if ".lora_" not in name
    }
    for name, layer in _adapted(model).items():
        weights[f"{name}.weight"] = weights[f"{name}.weight"] + layer.get_delta_weight("default")
    return weights


def merge_adapters(model: nn.Module) -> None:
    """Add the adapters of a model to its weights and take them out of it."""
    weights = merged_weights(model)
    for name, layer in _adapted(model).items():
        model.set_submodule(name, layer.base_layer)
    model.load_state_dict(weights)


def _adapted(model: nn.Module) -> dict[str, Any]:
    return {name: layer for name, layer in model.named_modules() if hasattr(layer, "get_delta_weight")}
