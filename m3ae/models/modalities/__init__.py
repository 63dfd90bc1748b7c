"""The kinds of modalities, by name, and what a batch of modalities is.

A user's kind is a subclass of `Modality` that `register_modality` names; further encoders, decoders and likelihoods
join a kind's table. A saved model that has them loads once the file that registers them is imported.

Shapes: B batch.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from dataclasses import MISSING, fields
from typing import Any, NamedTuple, TypeVar, cast

import torch
from torch import Tensor

from m3ae.models.configuration import M3AEConfig
from m3ae.models.latent_configuration import LatentConfig
from m3ae.models.modalities.arrays import Sequence, Vector
from m3ae.models.modalities.base import Modality
from m3ae.models.modalities.image import Image
from m3ae.models.modalities.labels import Label, Labels
from m3ae.models.modalities.options import BatchOptions, ModalityConfig
from m3ae.models.modalities.slices import Scene, Slices
from m3ae.models.modalities.text import Text
from m3ae.models.modalities.volume import Volume
from m3ae.models.option_checks import TRANSFORMERS_ARGUMENTS, check_choice, nearest_keys, register_entry

__all__ = [
    "KINDS",
    "BatchOptions",
    "Image",
    "Label",
    "Labels",
    "LatentInputs",
    "Modalities",
    "Modality",
    "ModalityConfig",
    "Scene",
    "Sequence",
    "Slices",
    "Text",
    "Vector",
    "Volume",
    "build_modalities",
    "check_names",
    "configure",
    "only",
    "read_inputs",
    "register_decoder",
    "register_encoder",
    "register_likelihood",
    "register_modality",
    "trunk_modalities",
]

KINDS: dict[str, type[Modality]] = {
    "image": Image,
    "text": Text,
    "vector": Vector,
    "sequence": Sequence,
    "volume": Volume,
    "slices": Slices,
    "label": Label,
    "labels": Labels,
}

Modalities = Mapping[str, Mapping[str, Tensor]]
Registered = TypeVar("Registered", bound=Callable[..., Any])


def register_modality(kind: type[Modality]) -> type[Modality]:
    """Add a kind of modality, a subclass of `Modality` with a name in `kind`; usable as a decorator.

    Raises:
        ValueError: Another class has this name.
    """
    register_entry(KINDS, "kind", kind.kind, kind)
    return kind


def register_encoder(kind: str, name: str) -> Callable[[Registered], Registered]:
    """Return a decorator that adds an encoder to a kind: modality → module from (B, *shape) to (B, hidden_size).

    Raises:
        ValueError: The kind is unknown, or has another encoder of this name.
    """
    return _decorator("encoders", kind, name)


def register_decoder(kind: str, name: str) -> Callable[[Registered], Registered]:
    """Return a decorator that adds a decoder to a kind: (modality, input size Z) → module from (R, Z) to (R, *shape).

    Raises:
        ValueError: The kind is unknown, or has another decoder of this name.
    """
    return _decorator("decoders", kind, name)


def register_likelihood(kind: str, name: str) -> Callable[[Registered], Registered]:
    """Return a decorator that adds a likelihood to a kind: `ModalityConfig` → `m3ae.Likelihood`.

    Raises:
        ValueError: The kind is unknown, or has another likelihood of this name.
    """
    return _decorator("likelihoods", kind, name)


def _decorator(table: str, kind: str, name: str) -> Callable[[Registered], Registered]:
    check_choice("kind", kind, KINDS)

    def register(build: Registered) -> Registered:
        if table not in vars(KINDS[kind]):  # an inherited table, which other kinds share
            setattr(KINDS[kind], table, dict(getattr(KINDS[kind], table)))
        register_entry(getattr(KINDS[kind], table), f"{table[:-1]} of the kind {kind}", name, build)
        return build

    return register


def configure(name: str, options: Mapping[str, Any]) -> ModalityConfig:
    """Fill in the defaults and check the options of the modality called `name`.

    An option of other kinds at its default is left out: earlier versions saved the options of all kinds.

    Raises:
        ValueError: An option is unknown, missing, out of range, or does not go with the kind.
    """
    owner, kind = f"latent.modalities.{name}", options.get("kind")
    if kind not in KINDS:
        known = ", ".join(map(repr, KINDS))
        raise ValueError(
            f"{owner}.kind is {kind!r}; expected one of {known}. Import the file that registers your kind."
        )
    options_of_kind = {field.name for field in fields(KINDS[kind].config_class)}
    every_option = [field for other in KINDS.values() for field in fields(other.config_class)]
    defaults = {field.name: field.default for field in every_option if field.default is not MISSING}
    kept = {
        option: value
        for option, value in options.items()
        if option in options_of_kind or option not in defaults or value != defaults[option]
    }
    return KINDS[kind].configure(owner, kept)


def build_modalities(model: M3AEConfig) -> dict[str, Modality]:
    """Return the modalities of a model's latent head, by name and in order."""
    return {
        name: KINDS[config.kind](name, config, model)
        for name, config in cast(LatentConfig, model.latent).typed_modalities.items()
    }


def trunk_modalities(model: M3AEConfig, views: Iterable[str] = ()) -> dict[str, Modality]:
    """Return what the trunk reads, by name: its views, or one `image` without views, and the `text`."""
    images = {name: Image(name, configure(name, {"kind": "image"}), model) for name in views or ["image"]}
    return {**images, "text": Text("text", configure("text", {"kind": "text"}), model)}


class LatentInputs(NamedTuple):
    """The tensors of the modalities in a batch, finite, and which samples (B,) have them."""

    targets: dict[str, dict[str, Tensor]]
    present: dict[str, Tensor]


def read_inputs(modalities: Modalities, known: Mapping[str, Modality]) -> LatentInputs:
    """Check the modalities of a batch and their tensors, or raise ValueError; absent rows become zeros."""
    check_names(modalities, known)
    if not modalities:
        raise ValueError(f"No modality given; expected some of {', '.join(known)}.")
    targets, presence = {}, {}
    for name, tensors in modalities.items():
        modality, present = known[name], tensors.get("present")
        if modality.tensor not in tensors:
            raise ValueError(
                f"Modality {name!r} of kind {modality.kind} needs {modality.tensor}; got {list(tensors)}."
            )
        tensor_names = (modality.tensor, "present", *modality.further_tensors)
        if unknown := [key for key in tensors if key not in tensor_names and key not in TRANSFORMERS_ARGUMENTS]:
            nearest = nearest_keys(unknown[0], tensor_names)
            raise ValueError(f"Modality {name!r} of kind {modality.kind} has no tensor {unknown[0]!r}.{nearest}")
        values = tensors[modality.tensor]
        if present is None:
            present = torch.ones(values.shape[0], dtype=torch.bool, device=values.device)
        targets[name], presence[name] = modality.targets(tensors, present), present
    return LatentInputs(targets, presence)


def check_names(names: Iterable[str], known: Iterable[str]) -> None:
    """Raise ValueError unless every name is that of a modality."""
    if unknown := [name for name in names if name not in known]:
        raise ValueError(f"The model has no modality {', '.join(map(repr, unknown))}; it has {', '.join(known)}.")


def only(modalities: Modalities, names: Iterable[str] | None) -> Modalities:
    """Return the modalities with these names, or all if None."""
    return modalities if names is None else {name: modalities[name] for name in names}
