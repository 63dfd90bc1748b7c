"""What to do about too little memory."""

from collections.abc import Iterator
from contextlib import contextmanager

import torch
from accelerate import Accelerator
from accelerate.utils.memory import should_reduce_batch_size

from m3ae.training.config import RunConfig
from m3ae.training.sections import TrainingConfig


def enable_gradient_checkpointing(model: torch.nn.Module) -> None:
    """Have a model recompute activations in the backward pass.

    Raises:
        ValueError: It cannot.
    """
    for name in (
        "activation_checkpointing_enable",
        "gradient_checkpointing_enable",
    ):  # of newer and older transformers
        if callable(enable := getattr(model, name, None)):
            enable({"use_reentrant": False})
            return
    raise ValueError(f"training.gradient_checkpointing: got true, but {type(model).__name__} does not support it")


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
        remedies = ["smaller inputs: model.overrides.image_config.image_size, data.max_text_length"]
        if not settings.gradient_checkpointing:
            remedies.insert(0, "training.gradient_checkpointing=true, which computes activations twice")
        if settings.batch_size > 1:
            size, accumulation = _smaller(settings).values()
            smaller = f"training.batch_size={size} with training.gradient_accumulation_steps={accumulation}"
            remedies.insert(0, f"{smaller}, the same global batch")
        raise MemoryError(
            f"out of memory on {device} with training.batch_size={settings.batch_size}; change one of: "
            f"{'; '.join(remedies)} ({str(error).splitlines()[0] if str(error) else type(error).__name__})"
        ) from error


def with_smaller_batches(config: RunConfig, accelerator: Accelerator, error: MemoryError) -> RunConfig:
    """Return the configuration with half the micro-batch and the same global batch, if it allows that.

    Raises:
        MemoryError: `error`, if it does not, or a micro-batch is one sample.
    """
    training = config.training
    if not training.halve_on_out_of_memory or training.batch_size == 1:
        raise error
    smaller = training.model_copy(update=_smaller(training))
    accelerator.gradient_accumulation_steps = smaller.gradient_accumulation_steps
    accelerator.step = 0
    error.__cause__ = error.__context__ = None  # its traceback keeps what did not fit
    torch.cuda.empty_cache()
    return config.model_copy(update={"training": smaller})


def _smaller(settings: TrainingConfig) -> dict[str, int]:
    """Return the largest smaller micro-batch that makes the same global batch, and its accumulation."""
    size, accumulation = settings.batch_size, settings.gradient_accumulation_steps
    factor = next(factor for factor in range(2, size + 1) if size % factor == 0)
    return {"batch_size": size // factor, "gradient_accumulation_steps": accumulation * factor}
