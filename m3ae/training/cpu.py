"""Making good use of a machine without a GPU."""

import contextlib
import os
from contextlib import AbstractContextManager

import torch
from accelerate import Accelerator
from torch.nn.attention import SDPBackend, sdpa_kernel

from m3ae.data.parallel import available_cores


def share_cores(accelerator: Accelerator) -> None:
    """Give each process on a CPU its share of the cores; `accelerate launch` leaves one core to each by default."""
    if accelerator.device.type == "cpu":
        local_processes = int(os.environ.get("LOCAL_WORLD_SIZE", "1"))
        torch.set_num_threads(max(1, available_cores() // local_processes))


def attention_kernel(accelerator: Accelerator) -> AbstractContextManager[None]:
    """Choose the attention kernel of the forward pass.

    On a CPU in bfloat16 the backward pass of the fused kernel takes 40 % of a training step, plain matrix products
    half of that. Everywhere else PyTorch's own choice stands.
    """
    if accelerator.device.type == "cpu" and accelerator.mixed_precision == "bf16":
        context: AbstractContextManager[None] = sdpa_kernel(SDPBackend.MATH)
        return context
    return contextlib.nullcontext()
