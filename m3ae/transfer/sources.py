"""What starting from a published encoder of images and from one of texts have in common."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

from safetensors import SafetensorError
from torch import nn
from transformers import PreTrainedConfig
from transformers.utils import logging

from m3ae.models.modeling import M3AEEncoders, M3AEPreTrainedModel
from m3ae.transfer.checkpoints import first_line, some

Normalization = tuple[list[float], list[float]]  # mean and standard deviation of each channel


@dataclass(frozen=True)
class InitReport:
    """What was copied into an encoder, and what was not.

    Attributes:
        encoder: `image encoder` or `text encoder`.
        source: Where the parameters come from.
        copied: Names of the encoder's parameters that were copied.
        missing: Names of those that the source lacks; they keep their initial values.
        unexpected: Names of the source's parameters that were left out.
        remarks: What else a user should know.
        normalization: Mean and standard deviation that the source's images were normalised with, if it says so.
    """

    encoder: str
    source: str
    copied: list[str]
    missing: list[str]
    unexpected: list[str]
    remarks: list[str] = field(default_factory=list)
    normalization: Normalization | None = None

    def __str__(self) -> str:
        lines = [f"{self.encoder}: {len(self.copied)} parameters copied from {self.source}"]
        if self.missing:
            lines.append(f"  not there, left as initialised: {', '.join(self.missing)}")
        if self.unexpected:
            groups: dict[str, list[str]] = {}
            for name in self.unexpected:
                groups.setdefault(name.partition(".")[0], []).append(name)
            shown = (names[0] if len(names) == 1 else f"{group} ({len(names)})" for group, names in groups.items())
            lines.append(f"  left out: {', '.join(shown)}")
        return "\n".join([*lines, *(f"  {remark}" for remark in self.remarks)])


def read_config(source: str, expected: str) -> dict[str, Any]:
    """Read the `config.json` of a folder or a model of the hub.

    Raises:
        ValueError: There is none; `expected` says what a source may be.
    """
    try:
        config: dict[str, Any] = PreTrainedConfig.get_config_dict(source)[0]
    except (OSError, ValueError) as error:
        raise ValueError(f"No config.json in {source!r} ({first_line(error)}); expected {expected}.") from error
    if not config:
        raise ValueError(f"No config.json in {source!r}; expected {expected}.")
    return config


def load_published(source: str, model_class: Any, **options: Any) -> tuple[Any, list[str]]:
    """Load a model of transformers, and the names of the saved parameters that the class does not take.

    Raises:
        ValueError: The model cannot be loaded, or lacks parameters.
    """
    try:
        with _quiet():
            model, info = model_class.from_pretrained(source, output_loading_info=True, **options)
    except (OSError, RuntimeError, ValueError, TypeError, SafetensorError) as error:
        raise ValueError(f"transformers cannot load {source!r}: {first_line(error)}") from error
    if missing := sorted(info["missing_keys"]):
        raise ValueError(
            f"{source!r} is incomplete: it lacks {len(missing)} parameters of a {model_class.__name__} "
            f"({some(missing)}). Fetch or save it again."
        )
    return model, sorted(info["unexpected_keys"])


@contextmanager
def _quiet() -> Iterator[None]:
    """Keep transformers from printing the table of parameters that our own report sums up."""
    level = logging.get_verbosity()
    logging.set_verbosity_error()
    try:
        yield
    finally:
        logging.set_verbosity(level)


def trunk_of(model: M3AEPreTrainedModel) -> M3AEEncoders:
    """Return the trunk of a model."""
    trunk = model.base_model
    assert isinstance(trunk, M3AEEncoders)
    return trunk


def require_encoder(model: M3AEPreTrainedModel, name: str, kind: str) -> nn.Module:
    """Return an encoder of a model; raise ValueError if the model was built without it."""
    if not hasattr(trunk_of(model), name):
        raise ValueError(
            f"init.{name}: no modality of this model has the encoder {kind!r}, so there is nothing to copy it into; "
            "leave it out, or give a modality that encoder."
        )
    return trunk_of(model).get_submodule(name)


def require_none(
    what: str, source: str, config: Any, different: Mapping[str, Any], section: str, hint: str = ""
) -> None:
    """Raise ValueError if a source's options, name → value, differ from those of our configuration."""
    if not different:
        return
    pairs = "; ".join(f"{name} is {value} there and {getattr(config, name)} here" for name, value in different.items())
    options = ", ".join(f"{name}: {value}" for name, value in different.items())
    raise ValueError(
        f"The {what} in {source!r} is not the one that {section} describes: {pairs}. Start from another, or build the "
        f"model with {section}: {{{options}}}.{hint}"
    )
