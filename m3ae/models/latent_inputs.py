"""What the latent head is given: tensors of some modalities by name, checked.

Shapes: B batch.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import NamedTuple

import torch
from torch import Tensor

from m3ae.models.latent_configuration import ModalityConfig
from m3ae.models.option_checks import TRANSFORMERS_ARGUMENTS, nearest_keys

TENSOR_NAMES = {
    "image": "pixel_values",
    "text": "input_ids",
    "vector": "values",
    "sequence": "values",
    "label": "labels",
    "labels": "values",
}  # kind → what a batch of m3ae.data.multimodal calls its values

Modalities = Mapping[str, Mapping[str, Tensor]]


class LatentInputs(NamedTuple):
    """Tensors of the given modalities, finite, and which samples (B,) have them."""

    targets: dict[str, dict[str, Tensor]]
    present: dict[str, Tensor]


def read_inputs(modalities: Modalities, known: Mapping[str, ModalityConfig]) -> LatentInputs:
    """Check the given modalities; absent rows become zeros.

    Raises:
        ValueError: A modality or a tensor is unknown, a modality lacks its tensor, or none is given.
    """
    check_names(modalities, known)
    if not modalities:
        raise ValueError(f"No modality given; expected some of {', '.join(known)}.")
    targets, presence = {}, {}
    for name, tensors in modalities.items():
        kind = known[name].kind
        if TENSOR_NAMES[kind] not in tensors:
            raise ValueError(f"Modality {name!r} of kind {kind} needs {TENSOR_NAMES[kind]}; got {list(tensors)}.")
        own = (TENSOR_NAMES[kind], "present", *(["attention_mask"] if kind == "text" else []))
        if unknown := [key for key in tensors if key not in own and key not in TRANSFORMERS_ARGUMENTS]:
            nearest = nearest_keys(unknown[0], own)
            raise ValueError(f"Modality {name!r} of kind {kind} has no tensor {unknown[0]!r}.{nearest}")
        values = tensors[TENSOR_NAMES[kind]]
        there = tensors.get("present")
        present = torch.ones(len(values), dtype=torch.bool, device=values.device) if there is None else there
        rows = present.reshape(-1, *[1] * (values.dim() - 1))
        if kind == "text":
            mask = tensors.get("attention_mask")
            targets[name] = {
                "input_ids": values,
                "attention_mask": torch.ones_like(values) if mask is None else mask,
            }
        else:
            targets[name] = {TENSOR_NAMES[kind]: torch.where(rows, values, 0)}
        presence[name] = present
    return LatentInputs(targets, presence)


def check_names(names: Iterable[str], known: Iterable[str]) -> None:
    """Raise ValueError if one of the names is not that of a modality."""
    if unknown := [name for name in names if name not in known]:
        raise ValueError(f"The model has no modality {', '.join(map(repr, unknown))}; it has {', '.join(known)}.")


def only(modalities: Modalities, names: Iterable[str] | None) -> Modalities:
    """Return the modalities with these names, all if None."""
    return modalities if names is None else {name: modalities[name] for name in names}
