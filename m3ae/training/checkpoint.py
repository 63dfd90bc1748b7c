"""Checkpoints: everything an exact continuation needs, in a folder that is complete or absent."""

import json
import re
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
from accelerate import Accelerator
from accelerate.utils.constants import RNG_STATE_NAME, SAFE_WEIGHTS_NAME
from safetensors import safe_open

from m3ae.training.config import RunConfig

_STATE_FILE = "state.json"


@dataclass
class TrainingState:
    """Where a run stands.

    Attributes:
        step: Optimiser steps made, the skipped ones included.
        skipped_steps: Steps skipped so far because the loss or the gradient was not finite.
        skipped_in_a_row: Those among the last steps.
        best: Best value of the best metric, None before the first validation.
    """

    step: int = 0
    skipped_steps: int = 0
    skipped_in_a_row: int = 0
    best: float | None = None


def find_checkpoint(folder: Path) -> Path | None:
    """Return `folder` if it is a checkpoint, else the newest checkpoint of the run in it, or None."""
    if (folder / _STATE_FILE).is_file():
        return folder
    found = _checkpoints(folder / "checkpoints")
    return found[-1] if found else None


def save_checkpoint(
    accelerator: Accelerator, folder: Path, state: TrainingState, config: RunConfig, *, keep: int
) -> Path:
    """Write `folder/step-<step>` and delete all but the last `keep` checkpoints; every process has to call it."""
    target = folder / f"step-{state.step:08d}"
    temporary = folder / f"{target.name}.tmp"
    if accelerator.is_main_process:
        shutil.rmtree(temporary, ignore_errors=True)
        temporary.mkdir(parents=True)
    accelerator.wait_for_everyone()
    accelerator.save_state(str(temporary))
    accelerator.wait_for_everyone()
    if accelerator.is_main_process:
        record = {
            "training": asdict(state),
            "num_processes": accelerator.num_processes,
            "config": config.model_dump(mode="json"),
        }
        (temporary / _STATE_FILE).write_text(json.dumps(record, indent=2), encoding="utf-8")
        _move(temporary, target)
        for old in _checkpoints(folder)[:-keep]:
            shutil.rmtree(old)
    accelerator.wait_for_everyone()
    return target


def load_checkpoint(
    accelerator: Accelerator, checkpoint: Path, model: torch.nn.Module, config: RunConfig
) -> tuple[TrainingState, list[str]]:
    """Load weights, optimiser and random generators into what the accelerator has prepared.

    Args:
        accelerator: The accelerator, with model and optimiser prepared.
        checkpoint: The checkpoint.
        model: The bare model, to compare shapes.
        config: The present configuration; it stays in force where it differs from the checkpoint's.

    Returns:
        Where the run stands, and remarks on what differs from the run that wrote the checkpoint.

    Raises:
        ValueError: The weights are those of another model.
    """
    record = json.loads((checkpoint / _STATE_FILE).read_text(encoding="utf-8"))
    _check_weights_fit(checkpoint / SAFE_WEIGHTS_NAME, model)
    remarks = _changes(flatten(record["config"]), flatten(config.model_dump(mode="json")))
    if not (checkpoint / f"{RNG_STATE_NAME}_{accelerator.process_index}.pkl").exists():
        remarks.append(f"written by {record['num_processes']} processes: dropout differs from an uninterrupted run")
    hyperparameters = [{k: v for k, v in group.items() if k != "params"} for group in _parameter_groups(accelerator)]
    accelerator.load_state(str(checkpoint))
    for group, values in zip(_parameter_groups(accelerator), hyperparameters, strict=True):
        group.update(values)
    # The accumulation may have changed since; a checkpoint always lies between two optimiser steps.
    accelerator.step = 0
    return TrainingState(**record["training"]), remarks


def keep_plain_names(accelerator: Accelerator) -> None:
    """Make checkpoints hold the bare model's parameter names, so that any number of processes can read them."""

    def before_saving(models: list[torch.nn.Module], weights: list[dict[str, Any]], folder: str) -> None:
        if weights:  # engines that shard the weights have written them already
            weights[:] = [accelerator.unwrap_model(model).state_dict() for model in models]

    def before_loading(models: list[torch.nn.Module], folder: str) -> None:
        models[:] = [accelerator.unwrap_model(model) for model in models]

    accelerator.register_save_state_pre_hook(before_saving)
    accelerator.register_load_state_pre_hook(before_loading)


@contextmanager
def complete_folder(target: Path) -> Iterator[Path]:
    """Yield a temporary folder of the same name that becomes `target` only when the block has ended well."""
    temporary = target.parent / ".incomplete" / target.name
    shutil.rmtree(temporary, ignore_errors=True)
    temporary.mkdir(parents=True)
    yield temporary
    _move(temporary, target)
    shutil.rmtree(temporary.parent)


def _move(source: Path, target: Path) -> None:
    # A folder cannot replace one that is not empty, so the old one steps aside first.
    old = target.with_name(f"{target.name}.old")
    shutil.rmtree(old, ignore_errors=True)
    if target.exists():
        target.rename(old)
    source.rename(target)
    shutil.rmtree(old, ignore_errors=True)


def _checkpoints(folder: Path) -> list[Path]:
    names = sorted(path for path in folder.glob("step-*") if re.fullmatch(r"step-\d{8}", path.name))
    return [path for path in names if (path / _STATE_FILE).is_file()]


def _parameter_groups(accelerator: Accelerator) -> list[dict[str, Any]]:
    return [group for optimizer in accelerator._optimizers for group in optimizer.param_groups]


def _check_weights_fit(file: Path, model: torch.nn.Module) -> None:
    """Compare names and shapes before loading, whose own message would list hundreds of tensors."""
    if not file.exists():  # engines that shard the weights have checks of their own
        return
    expected = model.state_dict()
    with safe_open(file, framework="pt") as weights:
        stored = {name: tuple(weights.get_slice(name).get_shape()) for name in weights.keys()}  # noqa: SIM118
    storages = {tensor.data_ptr() for name, tensor in expected.items() if name in stored}
    problems = [
        f"{name} is {stored.get(name, 'absent')} in the checkpoint and {shape} in the model"
        for name, shape in ((name, tuple(tensor.shape)) for name, tensor in expected.items())
        if stored.get(name) != shape and not (name not in stored and expected[name].data_ptr() in storages)
    ]
    problems += [f"{name} is not in the model" for name in stored if name not in expected]
    if problems:
        raise ValueError(
            f"checkpoint {file.parent} is of another model: {len(problems)} tensors differ, first {problems[0]}; "
            f"use the model configuration it was trained with (model.size, model.overrides), or another output_dir"
        )


def _changes(old: dict[str, Any], new: dict[str, Any]) -> list[str]:
    keys = [key for key in {**old, **new} if old.get(key) != new.get(key) and key != "output_dir"]
    return [f"{key} changes from {old.get(key)} to {new.get(key)}" for key in keys]


def flatten(values: dict[str, Any], prefix: str = "") -> dict[str, Any]:
    """Return the settings of nested sections by their dotted keys."""
    flat: dict[str, Any] = {}
    for key, value in values.items():
        flat |= flatten(value, f"{prefix}{key}.") if isinstance(value, dict) else {prefix + key: value}
    return flat
