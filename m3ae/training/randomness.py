"""The global random generators: dropout draws from them, nothing else may disturb them."""

import random
from collections.abc import Iterator
from contextlib import contextmanager

import numpy as np
import torch
from accelerate.utils import set_seed


@contextmanager
def fixed_randomness(seed: int) -> Iterator[None]:
    """Seed the generators of Python, NumPy and torch for a block, and put them back as they were.

    Validation and pictures drawn inside are the same at every call and leave the course of training untouched.
    """
    python_state, numpy_state = random.getstate(), np.random.get_state()
    devices = [torch.cuda.current_device()] if torch.cuda.is_initialized() else []
    with torch.random.fork_rng(devices):
        set_seed(seed)
        try:
            yield
        finally:
            random.setstate(python_state)
            np.random.set_state(numpy_state)
