"""What to do about too little memory."""

from collections.abc import Iterator
from contextlib import contextmanager

import torch
from accelerate.utils.memory import should_reduce_batch_size

from m3ae.training.config import TrainingConfig


@contextmanager
def out_of_memory_explained(settings: TrainingConfig, device: torch.device) -> Iterator[None]:
    """Turn a lack of memory, on whatever device, into a message that names the settings to change.

    Raises:
        MemoryError: There was not enough memory.
    """
    try:
        yield
    except (RuntimeError, MemoryError) as error:
        if isinstance(error, RuntimeError) and not should_reduce_batch_size(error):
            raise
        size, accumulation = settings.batch_size, settings.gradient_accumulation_steps
        remedies = ["smaller inputs: model.overrides.image_config.image_size, data.max_text_length"]
        if not settings.gradient_checkpointing:
            remedies.insert(0, "training.gradient_checkpointing=true, which computes activations twice")
        if size > 1:
            factor = next(factor for factor in range(2, size + 1) if size % factor == 0)
            smaller = f"training.batch_size={size // factor}"
            more = f"training.gradient_accumulation_steps={accumulation * factor}"
            remedies.insert(0, f"{smaller} with {more}, the same global batch")
        raise MemoryError(
            f"out of memory on {device} with training.batch_size={size}; change one of: {'; '.join(remedies)} "
            f"({str(error).splitlines()[0] if str(error) else type(error).__name__})"
        ) from error
