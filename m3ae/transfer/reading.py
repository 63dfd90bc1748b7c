"""Reading the published checkpoint files without running anything that they contain."""

from __future__ import annotations

import json
import re
import struct
import warnings
import zipfile
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from pickle import UnpicklingError
from typing import Any

import torch
from torch import Tensor
from torch.serialization import get_unsafe_globals_in_checkpoint, safe_globals

# What PyTorch's reader and its own unpickler trip over.
_MALFORMED = (
    *(RuntimeError, EOFError, ValueError, KeyError, IndexError, AttributeError, TypeError, AssertionError),
    *(struct.error, UnpicklingError, OverflowError, MemoryError),
)


class CheckpointError(ValueError):
    """A file that is not a released M3AE checkpoint, or not one that can be used."""


@dataclass(frozen=True)
class Released:
    """A released checkpoint.

    Attributes:
        state: Parameters by released name.
        settings: `hyper_parameters`: the published settings under `config`; files written by this package also have
            the whole configuration under `m3ae`.
    """

    state: dict[str, Tensor]
    settings: dict[str, Any]


class _Inert:
    """Stands in for the classes of Lightning's callbacks, which key some of a file's entries; does nothing."""

    def __init__(self, *_: Any, **__: Any) -> None: ...


def read_released(path: str | Path) -> Released:
    """Read a released checkpoint (`m3ae.ckpt`) with `weights_only=True`.

    A `config.json` beside the file that has the sections `roberta` or `vision` adds these to the settings: they state
    the numbers of attention heads, which no weight shows.

    Raises:
        CheckpointError: The file is missing, cut short, asks to run code, or holds something else.
    """
    path = Path(path)
    content = _load(path)
    state = content.get("state_dict", content.get("model", content)) if isinstance(content, Mapping) else {}
    state = {key: value for key, value in state.items() if isinstance(value, Tensor)}
    _check_is_m3ae(path, state)
    settings = content.get("hyper_parameters")
    if not isinstance(settings, Mapping) or not isinstance(settings.get("config"), Mapping):
        raise CheckpointError(
            f"{path} has the weights of an M3AE but no hyper_parameters.config, which says how many attention heads "
            f"they make up; got the entries {some(content)}. Use the whole Lightning file, not its state_dict alone."
        )
    settings = {**settings, **_sections(path.parent / "config.json")}
    _check_encoders(path, state, settings["config"])
    return Released(state, settings)


def _load(path: Path) -> Any:
    if not path.is_file():
        found = "a folder" if path.is_dir() else "missing"
        raise CheckpointError(f"{path} is {found}; expected a file in the released format, like m3ae.ckpt.")
    with path.open("rb") as file:
        is_zip = file.read(2) == b"PK"
    if is_zip and not zipfile.is_zipfile(path):
        raise CheckpointError(f"{path} is cut short or damaged ({path.stat().st_size:,} bytes); fetch it again.")
    foreign = _foreign(path) if is_zip else []
    harmful = [name for name in foreign if not name.startswith(("pytorch_lightning.", "lightning."))]
    if harmful:
        raise CheckpointError(_refusal(path, ", ".join(harmful)))
    try:
        with warnings.catch_warnings(), safe_globals([(_Inert, name) for name in foreign]):
            warnings.simplefilter("ignore")  # about pickle protocols, which the next lines judge
            return torch.load(path, map_location="cpu", weights_only=True, mmap=is_zip)
    except UnpicklingError as error:
        asked = re.search(r"GLOBAL (\S+)", str(error))
        raise CheckpointError(_refusal(path, asked.group(1) if asked else "something that is not a tensor")) from error
    except _MALFORMED as error:
        raise _damaged(path, error) from error


def _sections(path: Path) -> dict[str, Any]:
    """Return the sections `roberta` and `vision` of a JSON file, those of them that are there."""
    if not path.is_file():
        return {}
    try:
        found = json.loads(path.read_text(encoding="utf-8"))
    except (ValueError, RecursionError) as error:
        raise CheckpointError(f"{path} is not valid JSON ({error}); mend it, or take it away.") from error
    sections = {key: found[key] for key in ("roberta", "vision") if key in found} if isinstance(found, dict) else {}
    if wrong := [key for key, section in sections.items() if not isinstance(section, dict)]:
        raise CheckpointError(f"{path}: {wrong[0]} is {sections[wrong[0]]!r:.99}, expected an object of settings.")
    return sections


def _foreign(path: Path) -> list[str]:
    try:
        names: list[str] = get_unsafe_globals_in_checkpoint(path)
    except _MALFORMED as error:
        raise _damaged(path, error) from error
    return names


def _damaged(path: Path, error: Exception) -> CheckpointError:
    reason = (str(error).strip().splitlines() or [type(error).__name__])[0]
    return CheckpointError(f"{path} is not a PyTorch checkpoint, or is damaged ({reason}).")


def _refusal(path: Path, names: str) -> str:
    return (
        f"{path} asks to build {names}, where a checkpoint holds only tensors, numbers and texts. Nothing of it was "
        "run; do not open it by other means unless you trust its source."
    )


def _check_is_m3ae(path: Path, state: Mapping[str, Tensor]) -> None:
    if any(key.startswith("multi_modal_language_layers.") for key in state):
        return
    if any("relative_position_bias_table" in key for key in state):
        what = "the weights of a Swin transformer"
    elif any(re.search(r"(^|\.)encoder\.layer\.\d+\.attention\.self\.", key) for key in state):
        what = "the weights of a BERT-like text encoder"
    else:
        what = "other weights" if state else "no weights"
    raise CheckpointError(
        f"{path} is not an M3AE checkpoint: it holds {what}, with names like {some(state)}; expected names like "
        "multi_modal_language_layers.0.attention.self.query.weight."
    )


def _check_encoders(path: Path, state: Mapping[str, Tensor], config: Mapping[str, Any]) -> None:
    if "vision_encoder.visual.conv1.weight" not in state:
        names = [key for key in state if key.startswith("vision_encoder.")]
        raise CheckpointError(
            f"{path}: the image encoder is {config.get('vit', 'unknown')!r}, with names like {some(names)}; expected "
            "a vision transformer of CLIP (vision_encoder.visual.conv1.weight). Swin encoders are not supported."
        )
    types = state.get("language_encoder.embeddings.token_type_embeddings.weight")
    tokenizer, count = str(config.get("tokenizer", "roberta")), 0 if types is None else len(types)
    if count != (1 if "roberta" in tokenizer.lower() else 2):
        raise CheckpointError(
            f"{path}: the text encoder is neither a RoBERTa nor a BERT: its tokenizer is {tokenizer!r} and it has "
            f"{count} token types; expected 1 with a RoBERTa tokenizer and 2 with another."
        )


def some(names: Iterable[Any]) -> str:
    """Join the first three of some names."""
    shown = [str(name) for name in names]
    return ", ".join(shown[:3]) + (", …" if len(shown) > 3 else "") if shown else "none"
