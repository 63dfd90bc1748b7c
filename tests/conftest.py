import os
from collections.abc import Iterator
from pathlib import Path

import pytest
from accelerate.state import AcceleratorState


@pytest.fixture(scope="session")
def shared() -> Path:
    """The folder of real data and reference values."""
    folder = os.environ.get("M3AE_TEST_DATA")
    if not folder:
        pytest.skip("M3AE_TEST_DATA is not set")
    return Path(folder).resolve()


@pytest.fixture(autouse=True)
def fresh_accelerator(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Each test starts as a process of its own would: accelerate keeps its state in a singleton."""
    monkeypatch.setenv("ACCELERATE_USE_CPU", "true")
    yield
    AcceleratorState._reset_state(reset_partial_state=True)
