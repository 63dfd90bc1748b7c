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
from pydantic import BaseModel, TypeAdapter

from m3ae.data.prepared import MANIFEST
from m3ae.files import check_replaceable, file_sha256, write_text
from m3ae.options import parse_yaml
from m3ae.training.checkpoint import list_checkpoints
from m3ae.training.config import RunConfig, dump_config
from m3ae.training.progress import damage_named, read_metrics

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
        checkpoints = list_checkpoints(self.root)
        chosen = checkpoints if resume is True else list_checkpoints(resume) if resume else []
        if resume and resume is not True and not chosen:
            raise FileNotFoundError(
                f"no checkpoint in {resume}; expected a run folder or a checkpoints/step-* folder in it"
            )
        if checkpoints and (not chosen or chosen[-1].resolve() != checkpoints[-1].resolve()):
            raise FileExistsError(
                f"{self.root} holds a run up to {checkpoints[-1].name}; pass --resume to continue it, or another "
                "output_dir"
            )
        if not chosen and self.model.exists():
            raise FileExistsError(f"{self.root} holds a trained model without checkpoints; pass another output_dir")
        return chosen

    def describe_run(
        self, config: RunConfig, *, step: int, device: str, num_processes: int, checkpoint: Path | None = None
    ) -> list[str]:
        """Write `config.yaml`, and add this start of the run, after `step` steps, to `environment.json`.

        Returns:
            A warning for each prepared folder that has changed since the last start of the run of a checkpoint.
        """
        self.root.mkdir(parents=True, exist_ok=True)
        file = self.root / ENVIRONMENT
        starts = _read_starts(file) if step else []
        resumed = _read_starts(checkpoint.parents[1] / ENVIRONMENT) if checkpoint else []
        seeds = [config.training.seed + process for process in range(num_processes)]
        folders = (*(prepared.path for prepared in config.data.sets), *config.data.held_out)
        manifests = [folder / MANIFEST for folder in folders]  # each holds the checksums of its shards
        checksums = {str(manifest.parent): file_sha256(manifest) for manifest in manifests if manifest.is_file()}
        record = {"step": step, "device": device, "seeds": seeds, "data": checksums}
        starts.append(record | environment())
        write_text(file, json.dumps(starts, indent=2) + "\n")
        write_text(self.root / "config.yaml", dump_config(config))
        before = resumed[-1].get("data", {}) if resumed else {}
        changed = [folder for folder, digest in checksums.items() if before.get(folder, digest) != digest]
        return [f"warning: {folder} has changed since the run's last start: samples differ" for folder in changed]

    def describe(self) -> dict[str, Any]:
        """Return what the folder records: `finished`, `step`, `checkpoints`, `metrics` (the last), `starts`, `config`.

        Raises:
            FileNotFoundError: The folder holds no run.
            ValueError: A record is damaged.
        """
        config, environment = self.root / "config.yaml", self.root / ENVIRONMENT
        if missing := [file.name for file in (config, environment) if not file.is_file()]:
            raise FileNotFoundError(f"{self.root} holds no run: expected {' and '.join(missing)} in it")
        starts, settings, records = _read_starts(environment), read_settings(config), read_metrics(self.metrics)
        return {
            "finished": self.model.is_dir(),
            "step": records[-1]["step"] if records else 0,
            "checkpoints": [path.name for path in list_checkpoints(self.root)],
            "metrics": {name: value for name, value in records[-1].items() if name != "step"} if records else {},
            "starts": starts,
            "config": settings,
        }


class _Start(BaseModel):
    """What `m3ae run show` prints of a start in `environment.json`."""

    step: int
    time: str
    command: str
    device: str
    seeds: list[int]
    threads: int
    system: str
    python: str
    packages: dict[str, str | None]
    git_revision: str | None
    data: dict[str, str] = {}


class _Training(BaseModel):
    max_steps: int


class _Settings(BaseModel):
    """What `m3ae run show` prints of a `config.yaml`."""

    task: str
    training: _Training


def _read_starts(file: Path) -> list[dict[str, Any]]:
    """Return the starts in an `environment.json`, none of a missing file; raise ValueError for damage."""
    if not file.exists():
        return []
    with damage_named(file):
        starts: list[dict[str, Any]] = json.loads(file.read_text(encoding="utf-8"))
        TypeAdapter(list[_Start]).validate_python(starts)
    return starts


def read_settings(file: Path) -> dict[str, Any]:
    """Return the settings in a `config.yaml`; raise ValueError for damage."""
    with damage_named(file):
        settings: dict[str, Any] = parse_yaml(file.read_text(encoding="utf-8"), str(file))
        _Settings.model_validate(settings)
    return settings


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
    module = Path(__file__)
    # A virtual environment inside a checkout of something else must not lend us its revision.
    tracked = ["git", "-C", str(module.parent), "ls-files", "--error-unmatch", module.name]
    revision = ["git", "-C", str(module.parent), "describe", "--always", "--dirty", "--abbrev=40", "--exclude=*"]
    try:
        subprocess.run(tracked, check=True, capture_output=True)
        return subprocess.run(revision, check=True, capture_output=True, text=True).stdout.strip()
    except (OSError, subprocess.CalledProcessError):
        return None
