"""The folder of a run and what it records about itself."""

import json
import os
import platform
import re
import shlex
import subprocess
import sys
from datetime import UTC, datetime
from importlib import metadata
from pathlib import Path
from typing import Any

import torch
import yaml

from m3ae.data.prepared import MANIFEST
from m3ae.files import check_replaceable, file_sha256, write_text
from m3ae.training.checkpoint import list_checkpoints
from m3ae.training.config import RunConfig, dump_config
from m3ae.training.progress import read_metrics

ENVIRONMENT = "environment.json"
SECRET = "(?i:token|secret|pass|key|credential)"  # in the name of a variable, or of a part of an address
_PACKAGES = (
    *("m3ae", "accelerate", "datasets", "numpy", "pillow", "pydantic", "safetensors"),
    *("timm", "tokenizers", "torch", "torchvision", "transformers"),
)


class RunFolder:
    """The files and folders of a run.

    Attributes:
        root: The folder, which also holds `config.yaml` and `environment.json`.
        metrics: One JSON object a line: losses, learning rate, speed, validation metrics.
        tensorboard: Event files.
        checkpoints: The checkpoints that a run resumes from.
        best: The model with the best validation metric, in hub format.
        model: The last model, in hub format.
        figures: Loss curves and the task's pictures.
    """

    def __init__(self, root: Path) -> None:
        self.root = root
        self.metrics = root / "metrics.jsonl"
        self.tensorboard, self.checkpoints = root / "tensorboard", root / "checkpoints"
        self.best, self.model, self.figures = root / "best", root / "model", root / "figures"

    def starting_points(self, resume: Path | bool) -> list[Path]:
        """Return the checkpoints to start from, the newest last; none to start afresh.

        Args:
            resume: True for those here, if there are any; a path for a checkpoint, or for those of another run folder.

        Raises:
            FileExistsError: This folder holds a run that `resume` does not continue, or files of something else.
            FileNotFoundError: `resume` names a folder without a checkpoint.
        """
        for name in ("config.yaml", self.metrics.name, self.best.name, self.figures.name):
            if (self.root / name).exists() and not (self.root / ENVIRONMENT).exists():
                raise FileExistsError(f"{self.root} holds a {name} that is not of a run; pass another output_dir")
        check_replaceable(self.root / ENVIRONMENT, '"git_revision"')
        here = list_checkpoints(self.root)
        chosen = here if resume is True else list_checkpoints(resume) if resume else []
        if resume and resume is not True and not chosen:
            raise FileNotFoundError(
                f"no checkpoint in {resume}; expected a run folder or a checkpoints/step-* folder in it"
            )
        if here and (not chosen or chosen[-1].resolve() != here[-1].resolve()):
            raise FileExistsError(
                f"{self.root} holds a run up to {here[-1].name}; pass --resume to continue it, or another output_dir"
            )
        if not chosen and self.model.exists():
            raise FileExistsError(f"{self.root} holds a trained model without checkpoints; pass another output_dir")
        return chosen

    def describe_run(self, config: RunConfig, *, step: int, device: str, num_processes: int) -> None:
        """Write `config.yaml`, and add this start of the run, after `step` steps, to `environment.json`."""
        self.root.mkdir(parents=True, exist_ok=True)
        file = self.root / ENVIRONMENT
        starts = json.loads(file.read_text(encoding="utf-8")) if step and file.exists() else []
        seeds = [config.training.seed + process for process in range(num_processes)]
        folders = (*(prepared.path for prepared in config.data.sets), *config.data.held_out)
        manifests = [folder / MANIFEST for folder in folders]  # each holds the checksums of its shards
        checksums = {str(manifest.parent): file_sha256(manifest) for manifest in manifests if manifest.is_file()}
        record = {"step": step, "device": device, "seeds": seeds, "data": checksums}
        starts.append(record | environment())
        write_text(file, json.dumps(starts, indent=2) + "\n")
        write_text(self.root / "config.yaml", dump_config(config))

    def describe(self) -> dict[str, Any]:
        """Return what the folder records: `finished`, `step`, `checkpoints`, `metrics` (the last), `starts`, `config`.

        Raises:
            FileNotFoundError: The folder holds no run.
            ValueError: Its records are damaged.
        """
        config, environment = self.root / "config.yaml", self.root / ENVIRONMENT
        if missing := [file.name for file in (config, environment) if not file.is_file()]:
            raise FileNotFoundError(f"{self.root} holds no run: expected {' and '.join(missing)} in it")
        try:
            starts = json.loads(environment.read_text(encoding="utf-8"))
            settings = yaml.safe_load(config.read_text(encoding="utf-8"))
            records = read_metrics(self.metrics)
        except (ValueError, yaml.YAMLError) as error:
            raise ValueError(f"the records in {self.root} are damaged: {error}") from error
        return {
            "finished": self.model.is_dir(),
            "step": records[-1]["step"] if records else 0,
            "checkpoints": [path.name for path in list_checkpoints(self.root)],
            "metrics": {name: value for name, value in records[-1].items() if name != "step"} if records else {},
            "starts": starts,
            "config": settings,
        }


def environment() -> dict[str, Any]:
    """Return what is needed to repeat a run: time, command, versions, revision; `M3AE_IMPORT` as the only variable."""
    imports = [f"M3AE_IMPORT={files}"] if (files := os.environ.get("M3AE_IMPORT")) else []
    return {
        "time": datetime.now(UTC).isoformat(timespec="seconds"),
        "command": without_secrets(shlex.join([*imports, *sys.argv])),
        "python": platform.python_version(),
        "system": f"{platform.system()} {platform.machine()}",
        "threads": torch.get_num_threads(),
        "cpu_count": os.cpu_count(),
        "packages": {name: _version(name) for name in _PACKAGES},
        "git_revision": _git_revision(),
    }


def without_secrets(text: str) -> str:
    """Return a text without the values of environment variables of telling names, and without secrets in addresses."""
    for name, value in os.environ.items():
        if re.search(SECRET, name) and len(value) >= 8:
            text = text.replace(value, f"${name}")
    text = re.sub(r"//[^/\s@]+@", "//***@", text)
    return re.sub(rf"([?&][\w.-]*(?:{SECRET}|sig|auth)[\w.-]*=)[^&#\s'\"]+", r"\1***", text)


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
