"""The device, the processes and the engine that a run uses, as `accelerate` finds them.

The engine (DDP, FSDP2, DeepSpeed ZeRO) is chosen by `accelerate launch` and the environment variables that it sets.
"""

import importlib.util
import os
import sys
from collections.abc import Sequence
from datetime import timedelta
from pathlib import Path
from typing import Any

import torch
from accelerate import Accelerator, DistributedDataParallelKwargs, InitProcessGroupKwargs, PartialState
from accelerate.utils import (
    DeepSpeedPlugin,
    DistributedType,
    FullyShardedDataParallelPlugin,
    GradientAccumulationPlugin,
    KwargsHandler,
    ProjectConfiguration,
    broadcast_object_list,
    parse_flag_from_env,
    str_to_bool,
)
from torch.distributed.fsdp import MixedPrecisionPolicy

from m3ae.data.parallel import available_cores
from m3ae.precision import Precision, choose_precision
from m3ae.training.checkpoint import recorded_precision
from m3ae.training.config import RunConfig
from m3ae.training.run_folder import RunFolder
from m3ae.training.safety import is_launched

ENGINES = {
    "ACCELERATE_USE_FSDP": ("FSDP", DistributedType.FSDP),
    "ACCELERATE_USE_DEEPSPEED": ("DeepSpeed", DistributedType.DEEPSPEED),
}
# The run's config decides what these sections say; a DeepSpeed file has "auto" there, or nothing.
DECIDED_SECTIONS = ("optimizer", "scheduler", "fp16", "bf16", "torch_autocast")


def settle_precision(config: RunConfig, checkpoints: Sequence[Path] = ()) -> RunConfig:
    """Return a run with another `training.mixed_precision` than `auto`, and print what was chosen and why.

    A run that may continue from `checkpoints`, the newest last, keeps their precision.
    """
    if config.training.mixed_precision != "auto":
        return config
    state = process_state(**_timeout(config))
    name = recorded_precision(checkpoints)
    line = f"precision: that of the checkpoint, {name}"
    if name is None:
        chosen: Precision = broadcast_object_list([choose_precision(state.device)])[0]  # the clocks of two may differ
        name, line = chosen.name, str(chosen)
    state.print(line, file=sys.stderr)
    return config.model_copy(update={"training": config.training.model_copy(update={"mixed_precision": name})})


def build_accelerator(config: RunConfig, folder: RunFolder) -> Accelerator:
    """Return the accelerator of a run.

    Raises:
        ValueError: The tracker or DeepSpeed is not installed, or the chosen engine does not fit: FSDP or DeepSpeed
            without GPUs, FSDP1, a setting that contradicts the run's config, halving of micro-batches with several
            processes.
    """
    tracker = config.training.tracker
    if tracker in ("wandb", "mlflow") and importlib.util.find_spec(tracker) is None:
        raise ValueError(f"training.tracker: got {tracker}, which is not installed; pip install 'm3ae[{tracker}]'")
    handlers: list[KwargsHandler] = [
        # A batch without any image or text leaves that branch without gradient, and DDP would wait for it for ever.
        DistributedDataParallelKwargs(find_unused_parameters=True)
    ]
    if timeout := _timeout(config):
        handlers.append(InitProcessGroupKwargs(**timeout))
    deepspeed = _deepspeed(config) if _is_chosen("ACCELERATE_USE_DEEPSPEED") else None
    accelerator = Accelerator(
        mixed_precision="no" if deepspeed else config.training.mixed_precision,
        gradient_accumulation_plugin=GradientAccumulationPlugin(config.training.gradient_accumulation_steps),
        log_with=None if tracker == "none" else tracker,
        project_config=ProjectConfiguration(project_dir=str(folder.root), logging_dir=str(folder.tensorboard)),
        kwargs_handlers=handlers,
        deepspeed_plugin=deepspeed,
        fsdp_plugin=_fsdp() if _is_chosen("ACCELERATE_USE_FSDP") else None,
    )
    _refuse_fall_back(accelerator)
    if config.training.halve_on_out_of_memory and (accelerator.num_processes > 1 or deepspeed):
        raise ValueError(
            f"training.halve_on_out_of_memory: got true with {accelerator.num_processes} processes"
            f"{' of DeepSpeed' if deepspeed else ''}, expected one: the others wait for the one that has no memory; "
            "choose training.batch_size on one process first"
        )
    return accelerator


def process_state(**options: Any) -> PartialState:
    """Return the processes and the device; the first call says, in `options`, how the processes are joined."""
    # `PartialState`, unlike `Accelerator`, does not read this, and would take each process for the only one.
    return PartialState(cpu=parse_flag_from_env("ACCELERATE_USE_CPU"), **options)


def _timeout(config: RunConfig) -> dict[str, timedelta]:
    if config.training.max_step_minutes is None:
        return {}
    # Never before the watchdog, which knows which process is late.
    return {"timeout": timedelta(minutes=max(30.0, 2 * config.training.max_step_minutes))}


def prepare_cpu(accelerator: Accelerator) -> None:
    """Give a process on a CPU its share of the cores, or the threads that OMP_NUM_THREADS says.

    The variable counts only for a process without a launcher: launchers set it, too, by default to one thread.
    """
    if accelerator.device.type == "cpu" and (is_launched() or "OMP_NUM_THREADS" not in os.environ):
        local_processes = int(os.environ.get("LOCAL_WORLD_SIZE", "1"))
        torch.set_num_threads(max(1, available_cores() // local_processes))


def device_name(device: torch.device) -> str:
    """Return what a device is called."""
    return torch.cuda.get_device_name(device) if device.type == "cuda" else device.type


def _is_chosen(variable: str) -> bool:
    return bool(str_to_bool(os.environ.get(variable, "false")))


def _deepspeed(config: RunConfig) -> DeepSpeedPlugin:
    if importlib.util.find_spec("deepspeed") is None:
        raise ValueError("ACCELERATE_USE_DEEPSPEED: got true, but it is not installed; pip install 'm3ae[deepspeed]'")
    training = config.training
    if training.mixed_precision == "fp16":
        raise ValueError("training.mixed_precision: got fp16, expected bf16 or no with DeepSpeed")
    if training.ema_decay is not None:
        raise ValueError(
            f"training.ema_decay: got {training.ema_decay:g}, expected null with DeepSpeed, which keeps the weights "
            "to itself; take FSDP2 or DDP"
        )
    plugin = DeepSpeedPlugin(zero3_init_flag=False)  # every process builds the whole model, then keeps its share
    settings: dict[str, Any] = plugin.deepspeed_config
    contradictions = [
        name
        for name in DECIDED_SECTIONS
        if settings.get(name, {"enabled": False}).get("enabled") not in (False, "auto")
    ]
    if contradictions:
        raise ValueError(
            f"the DeepSpeed config has {', '.join(contradictions)}: leave this out: the run's config decides "
            f"optimizer, schedule and training.mixed_precision"
        )
    for name in ("offload_optimizer", "offload_param"):
        if settings["zero_optimization"].get(name, {}).get("device", "none") != "none":
            raise ValueError(f"zero_optimization.{name}: got a device, expected none: its state is not in checkpoints")
    settings |= {
        "train_batch_size": "auto",
        "train_micro_batch_size_per_gpu": training.batch_size,
        "gradient_accumulation_steps": training.gradient_accumulation_steps,
        "gradient_clipping": config.optimizer.max_grad_norm or 0.0,
    }
    if training.mixed_precision == "bf16":
        settings["torch_autocast"] = {"enabled": True, "dtype": "bfloat16"}
    return plugin


def _fsdp() -> FullyShardedDataParallelPlugin:
    version = os.environ.get("FSDP_VERSION", "1")
    if version != "2":
        raise ValueError(f"fsdp_version: got {version}, expected 2; see configs/accelerate/fsdp2.yaml")
    # By default accelerate would round parameters, gradients and the loss to 16 bits, on top of the run's autocast.
    plugin = FullyShardedDataParallelPlugin(mixed_precision_policy=MixedPrecisionPolicy())
    if plugin.cpu_ram_efficient_loading:
        raise ValueError(
            "fsdp_cpu_ram_efficient_loading: got true, expected false: every process builds the whole model before "
            "it is sharded; see configs/accelerate/fsdp2.yaml"
        )
    return plugin


def _refuse_fall_back(accelerator: Accelerator) -> None:
    """Raise where accelerate goes on without the chosen engine, as it does on a CPU."""
    processes = int(os.environ.get("WORLD_SIZE", "1"))
    for variable, (name, kind) in ENGINES.items():
        if _is_chosen(variable) and (accelerator.distributed_type, accelerator.num_processes) != (kind, processes):
            raise ValueError(
                f"{variable}: got true, but accelerate has no {name} for {processes} processes on "
                f"{accelerator.device} and would go on without; expected GPUs and `accelerate launch`. Without GPUs "
                f"use DDP: unset {variable} and set ACCELERATE_USE_CPU=true"
            )
