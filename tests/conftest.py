import os
from pathlib import Path

import pytest


@pytest.fixture(scope="session")
def shared() -> Path:
    """The folder of real data and reference values."""
    folder = os.environ.get("M3AE_TEST_DATA")
    if not folder:
        pytest.skip("M3AE_TEST_DATA is not set")
    return Path(folder).resolve()
