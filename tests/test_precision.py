"""Which precision a device is given: by its units for bf16, and by the clock."""

import pytest
import torch

from m3ae import precision
from m3ae.precision import choose_precision

CPU = torch.device("cpu")


@pytest.fixture(autouse=True)
def _chosen_anew():
    precision._choose.cache_clear()
    yield
    precision._choose.cache_clear()


@pytest.mark.parametrize(
    ("units", "gain", "name"),
    [
        ({"architecture": "x86_64", "avx2": True}, None, "no"),  # nothing to measure
        ({"architecture": "x86_64", "avx512_bf16": True}, 0.5, "no"),  # half as fast, and yet with units
        ({"architecture": "x86_64", "avx512_bf16": True}, 1.19, "no"),
        ({"architecture": "x86_64", "avx512_bf16": True}, 1.2, "bf16"),
        ({"architecture": "x86_64", "amx_bf16": True, "avx512_bf16": True}, 6.0, "bf16"),
        ({"architecture": "aarch64", "bf16": True}, 2.0, "bf16"),
        ({"architecture": "aarch64", "bf16": False}, 0.01, "no"),
        ({}, 0.01, "no"),
    ],
)
def test_a_cpu(monkeypatch, units, gain, name) -> None:
    def measure() -> float:
        assert gain is not None
        return gain

    monkeypatch.setattr(torch.cpu, "get_capabilities", lambda: units)
    monkeypatch.setattr(precision, "_gain_of_bf16", measure)
    assert choose_precision(CPU).name == name


@pytest.mark.parametrize(("native", "name"), [(True, "bf16"), (False, "no")])
def test_a_gpu_is_asked_whether_it_emulates_bf16(monkeypatch, native, name) -> None:
    monkeypatch.setattr(torch.cuda, "is_bf16_supported", lambda including_emulation: native or including_emulation)
    assert choose_precision(torch.device("cuda:1")).name == name
    assert choose_precision(torch.device("mps")).name == "no"


def test_the_clock_decides_between_the_types(monkeypatch) -> None:
    """Time stands still but for products: one in bf16 takes a quarter of one in float32."""
    now, product = 0.0, torch.mm

    def multiply(a: torch.Tensor, b: torch.Tensor) -> torch.Tensor:
        nonlocal now
        now += 0.004 if a.dtype == torch.float32 else 0.001
        return product(a, b)

    monkeypatch.setattr(torch, "mm", multiply)
    monkeypatch.setattr(precision.time, "perf_counter", lambda: now)
    threads = torch.get_num_threads()
    assert precision._gain_of_bf16() == pytest.approx(4)
    assert torch.get_num_threads() == threads and now <= 0.2


def test_what_is_said() -> None:
    assert str(precision.Precision("no", "for a reason")) == "precision: float32 (for a reason)"
    assert str(precision.Precision("bf16", "for a reason")) == "precision: bf16 (for a reason)"
