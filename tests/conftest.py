import os
import resource
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from pathlib import Path

import pytest


def use_own_cores() -> None:
    """Give each of pytest's worker processes cores of its own, before PyTorch counts them: threads that share wait."""
    worker = os.environ.get("PYTEST_XDIST_WORKER")
    if worker and hasattr(os, "sched_setaffinity"):
        own = sorted(os.sched_getaffinity(0))[int(worker[2:]) :: int(os.environ["PYTEST_XDIST_WORKER_COUNT"])]
        os.sched_setaffinity(0, own or os.sched_getaffinity(0))


use_own_cores()
os.environ.setdefault("HF_HUB_OFFLINE", "1")  # no test asks the hub, and what looks for a model there fails at once

from accelerate.state import AcceleratorState  # noqa: E402

# Files that take longest, of which no worker should be left with one at the end.
LONGEST = (
    "test_readme.py",
    "tasks/test_pretraining.py",
    "test_tutorials.py",
    "training/test_engines.py",
    "scripts/test_train.py",
    "faults/test_fuzz.py",
)


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Start with the files that take longest."""

    def place(item: pytest.Item) -> int:
        path = item.path.as_posix()
        return next((number for number, file in enumerate(LONGEST) if path.endswith(f"tests/{file}")), len(LONGEST))

    items.sort(key=place)


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


@pytest.fixture
def full_disk() -> Callable[[int], AbstractContextManager[None]]:
    """A context in which no file may grow beyond some bytes."""

    @contextmanager
    def limited(size: int) -> Iterator[None]:
        before = resource.getrlimit(resource.RLIMIT_FSIZE)
        resource.setrlimit(resource.RLIMIT_FSIZE, (size, before[1]))
        try:
            yield
        finally:
            resource.setrlimit(resource.RLIMIT_FSIZE, before)

    return limited
