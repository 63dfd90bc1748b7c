"""The tensors of a TorchScript archive, such as OpenAI's CLIP files, read without running the code in it.

`torch.load(weights_only=True)` refuses these archives, and `torch.jit.load` may run what they define. Their pickle of
parameters needs four kinds of names only, and everything else is refused here.
"""

from __future__ import annotations

import io
import pickle
import zipfile
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

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


class _Module:
    """Stands for any scripted module: its attributes and no code."""

    def __setstate__(self, attributes: dict[str, Any]) -> None:
        self.attributes = attributes

    def tensors(self, prefix: str = "") -> Iterator[tuple[str, Tensor]]:
        """Yield the tensors of this module and of those in it, with dotted names."""
        for name, value in self.attributes.items():
            if isinstance(value, Tensor):
                yield prefix + name, value
            elif isinstance(value, _Module):
                yield from value.tensors(f"{prefix}{name}.")


class _Unpickler(pickle.Unpickler):
    """Builds tensors, modules without code, and plain Python values; refuses every other name."""

    def __init__(self, data: bytes, read: Callable[[str], bytes]) -> None:
        super().__init__(io.BytesIO(data))
        self.read = read

    def find_class(self, module: str, name: str) -> Any:
        if module == "torch" and name in _STORAGES:
            return _STORAGES[name]
        if (module, name) == ("torch._utils", "_rebuild_tensor_v2"):
            return _tensor
        if (module, name) == ("collections", "OrderedDict"):
            return dict
        if module == "torch.jit._pickle":
            return _typed
        if module == "__torch__" or module.startswith("__torch__."):
            return _Module
        raise pickle.UnpicklingError(f"it asks to build {module}.{name}")

    def persistent_load(self, pid: Any) -> Tensor:
        _, dtype, key, _, size = pid
        return torch.frombuffer(bytearray(self.read(key)), dtype=dtype) if size else torch.empty(0, dtype=dtype)


def _tensor(storage: Tensor, offset: int, shape: Sequence[int], stride: Sequence[int], *_: Any) -> Tensor:
    return storage.as_strided(shape, stride, offset)


def _typed(value: Any, *_: Any) -> Any:
    """A list or dictionary whose type TorchScript has noted beside it."""
    return value


def is_torchscript(path: Path) -> bool:
    """Say whether the file is a TorchScript archive, rather than one that `torch.save` has written."""
    if not zipfile.is_zipfile(path):
        return False
    with zipfile.ZipFile(path) as archive:
        return any(name.endswith("/constants.pkl") for name in archive.namelist())


def read_torchscript(path: Path) -> dict[str, Tensor]:
    """Read the parameters and buffers of a TorchScript archive.

    Returns:
        Dotted name → tensor.

    Raises:
        ValueError: The archive is damaged, or asks for something that parameters do not need.
    """
    with zipfile.ZipFile(path) as archive:
        root = archive.namelist()[0].partition("/")[0]
        try:
            data = archive.read(f"{root}/data.pkl")
            module = _Unpickler(data, lambda key: archive.read(f"{root}/data/{key}")).load()
            return dict(module.tensors())
        except (pickle.UnpicklingError, zipfile.BadZipFile, RuntimeError, *_MALFORMED) as error:
            raise ValueError(
                f"{path} is a TorchScript archive whose parameters cannot be read: {error}. Nothing of it was run; "
                "fetch it again, or do not use it."
            ) from error


_MALFORMED = (AttributeError, EOFError, IndexError, KeyError, RecursionError, TypeError, ValueError)
