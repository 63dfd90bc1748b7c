"""The precision that a device computes a model in fastest: bf16 under autocast, or float32."""

import time
from functools import cache
from typing import Literal, NamedTuple

import torch

SIDE, SECONDS, GAIN = 384, 0.1, 1.2  # of the product that is timed in both types; what bf16 has to gain

PrecisionName = Literal["no", "bf16"]


class Precision(NamedTuple):
    """A type for autocast, by accelerate's name, and why it was chosen."""

    name: PrecisionName
    reason: str

    def __str__(self) -> str:
        return f"precision: {'bf16' if self.name == 'bf16' else 'float32'} ({self.reason})"


def find_device(name: str | None = None) -> torch.device:
    """Return the device of a name such as `cuda:1`; without a name, a GPU if there is one, else the CPU.

    Raises:
        ValueError: This machine has no such device.
    """
    try:
        device = torch.device(name or ("cuda" if torch.cuda.is_available() else "cpu"))
        torch.empty(0, device=device).cpu()  # refused by the device `meta`, which holds no numbers
        return device
    except (RuntimeError, AssertionError, NotImplementedError) as error:  # AssertionError: torch has no CUDA
        known = ["cpu", *(f"cuda:{index}" for index in range(torch.cuda.device_count()))]
        raise ValueError(f"device: got {name!r}, expected one of this machine, such as {', '.join(known)}") from error


def choose_precision(device: torch.device) -> Precision:
    """Return bf16 where a device computes it natively and faster than float32, else float32."""
    return _choose(device.type)


@cache
def _choose(kind: str) -> Precision:
    if kind == "cuda":
        if torch.cuda.is_bf16_supported(including_emulation=False):
            return Precision("bf16", "the GPU computes it natively")
        return Precision("no", "the GPU has no units for bf16")
    if kind != "cpu":
        return Precision("no", f"bf16 is for GPUs of CUDA and for CPUs, not for {kind}")
    units = torch.cpu.get_capabilities()
    if units.get("architecture") == "x86_64" and not (units.get("avx512_bf16") or units.get("amx_bf16")):
        return Precision("no", "the CPU has no units for bf16")
    # Having the units is not enough: some CPUs compute bf16 with AVX-512 at half the speed of float32.
    gain = _gain_of_bf16()
    return Precision("bf16" if gain >= GAIN else "no", f"a product of matrices in bf16 is {gain:.2g} times as fast")


def _gain_of_bf16() -> float:
    """Return how many times as fast a product of two matrices is in bf16 as in float32, on one core."""
    threads = torch.get_num_threads()
    matrices = torch.ones(SIDE, SIDE), torch.ones(SIDE, SIDE, dtype=torch.bfloat16)
    fastest = [float("inf")] * len(matrices)
    torch.set_num_threads(1)  # with more, other processes would decide
    try:
        end = time.perf_counter() + SECONDS
        while time.perf_counter() < end:
            for number, matrix in enumerate(matrices):
                start = time.perf_counter()
                torch.mm(matrix, matrix)
                fastest[number] = min(fastest[number], time.perf_counter() - start)
    finally:
        torch.set_num_threads(threads)
    return fastest[0] / fastest[1]
