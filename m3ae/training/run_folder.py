"""The folder of a run and what it records about itself."""

import json
import os
import platform
import shlex
import subprocess
import sys
from dataclasses import dataclass
from datetime import UTC, datetime
from importlib import metadata
from pathlib import Path
from typing import Any

import torch

from m3ae.training.checkpoint import find_checkpoint
from m3ae.training.config import RunConfig, dump_config

_PACKAGES = (
    "m3ae",
    "accelerate",
    "datasets",
    "numpy",
    "pillow",
    "pydantic",
    "safetensors",
    "timm",
    "tokenizers",
    "torch",
    "torchvision",
    "transformers",
)


@dataclass(frozen=True)
class RunFolder:
    """Where a run writes.

    ```
    config.yaml  environment.json  metrics.jsonl  tensorboard/  checkpoints/  best/  model/  figures/
    ```
    """

    root: Path

    @property
    def metrics(self) -> Path:
        """One JSON object a line: losses, learning rate, speed, validation metrics."""
        return self.root / "metrics.jsonl"

    @property
    def tensorboard(self) -> Path:
        """Event files."""
        return self.root / "tensorboard"

    @property
    def checkpoints(self) -> Path:
        """What a run resumes from."""
        return self.root / "checkpoints"

    @property
    def best(self) -> Path:
        """The model with the best validation metric, in hub format."""
        return self.root / "best"

    @property
    def model(self) -> Path:
        """The last model, in hub format."""
        return self.root / "model"

    @property
    def figures(self) -> Path:
        """Loss curves and the task's pictures."""
        return self.root / "figures"

    def starting_point(self, resume: Path | bool) -> Path | None:
        """Return the checkpoint to start from, or None to start afresh.

        Args:
            resume: True for the newest checkpoint here, if there is one; a path for a checkpoint or another run
                folder's newest one.

        Raises:
            FileExistsError: This folder holds a run that `resume` does not continue.
            FileNotFoundError: `resume` names a folder without a checkpoint.
        """
        newest = find_checkpoint(self.root)
        chosen = newest if resume is True else find_checkpoint(resume) if resume else None
        if resume and resume is not True and chosen is None:
            raise FileNotFoundError(
                f"no checkpoint in {resume}; expected a run folder or a checkpoints/step-* folder in it"
            )
        if newest and (chosen is None or chosen.resolve() != newest.resolve()):
            raise FileExistsError(
                f"{self.root} holds a run up to {newest.name}; pass --resume to continue it, or another output_dir"
            )
        if chosen is None and self.model.exists():
            raise FileExistsError(f"{self.root} holds a trained model without checkpoints; pass another output_dir")
        return chosen

    def describe_run(self, config: RunConfig, *, step: int, device: str, num_processes: int) -> None:
        """Write `config.yaml`, and add this start of the run to `environment.json`.

        Args:
            config: The configuration.
            step: Optimiser steps already made; 0 starts the record afresh.
            device: The device in words.
            num_processes: Number of processes.
        """
        self.root.mkdir(parents=True, exist_ok=True)
        (self.root / "config.yaml").write_text(dump_config(config), encoding="utf-8")
        file = self.root / "environment.json"
        starts = json.loads(file.read_text(encoding="utf-8")) if step and file.exists() else []
        seeds = [config.training.seed + process for process in range(num_processes)]
        starts.append({"step": step, "device": device, "seeds": seeds, **environment()})
        file.write_text(json.dumps(starts, indent=2) + "\n", encoding="utf-8")


def environment() -> dict[str, Any]:
    """Return what is needed to repeat a run: time, command, versions, revision; no environment variables."""
    return {
        "time": datetime.now(UTC).isoformat(timespec="seconds"),
        "command": shlex.join(sys.argv),
        "python": platform.python_version(),
        "system": f"{platform.system()} {platform.machine()}",
        "threads": torch.get_num_threads(),
        "cpu_count": os.cpu_count(),
        "packages": {name: _version(name) for name in _PACKAGES},
        "git_revision": _git_revision(),
    }


def _version(package: str) -> str | None:
    try:
        return metadata.version(package)
    except metadata.PackageNotFoundError:
        return None


def _git_revision() -> str | None:
    """Return the revision of the checkout this file belongs to; None for an installed package."""
    here = Path(__file__)
    # A virtual environment inside a checkout of something else must not lend us its revision.
    tracked = ["git", "-C", str(here.parent), "ls-files", "--error-unmatch", here.name]
    revision = ["git", "-C", str(here.parent), "describe", "--always", "--dirty", "--abbrev=40", "--exclude=*"]
    try:
        subprocess.run(tracked, check=True, capture_output=True)
        return subprocess.run(revision, check=True, capture_output=True, text=True).stdout.strip()
    except (OSError, subprocess.CalledProcessError):
        return None
