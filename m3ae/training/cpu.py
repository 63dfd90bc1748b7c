"""Making good use of a machine without a GPU."""

import contextlib
import ctypes
import os
from collections.abc import Callable, Mapping, Sequence
from contextlib import AbstractContextManager
from typing import Any

import torch
from accelerate import Accelerator
from torch import Tensor
from torch.nn import functional as F
from torch.overrides import TorchFunctionMode

from m3ae.data.parallel import available_cores

M_TRIM_THRESHOLD, M_MMAP_MAX = -1, -4  # of glibc's malloc.h


def prepare_cpu(accelerator: Accelerator) -> None:
    """Make a process on a CPU ready to train or evaluate: its share of the cores, and memory that stays its own.

    `accelerate launch` leaves one core to each process by default.
    """
    if accelerator.device.type == "cpu":
        local_processes = int(os.environ.get("LOCAL_WORLD_SIZE", "1"))
        torch.set_num_threads(max(1, available_cores() // local_processes))
        keep_freed_memory()


def keep_freed_memory() -> None:
    """Have the C library keep what a step frees for the next one, where it can be asked to (glibc).

    By default it gives large blocks back to the system, and the next step pays for each of their pages once more.
    """
    library = ctypes.CDLL(None)
    if hasattr(library, "mallopt"):
        library.mallopt(M_MMAP_MAX, 0)
        library.mallopt(M_TRIM_THRESHOLD, -1)


def fast_kernels(device: torch.device) -> AbstractContextManager[Any]:
    """Replace, on a CPU, PyTorch's attention and dropout by faster ones of the same mathematics.

    The forward pass belongs inside, of a compiled model, too; what a checkpointed layer computes again in the backward
    pass is not inside by itself, see `recompute_with`.
    """
    return _CPUKernels() if device.type == "cpu" else contextlib.nullcontext()


def recompute_with(device: torch.device, compiled: bool) -> Callable[[], AbstractContextManager[Any]] | None:
    """Return the `recomputing` of `enable_gradient_checkpointing` that goes with `fast_kernels`.

    A compiled model needs none: what it computes again is traced with the forward pass.
    """
    return _CPUKernels if device.type == "cpu" and not compiled else None


class _CPUKernels(TorchFunctionMode):
    def __torch_function__(
        self, func: Callable[..., Any], types: Any, args: Sequence[Any] = (), kwargs: Mapping[str, Any] | None = None
    ) -> Any:
        if func is F.scaled_dot_product_attention:
            func = attention
        elif func is F.dropout:
            func = dropout
        return func(*args, **(kwargs or {}))


def attention(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attn_mask: Tensor | None = None,
    dropout_p: float = 0.0,
    is_causal: bool = False,
    scale: float | None = None,
    enable_gqa: bool = False,
) -> Tensor:
    """Compute what `F.scaled_dot_product_attention` computes, by plain matrix products where these are faster.

    In bfloat16 the backward pass of PyTorch's fused kernel takes two to four times as long as theirs, and with dropout
    PyTorch has no fused kernel at all. A row of the mask that hides everything attends to everything here.
    """
    if enable_gqa or (query.dtype == torch.float32 and not dropout_p):
        return F.scaled_dot_product_attention(
            query, key, value, attn_mask, dropout_p, is_causal, scale=scale, enable_gqa=enable_gqa
        )
    scores = (query * (query.shape[-1] ** -0.5 if scale is None else scale)) @ key.transpose(-1, -2)
    if is_causal:
        attn_mask = torch.ones(scores.shape[-2:], dtype=torch.bool, device=scores.device).tril()
    if attn_mask is not None:
        if attn_mask.dtype == torch.bool:
            hidden = torch.finfo(scores.dtype).min
            attn_mask = torch.zeros_like(attn_mask, dtype=scores.dtype).masked_fill_(~attn_mask, hidden)
        scores += attn_mask
    return dropout(scores.softmax(-1), dropout_p) @ value


def dropout(input: Tensor, p: float = 0.5, training: bool = True, inplace: bool = False) -> Tensor:
    """Zero each element with probability `p`, a multiple of 2⁻¹⁶, and scale the others by 1 / (1 − p).

    PyTorch draws one random number for each element, which takes longer than the matrix product before it; here a
    number of 64 bits serves four elements.
    """
    dropped = round(p * 2**16)
    if not training or not 0 < dropped < 2**16:
        return F.dropout(input, p, training)
    mask: Tensor = _dropout_mask(input.detach(), dropped)
    return input * mask


@torch.library.custom_op("m3ae::dropout_mask", mutates_args=(), tags=(torch.Tag.nondeterministic_seeded,))
def _dropout_mask(like: Tensor, dropped: int) -> Tensor:
    """Return 0 with probability `dropped` · 2⁻¹⁶, else the scale: one operator that a compiler leaves as it is."""
    words = torch.empty(-(-like.numel() // 4), dtype=torch.int64).random_(-(2**63), None)
    noise = words.view(torch.int16)[: like.numel()].view(like.shape)
    mask = torch.ge(noise, dropped - 2**15, out=torch.empty_like(like, memory_format=torch.contiguous_format))
    return mask.mul_(2**16 / (2**16 - dropped))


@_dropout_mask.register_fake
def _(like: Tensor, dropped: int) -> Tensor:
    return torch.empty_like(like, memory_format=torch.contiguous_format)
