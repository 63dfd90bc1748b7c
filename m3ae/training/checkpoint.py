"""Checkpoints: everything an exact continuation needs, in a folder that is complete or absent."""

import itertools
import json
import re
import shutil
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
from accelerate import Accelerator
from accelerate.checkpointing import load_accelerator_state, save_accelerator_state
from accelerate.utils import broadcast_object_list, gather_object
from accelerate.utils.constants import RNG_STATE_NAME, SCALER_NAME
from pydantic import TypeAdapter

from m3ae.files import (
    find_damage,
    full_disk_as_oserror,
    is_full_disk,
    load_json_object,
    publish,
    remove_folder,
    write_checksums,
)
from m3ae.training.config import RunConfig
from m3ae.training.trained_model import TrainedModel, is_moment, read_tensors, stored_shapes, write_tensors

_STATE_FILE = "state.json"
_NAME = r"step-\d{8}"
_UNFINISHED = ".tmp"


@dataclass
class TrainingState:
    """Where a run stands.

    Attributes:
        step: Optimiser steps made, the skipped ones included.
        skipped_steps: Steps skipped so far because the loss or the gradient was not finite.
        skipped_in_a_row: Steps skipped since the last one that was made.
        best: Best value of the best metric, None before the first validation.
        log_lines: Lines of `metrics.jsonl` so far.
    """

    step: int = 0
    skipped_steps: int = 0
    skipped_in_a_row: int = 0
    best: float | None = None
    log_lines: int = 0


def list_checkpoints(folder: Path) -> list[Path]:
    """Return `folder` if it is a checkpoint, else the checkpoints of the run in it, oldest first, damaged or not."""
    if folder.is_dir() and (re.fullmatch(_NAME, folder.name) or (folder / _STATE_FILE).is_file()):
        return [folder]
    return _checkpoints(folder / "checkpoints")


def recorded_precision(checkpoints: Sequence[Path]) -> str | None:
    """Return the autocast type of the newest checkpoint that can be read, None if there is none."""
    for checkpoint in reversed(checkpoints):
        with suppress(OSError, ValueError, KeyError, TypeError):
            record = load_json_object(checkpoint / _STATE_FILE)
            precision: str = record["config"]["training"]["mixed_precision"]
            return precision
    return None


def choose_checkpoint(
    accelerator: Accelerator, candidates: Sequence[Path], folder: Path
) -> tuple[Path | None, list[str]]:
    """Return the newest checkpoint without damage; every process has to call it.

    Args:
        accelerator: The accelerator, which knows the other processes.
        candidates: Checkpoints, oldest first.
        folder: The checkpoints of the run; those that are passed over here lose their name.

    Returns:
        The checkpoint, None if there are no candidates, and one remark for each that was passed over.

    Raises:
        ValueError: All of them are damaged.
    """
    chosen: Path | None = None
    damaged: dict[Path, str] = {}
    if accelerator.is_main_process:
        for candidate in reversed(candidates):
            problem = find_damage(candidate, last=_STATE_FILE)
            if problem is None:
                chosen = candidate
                break
            damaged[candidate] = problem
    chosen, damaged = broadcast_object_list([chosen, damaged])
    if candidates and chosen is None:
        problems = "; ".join(f"{path.name}: {problem}" for path, problem in damaged.items())
        raise ValueError(
            f"no checkpoint in {candidates[-1].parent} can be used ({problems}); resume from another run, or move "
            f"this one away to start afresh"
        )
    remarks = []
    for path, problem in damaged.items():
        remark = f"{path.name} is damaged ({problem}): falling back to the checkpoint before"
        if path.parent.resolve() == folder.resolve():
            remark += f"; it is now {path.name}.damaged"
            if accelerator.is_main_process:
                _set_aside(path)
        remarks.append(remark)
    return chosen, remarks


def save_checkpoint(
    accelerator: Accelerator, folder: Path, trained: TrainedModel, state: TrainingState, config: RunConfig
) -> str | None:
    """Write `folder/step-<step>` and delete all but the last checkpoints; every process has to call it.

    Args:
        accelerator: The accelerator, with processes, loss scale and random generators.
        folder: The checkpoints of the run.
        trained: Weights and moments.
        state: Where the run stands.
        config: The run; `training.keep_checkpoints` stay.

    Returns:
        None, or why the disk had no room; then nothing of this checkpoint is left, and the older ones stay.
    """
    target = folder / f"step-{state.step:08d}"
    temporary = folder / f"{target.name}{_UNFINISHED}"
    problems: list[str] = []
    if accelerator.is_main_process:
        with _full_disk_noted(problems):
            for leftover in folder.glob("step-*"):
                if re.fullmatch(_NAME + re.escape(_UNFINISHED), leftover.name):
                    shutil.rmtree(leftover)
            temporary.mkdir(parents=True)
    problems = broadcast_object_list([problems])[0]
    if not problems:
        with _full_disk_noted(problems):
            write_tensors(trained.tensors(), temporary)
            scaler = accelerator.scaler if accelerator.is_main_process else None
            process = accelerator.process_index
            save_accelerator_state(str(temporary), [], [], [], [], process, accelerator.step, scaler)
    problems = gather_object(problems)
    if accelerator.is_main_process:
        if not problems:
            with _full_disk_noted(problems):
                _close(temporary, state, config, accelerator.num_processes)
                publish(temporary, target)
        if problems:
            shutil.rmtree(temporary, ignore_errors=True)
        else:
            for old in _checkpoints(folder)[: -config.training.keep_checkpoints]:
                remove_folder(old)
    problems = broadcast_object_list([problems])[0]
    return problems[0] if problems else None


def load_weights(
    checkpoint: Path, model: torch.nn.Module, config: RunConfig, process: int
) -> tuple[TrainingState, list[str]]:
    """Load the weights into the bare model, before an engine takes it apart.

    Args:
        checkpoint: The checkpoint, by whatever engine and number of processes.
        model: The bare model.
        config: The present configuration; it stays in force where it differs from the checkpoint's.
        process: The index of this process.

    Returns:
        Where the run stands, and remarks on what differs from the run that wrote the checkpoint.

    Raises:
        ValueError: The weights are those of another model, or the checkpoint is of another version of m3ae.
    """
    with _named_in_errors(checkpoint):
        record = load_json_object(checkpoint / _STATE_FILE)
        state = TypeAdapter(TrainingState).validate_python(record["training"])
        remarks = _changes(flatten(record["config"]), flatten(config.model_dump(mode="json")))
        if not (checkpoint / f"{RNG_STATE_NAME}_{process}.pkl").exists():
            count = record["num_processes"]
            remarks.append(f"written by {count} processes: dropout differs from an uninterrupted run")
        stored, tensors = stored_shapes(checkpoint), model.state_dict()
        _check_weights_fit(checkpoint, stored, tensors)
        read_tensors({name: tensor for name, tensor in tensors.items() if name in stored}, checkpoint)
    return state, remarks


def load_moments(accelerator: Accelerator, checkpoint: Path, trained: TrainedModel) -> None:
    """Load the optimiser's moments, the loss scale and the random generators.

    Raises:
        ValueError: The checkpoint is of another version of m3ae.
    """
    with _named_in_errors(checkpoint):
        trained.load_moments(checkpoint)
        scaler = accelerator.scaler if (checkpoint / SCALER_NAME).exists() else None
        load_accelerator_state(str(checkpoint), [], [], [], [], accelerator.process_index, scaler)


@contextmanager
def _named_in_errors(checkpoint: Path) -> Iterator[None]:
    """Name a checkpoint whose checksums are right and whose contents are not."""
    try:
        yield
    except (MemoryError, torch.OutOfMemoryError):
        raise
    except Exception as error:  # each library raises another one
        if isinstance(error, ValueError) and str(error).startswith((f"checkpoint {checkpoint} ", f"{checkpoint} ")):
            raise
        raise ValueError(
            f"checkpoint {checkpoint} cannot be read ({' '.join(str(error).split())}): it is of another version of "
            f"m3ae, or was changed together with its checksums"
        ) from error


def _close(folder: Path, state: TrainingState, config: RunConfig, num_processes: int) -> None:
    record = {"training": asdict(state), "num_processes": num_processes, "config": config.model_dump(mode="json")}
    (folder / _STATE_FILE).write_text(json.dumps(record, indent=2), encoding="utf-8")
    write_checksums(folder, last=_STATE_FILE)


@contextmanager
def _full_disk_noted(problems: list[str]) -> Iterator[None]:
    try:
        with full_disk_as_oserror():
            yield
    except OSError as error:
        if not is_full_disk(error):
            raise
        problems.append(str(error))


def _checkpoints(folder: Path) -> list[Path]:
    return sorted(path for path in folder.glob("step-*") if re.fullmatch(_NAME, path.name))


def _set_aside(checkpoint: Path) -> None:
    names = (checkpoint.with_name(f"{checkpoint.name}.damaged{number or ''}") for number in itertools.count())
    checkpoint.rename(next(path for path in names if not path.exists()))


def _check_weights_fit(
    checkpoint: Path, stored: Mapping[str, tuple[int, ...]], tensors: Mapping[str, torch.Tensor]
) -> None:
    """Raise ValueError for other names or shapes, in one line for hundreds of tensors; tied ones are stored once."""
    storages = {tensor.data_ptr() for name, tensor in tensors.items() if name in stored}
    problems = [
        f"{name} is {stored.get(name, 'absent')} in the checkpoint and {tuple(tensor.shape)} in the model"
        for name, tensor in tensors.items()
        if stored.get(name) != tuple(tensor.shape) and (name in stored or tensor.data_ptr() not in storages)
    ]
    problems += [f"{name} is not in the model" for name in stored if name not in tensors and not is_moment(name)]
    if problems:
        raise ValueError(
            f"checkpoint {checkpoint} is of another model: {len(problems)} tensors differ, first {problems[0]}; "
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
