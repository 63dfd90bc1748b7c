"""Checks of options that several configurations share; each raises ValueError with what, got, expected."""

from __future__ import annotations

import difflib
from collections.abc import Collection, Iterable
from typing import Any

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


def check_keys(
    owner: str, known: Collection[str], given: Iterable[str], accepted: Collection[str] = TRANSFORMERS_KEYS
) -> None:
    """Raise on keywords that nothing would read: a misspelt option must not train for ten hours."""
    for key in given:
        if key in known or key in accepted or key.startswith("_"):
            continue
        nearest = difflib.get_close_matches(key, sorted(known), n=3)
        hint = f" Did you mean {', '.join(nearest)}?" if nearest else ""
        raise ValueError(f"{owner} has no option {key!r}.{hint}")


def check_heads(name: str, hidden_size: int, num_heads: int) -> None:
    """Raise unless the heads share the width evenly."""
    if num_heads < 1 or hidden_size % num_heads:
        raise ValueError(
            f"{name}: the width {hidden_size} must be a multiple of the number of attention heads, got {num_heads}."
        )


def check_width(name: str, width: int) -> None:
    """Raise if there are no two-dimensional sine-cosine positions of this width."""
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
