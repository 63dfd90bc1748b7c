"""Checkpoints: everything an exact continuation needs, in a folder that is complete or absent."""

import itertools
import json
import re
import shutil
from collections.abc import Iterator, Sequence
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

from m3ae.files import find_damage, full_disk_as_oserror, is_full_disk, publish, remove_folder, write_checksums
from m3ae.training.config import RunConfig
from m3ae.training.engine_state import MODEL, OPTIMIZER, EngineState, Shards, write_shard

_STATE_FILE = "state.json"
_NAME = r"step-\d{8}"
_UNFINISHED = ".tmp"


@dataclass
class TrainingState:
    """Where a run stands.

    Attributes:
        step: Optimiser steps made, the skipped ones included.
        skipped_steps: Steps skipped so far because the loss or the gradient was not finite.
        skipped_in_a_row: Those among the last steps.
        best: Best value of the best metric, None before the first validation.
        log_lines: Lines of `metrics.jsonl` so far.
    """

    step: int = 0
    skipped_steps: int = 0
    skipped_in_a_row: int = 0
    best: float | None = None
    log_lines: int = 0


def list_checkpoints(folder: Path) -> list[Path]:
    """Return `folder` if it is a checkpoint, else those of the run in it, oldest first, damaged ones included."""
    if folder.is_dir() and (re.fullmatch(_NAME, folder.name) or (folder / _STATE_FILE).is_file()):
        return [folder]
    return _checkpoints(folder / "checkpoints")


def recorded_precision(checkpoints: Sequence[Path]) -> str | None:
    """Return the autocast type of the newest checkpoint that can be read, None if there is none."""
    for checkpoint in reversed(checkpoints):
        with suppress(OSError, ValueError, KeyError):
            record = json.loads((checkpoint / _STATE_FILE).read_text(encoding="utf-8"))
            precision: str = record["config"]["training"]["mixed_precision"]
            return precision
    return None


def choose_checkpoint(
    accelerator: Accelerator, candidates: Sequence[Path], own_folder: Path
) -> tuple[Path | None, list[str]]:
    """Return the newest checkpoint without damage; every process has to call it.

    Args:
        accelerator: Gives the other processes.
        candidates: Checkpoints, oldest first.
        own_folder: Damaged checkpoints in this folder that are newer than the chosen one lose their name.

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
        found = "; ".join(f"{path.name}: {problem}" for path, problem in damaged.items())
        raise ValueError(
            f"no checkpoint in {candidates[-1].parent} can be used ({found}); resume from another run, or move this "
            f"one away to start afresh"
        )
    remarks = []
    for path, problem in damaged.items():
        remark = f"{path.name} is damaged ({problem}): falling back to the checkpoint before"
        if path.parent.resolve() == own_folder.resolve():
            remark += f"; it is now {path.name}.damaged"
            if accelerator.is_main_process:
                _set_aside(path)
        remarks.append(remark)
    return chosen, remarks


def save_checkpoint(
    accelerator: Accelerator,
    folder: Path,
    model: torch.nn.Module,
    trained: EngineState,
    state: TrainingState,
    config: RunConfig,
) -> str | None:
    """Write `folder/step-<step>` and delete all but the last checkpoints; every process has to call it.

    Args:
        accelerator: Gives the processes, the loss scale and the random generators.
        folder: Where the checkpoints of the run are.
        model: The bare model, for its buffers.
        trained: Its weights and moments.
        state: Where the run stands.
        config: The run; `training.keep_checkpoints` stay.

    Returns:
        None, or why the disk had no room for it; then nothing of it is left, and the older checkpoints stay.
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
    accelerator.wait_for_everyone()
    with _full_disk_noted(problems):
        _write_part(accelerator, temporary, model, trained)
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
        process: This process.

    Returns:
        Where the run stands, and remarks on what differs from the run that wrote the checkpoint.

    Raises:
        ValueError: The weights are those of another model, or the checkpoint is of another version of m3ae.
    """
    with _unlike_ours(checkpoint):
        record = json.loads((checkpoint / _STATE_FILE).read_text(encoding="utf-8"))
        state = TypeAdapter(TrainingState).validate_python(record["training"])
        remarks = _changes(flatten(record["config"]), flatten(config.model_dump(mode="json")))
        if not (checkpoint / f"{RNG_STATE_NAME}_{process}.pkl").exists():
            count = record["num_processes"]
            remarks.append(f"written by {count} processes: dropout differs from an uninterrupted run")
        stored = Shards(checkpoint, MODEL)
        _check_weights_fit(checkpoint, stored, model)
        model.load_state_dict(dict(stored), strict=False)  # of tied weights one is stored
    return state, remarks


def load_moments(accelerator: Accelerator, checkpoint: Path, trained: EngineState) -> None:
    """Load the optimiser's moments, the loss scale and the random generators into what is prepared.

    Raises:
        ValueError: The checkpoint is of another version of m3ae.
    """
    with _unlike_ours(checkpoint):
        trained.set_moments(Shards(checkpoint, OPTIMIZER))
        scaler = accelerator.scaler if (checkpoint / SCALER_NAME).exists() else None
        load_accelerator_state(str(checkpoint), [], [], [], [], accelerator.process_index, scaler)


@contextmanager
def _unlike_ours(checkpoint: Path) -> Iterator[None]:
    """Name a checkpoint whose checksums are right and whose contents are not."""
    try:
        yield
    except (MemoryError, torch.OutOfMemoryError):
        raise
    except Exception as error:  # each library has its own
        if isinstance(error, ValueError) and str(checkpoint) in str(error):
            raise
        raise ValueError(
            f"checkpoint {checkpoint} cannot be read ({' '.join(str(error).split())}): it is of another version of "
            f"m3ae, or was changed together with its checksums"
        ) from error


def _write_part(accelerator: Accelerator, folder: Path, model: torch.nn.Module, trained: EngineState) -> None:
    """Write what this process has to add to a checkpoint."""
    process, processes = accelerator.process_index, accelerator.num_processes
    parameters = {name for name, _ in model.named_parameters(remove_duplicate=False)}
    buffers = {name: value for name, value in model.state_dict().items() if name not in parameters}
    write_shard(trained, buffers, folder, process, processes)
    scaler = accelerator.scaler if accelerator.is_main_process else None
    save_accelerator_state(str(folder), [], [], [], [], process, accelerator.step, scaler)


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


def _check_weights_fit(checkpoint: Path, shards: Shards, model: torch.nn.Module) -> None:
    """Compare names and shapes before loading, whose own message would list hundreds of tensors."""
    expected = model.state_dict()
    stored = {name: shards.shape(name) for name in shards}
    storages = {tensor.data_ptr() for name, tensor in expected.items() if name in stored}
    problems = [
        f"{name} is {stored.get(name, 'absent')} in the checkpoint and {shape} in the model"
        for name, shape in ((name, tuple(tensor.shape)) for name, tensor in expected.items())
        if stored.get(name) != shape and not (name not in stored and expected[name].data_ptr() in storages)
    ]
    problems += [f"{name} is not in the model" for name in stored if name not in expected]
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
