"""Files of tensors that others have saved, read without running anything that they contain.

`torch.load(weights_only=True)` reads what `torch.save` has written. It refuses TorchScript archives, such as OpenAI's
CLIP files, and `torch.jit.load` may run what they define. Their pickle of parameters needs four kinds of names only,
and everything else is refused here.
"""

from __future__ import annotations

import io
import itertools
import math
import pickle
import re
import struct
import warnings
import zipfile
import zlib
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor
from torch.serialization import get_unsafe_globals_in_checkpoint, safe_globals

# What PyTorch's reader and its own unpickler trip over.
_MALFORMED = (
    *(RuntimeError, EOFError, ValueError, KeyError, IndexError, AttributeError, TypeError, AssertionError),
    *(struct.error, pickle.UnpicklingError, OverflowError, MemoryError, zipfile.BadZipFile),
    *(OSError, zlib.error),
)
_STORAGES = {
    "DoubleStorage": torch.float64,
    "FloatStorage": torch.float32,
    "HalfStorage": torch.float16,
    "BFloat16Storage": torch.bfloat16,
    "LongStorage": torch.int64,
    "IntStorage": torch.int32,
    "ShortStorage": torch.int16,
    "CharStorage": torch.int8,
    "ByteStorage": torch.uint8,
    "BoolStorage": torch.bool,
}


class CheckpointError(ValueError):
    """A file that is not a checkpoint, or not one that can be used."""


class _Inert:
    """Stands for classes that some files hold beside the tensors: Lightning's callbacks, argparse's options."""

    def __init__(self, *_: Any, **__: Any) -> None: ...


MAX_MODULES = 100_000
_INERT = ("argparse.Namespace", "pytorch_lightning.", "lightning.")


def load_checkpoint(path: Path) -> Any:
    """Read what `torch.save` has written, with `weights_only=True`.

    Raises:
        CheckpointError: The file is missing, cut short, asks to run code, or holds something else.
    """
    if not path.is_file():
        state = "a folder" if path.is_dir() else "missing"
        raise CheckpointError(f"{path} is {state}; expected a file in the released format, like m3ae.ckpt.")
    with path.open("rb") as file:
        is_zip = file.read(2) == b"PK"
    try:
        if is_zip and not zipfile.is_zipfile(path):
            raise CheckpointError(f"{path} is cut short or damaged ({path.stat().st_size:,} bytes); fetch it again.")
        if is_zip:
            with zipfile.ZipFile(path) as archive:
                _refuse_compressed(path, archive)
        foreign = get_unsafe_globals_in_checkpoint(path) if is_zip else ["argparse.Namespace"]
    except CheckpointError:
        raise
    except _MALFORMED as error:
        raise _damaged(path, error) from error
    if harmful := [name for name in foreign if not name.startswith(_INERT)]:
        raise CheckpointError(_refusal(path, ", ".join(harmful)))
    try:
        with warnings.catch_warnings(), safe_globals([(_Inert, name) for name in foreign]):
            warnings.simplefilter("ignore")  # about pickle protocols, which the next lines judge
            return torch.load(path, map_location="cpu", weights_only=True, mmap=is_zip)
    except pickle.UnpicklingError as error:
        name = re.search(r"GLOBAL (\S+)", str(error))
        raise CheckpointError(_refusal(path, name.group(1) if name else "something that is not a tensor")) from error
    except _MALFORMED as error:
        raise _damaged(path, error) from error


def read_tensors(path: Path) -> dict[str, Tensor]:
    """Read the tensors of a file of safetensors, of TorchScript, or of `torch.save`, by their names.

    Raises:
        ValueError: The file is cut short, asks to run code, or holds something else.
    """
    if path.suffix == ".safetensors":
        try:
            return load_file(path)
        except SafetensorError as error:
            raise ValueError(f"{path} is not a safetensors file, or is cut short ({first_line(error)}).") from error
    return read_torchscript(path) if is_torchscript(path) else state_of(load_checkpoint(path))


def state_of(content: Any) -> dict[str, Tensor]:
    """Return the tensors of a file's content, which may have them under `state_dict` or `model`."""
    state = content.get("state_dict", content.get("model", content)) if isinstance(content, Mapping) else {}
    return {name: value for name, value in state.items() if isinstance(value, Tensor)}


def is_torchscript(path: Path) -> bool:
    """Say whether the file is a TorchScript archive, rather than one that `torch.save` has written."""
    try:
        with zipfile.ZipFile(path) as archive:
            return any(name.endswith("/constants.pkl") for name in archive.namelist())
    except _MALFORMED:
        return False


def read_torchscript(path: Path) -> dict[str, Tensor]:
    """Read the parameters and buffers of a TorchScript archive by their dotted names.

    Raises:
        ValueError: The archive is damaged, or asks for something that parameters do not need.
    """
    try:
        with zipfile.ZipFile(path) as archive:
            _refuse_compressed(path, archive)
            root = archive.namelist()[0].partition("/")[0]
            data = archive.read(f"{root}/data.pkl")
            module = _Unpickler(data, lambda key: archive.read(f"{root}/data/{key}")).load()
            return dict(module.tensors(itertools.count()))
    except CheckpointError:
        raise
    except _MALFORMED as error:
        raise ValueError(
            f"{path} is a TorchScript archive whose parameters cannot be read: {error}. Nothing of it was run; "
            "fetch it again, or do not use it."
        ) from error


_ARCHITECTURES = {  # a word in a parameter's name → the architecture
    "relative_position_bias_table": "a Swin transformer",
    "layer1.0.conv1.weight": "a ResNet",
    "encoder.layer.0.attention.self.": "a BERT-like text encoder",
    "block.0.layer.0.SelfAttention.": "a T5",
}


def architecture_of(state: Mapping[str, Tensor]) -> str | None:
    """Return what other architecture than ours parameters are of, if their names tell."""
    return next((what for word, what in _ARCHITECTURES.items() if any(word in name for name in state)), None)


def some(names: Iterable[Any]) -> str:
    """Join the first three of some names."""
    shown = [str(name) for name in names]
    return ", ".join(shown[:3]) + (", …" if len(shown) > 3 else "") if shown else "none"


def first_line(error: Exception) -> str:
    """Return the first line of an error's message, or the error's name."""
    return (str(error).strip().splitlines() or [type(error).__name__])[0]


class _Module:
    """Stands for any scripted module: its attributes and no code."""

    def __setstate__(self, attributes: dict[str, Any]) -> None:
        self.attributes = attributes

    def tensors(self, visits: Iterator[int], prefix: str = "") -> Iterator[tuple[str, Tensor]]:
        """Yield the tensors of this module and of those in it, with dotted names; `visits` counts all modules.

        Raises:
            ValueError: There are more modules than a model has, as where modules share children again and again.
        """
        if next(visits) > MAX_MODULES:
            raise ValueError(f"more than {MAX_MODULES:,} modules")
        for name, value in self.attributes.items():
            if isinstance(value, Tensor):
                yield prefix + name, value
            elif isinstance(value, _Module):
                yield from value.tensors(visits, f"{prefix}{name}.")


class _Unpickler(pickle.Unpickler):
    """Builds tensors, modules without code, and plain Python values; refuses every other name."""

    def __init__(self, data: bytes, read: Callable[[str], bytes]) -> None:
        super().__init__(io.BytesIO(data))
        self.read, self.storages = read, dict[str, Tensor]()

    def find_class(self, module: str, name: str) -> Any:
        if module == "torch" and name in _STORAGES:
            return _STORAGES[name]
        if (module, name) == ("torch._utils", "_rebuild_tensor_v2"):
            return _tensor
        if (module, name) == ("collections", "OrderedDict"):
            return dict
        if module == "torch.jit._pickle":  # notes the type of a list or dictionary beside it
            return lambda value, *_: value
        if module == "__torch__" or module.startswith("__torch__."):
            return _Module
        raise pickle.UnpicklingError(f"it asks to build {module}.{name}")

    def persistent_load(self, pid: Any) -> Tensor:
        _, dtype, key, _, size = pid
        if key not in self.storages:
            data = bytearray(self.read(key)) if size else bytearray()
            self.storages[key] = torch.frombuffer(data, dtype=dtype) if data else torch.empty(0, dtype=dtype)
        return self.storages[key]


def _tensor(storage: Tensor, offset: int, shape: Sequence[int], stride: Sequence[int], *_: Any) -> Tensor:
    if math.prod(shape) > storage.numel():
        raise pickle.UnpicklingError(f"it asks for a tensor of {tuple(shape)} from {storage.numel()} numbers")
    return storage.as_strided(shape, stride, offset)


def _refuse_compressed(path: Path, archive: zipfile.ZipFile) -> None:
    """Refuse what unpacks to more than the file: PyTorch compresses nothing but code, which nobody reads here."""
    entries = (entry for entry in archive.infolist() if "/code/" not in entry.filename)
    if sum(entry.file_size for entry in entries) > path.stat().st_size:
        raise CheckpointError(f"{path} is a compressed archive, which PyTorch does not write; fetch it again.")


def _damaged(path: Path, error: Exception) -> CheckpointError:
    return CheckpointError(f"{path} is not a PyTorch checkpoint, or is damaged ({first_line(error)}).")


def _refusal(path: Path, names: str) -> str:
    return (
        f"{path} asks to build {names}, where a checkpoint holds only tensors, numbers and texts. Nothing of it was "
        "run; do not open it by other means unless you trust its source."
    )
