"""Strict configurations, checks of options and of keywords; each error says what, got, expected."""

from __future__ import annotations

import difflib
import inspect
from collections.abc import Callable, Collection, Iterable, Mapping
from contextvars import ContextVar
from dataclasses import fields
from functools import wraps
from typing import Any, ParamSpec, Self, TypeVar

from transformers import PreTrainedConfig

from m3ae.models.attention import RECORDED, recording

Arguments = ParamSpec("Arguments")
Output = TypeVar("Output")

# Accepted by `PreTrainedConfig` as keywords although they are not fields of it.
TRANSFORMERS_KEYS = frozenset(
    {
        "architectures",
        "attn_implementation",
        "experts_implementation",
        "model_type",
        "name_or_path",
        "num_labels",
        "output_attentions",
        "torch_dtype",
        "transformers_version",
    }
)

# Passed to the `forward` of any model by the programs of Hugging Face (Trainer, PEFT, tokenizers of other models).
TRANSFORMERS_ARGUMENTS = frozenset(
    {
        "num_items_in_batch",
        "return_loss",
        "token_type_ids",
        "use_cache",
    }
)


def checked_arguments(forward: Callable[Arguments, Output]) -> Callable[Arguments, Output]:
    """Make a model's `forward` take keywords as transformers' models do, and refuse those that it does not know.

    `output_hidden_states` and `output_attentions`, or the configuration's options of these names, add what
    `m3ae.models.attention.recording` records; `return_dict=False` turns the output into a tuple. Keywords of
    `TRANSFORMERS_ARGUMENTS` that `forward` does not take are dropped, and so are keywords that are None.

    Raises:
        TypeError: A keyword is unknown.
    """
    known = frozenset(inspect.signature(forward).parameters)

    @wraps(forward)
    def checked(*args: Arguments.args, **kwargs: Arguments.kwargs) -> Output:
        model: Any = args[0]
        as_dict = _option(model, kwargs, "return_dict")
        requested = {name: _option(model, kwargs, f"output_{name}") for name in RECORDED}
        for name in [name for name in kwargs if name not in known]:
            if kwargs.pop(name) is not None and name not in TRANSFORMERS_ARGUMENTS:
                raise TypeError(f"{type(model).__name__}.forward has no argument {name!r}.{nearest_keys(name, known)}")
        output: Any
        if any(requested.values()):
            with recording(model, requested) as recorded:
                output = forward(*args, **kwargs)
            for name, values in recorded.items():
                output[name] = values
        else:
            output = forward(*args, **kwargs)
        return output if as_dict else output.to_tuple()  # type: ignore[no-any-return]

    return checked


def _option(model: Any, keywords: dict[str, Any], name: str) -> Any:
    """Take an option of a call from its keywords, or else from the model's configuration."""
    value = keywords.pop(name, None)
    return getattr(model.config, name) if value is None else value


def without_labels(forward: Callable[Arguments, Output]) -> Callable[Arguments, Output]:
    """Hide the labels that a `forward` takes from Trainer, which would wait for labels to compute a loss."""
    signature = inspect.signature(forward)
    parameters = [parameter for name, parameter in signature.parameters.items() if "labels" not in name]
    forward.__signature__ = signature.replace(parameters=parameters)  # type: ignore[attr-defined]
    return forward


def nearest_keys(key: str, known: Collection[str]) -> str:
    """Return a sentence that names the known keys most like `key`, or nothing if none is like it."""
    nearest = difflib.get_close_matches(key, sorted(known), n=3)
    return f" Did you mean {', '.join(nearest)}?" if nearest else ""


def check_keys(
    owner: str, known: Collection[str], keys: Iterable[str], accepted: Collection[str] = TRANSFORMERS_KEYS
) -> None:
    """Raise on keywords that nothing would read: a misspelt option must not train for ten hours."""
    for key in keys:
        if key in known or key in accepted or key.startswith("_"):
            continue
        raise ValueError(f"{owner} has no option {key!r}.{nearest_keys(key, known)}")


def reads_file() -> bool:
    """Return whether a saved configuration is being read, which other programs may have written into."""
    return _reads_file.get()


_reads_file: ContextVar[bool] = ContextVar("_reads_file", default=False)


class StrictConfig(PreTrainedConfig):
    """A configuration that refuses unknown keywords with a ValueError, but keeps those of a saved configuration.

    Trainer, quantisation and newer versions of transformers add keys to `config.json`.
    """

    def __post_init__(self, **kwargs: Any) -> None:
        if not reads_file():
            self.check_options(kwargs)
        super().__post_init__(**kwargs)

    @classmethod
    def check_options(cls, options: Mapping[str, Any]) -> None:
        """Raise ValueError on unknown options, those of sub-configurations included."""
        check_keys(cls.__name__, [field.name for field in fields(cls)], options)
        for name, kind in cls.sub_configs.items():
            if isinstance(options.get(name), Mapping) and isinstance(kind, type) and issubclass(kind, StrictConfig):
                kind.check_options(options[name])

    @classmethod
    def from_dict(cls, config_dict: dict[str, Any], **kwargs: Any) -> Self:
        """Build a configuration from what a file holds; `kwargs` replace some of its options."""
        cls.check_options({name: value for name, value in kwargs.items() if name in cls.sub_configs})
        token = _reads_file.set(True)
        try:
            config: Self = super().from_dict(config_dict, **kwargs)
        finally:
            _reads_file.reset(token)
        return config


def check_heads(name: str, hidden_size: int, num_heads: int) -> None:
    """Raise unless the heads share the width evenly."""
    if num_heads < 1 or hidden_size % num_heads:
        raise ValueError(
            f"{name}: the width {hidden_size} must be a multiple of the number of attention heads, got {num_heads}."
        )


def check_width(name: str, width: int) -> None:
    """Raise unless two-dimensional sine-cosine positions have this width."""
    if width % 4:
        raise ValueError(f"{name} must be a multiple of 4 for sine-cosine positions, got {width}.")


def check_fraction(name: str, value: float, low: float, high: float) -> None:
    """Raise if the value is outside its range."""
    if not low <= value <= high:
        raise ValueError(f"{name} must lie between {low:g} and {high:g}, got {value:g}.")


def check_choice(name: str, value: Any, choices: Collection[Any]) -> None:
    """Raise if the value is none of the choices."""
    if value not in choices:
        raise ValueError(f"{name} is {value!r}; expected one of {', '.join(map(repr, choices))}.")


def check_count(name: str, value: Any, least: int) -> None:
    """Raise unless the value is an integer of at least `least`."""
    if not isinstance(value, int) or isinstance(value, bool) or value < least:
        raise ValueError(f"{name} must be an integer of at least {least}, got {value!r}.")


def check_number(name: str, value: Any, *, positive: bool = False) -> None:
    """Raise unless the value is a number that is not negative, or is positive."""
    if not isinstance(value, int | float) or isinstance(value, bool) or value < 0 or (positive and value == 0):
        raise ValueError(f"{name} must be a {'positive' if positive else 'non-negative'} number, got {value!r}.")


def register_entry(table: dict[str, Any], what: str, name: str, value: Any) -> None:
    """Add a user's entry to a table, or the same entry again; raise ValueError if another one has this name."""
    present = table.get(name)
    same = (getattr(present, "__module__", None), getattr(present, "__qualname__", None))
    if present is not None and same != (value.__module__, value.__qualname__):
        raise ValueError(f"the {what} {name!r} is registered already; choose another name")
    table[name] = value
