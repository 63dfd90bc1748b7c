"""The device, the processes and the engine that a run uses, as `accelerate` finds them."""

import importlib.util
from datetime import timedelta

import torch
from accelerate import Accelerator, DistributedDataParallelKwargs, InitProcessGroupKwargs
from accelerate.utils import KwargsHandler, ProjectConfiguration

from m3ae.training.config import RunConfig
from m3ae.training.run_folder import RunFolder


def build_accelerator(config: RunConfig, folder: RunFolder) -> Accelerator:
    """Return the accelerator of a run.

    Raises:
        ValueError: The tracker is not installed.
    """
    tracker = config.training.tracker
    if tracker == "wandb" and importlib.util.find_spec("wandb") is None:
        raise ValueError("training.tracker: got wandb, which is not installed; pip install 'm3ae[wandb]'")
    handlers: list[KwargsHandler] = [
        # A batch without any image or text leaves that branch without gradient, and DDP would wait for it for ever.
        DistributedDataParallelKwargs(find_unused_parameters=True)
    ]
    if config.training.max_step_minutes is not None:
        # Never before the watchdog, which knows which process is late.
        minutes = max(30.0, 2 * config.training.max_step_minutes)
        handlers.append(InitProcessGroupKwargs(timeout=timedelta(minutes=minutes)))
    return Accelerator(
        mixed_precision=config.training.mixed_precision,
        gradient_accumulation_steps=config.training.gradient_accumulation_steps,
        log_with=None if tracker == "none" else tracker,
        project_config=ProjectConfiguration(project_dir=str(folder.root), logging_dir=str(folder.tensorboard)),
        kwargs_handlers=handlers,
    )


def device_name(device: torch.device) -> str:
    """Return what a device is called."""
    return torch.cuda.get_device_name(device) if device.type == "cuda" else device.type
