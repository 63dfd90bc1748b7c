"""What has to be seen on a GPU, in one command of at most ten minutes that needs no network.

    bash benchmarks/gpu.sh [--output FOLDER] [--small]

- Every engine trains through `accelerate launch` on one GPU in float32; its losses are those of one CPU process.
- A step of `base` at 288 px in bf16: samples a second, the share of the matrix peak that needed operations take, and
  peak memory; beside it the published procedure, a latent head, `torch.compile`, and CUDA graphs.
- The loop with its loader: how busy the GPU is.
- A latent model of volumes and their classes: samples a second.

A part that fails or takes too long is named, and the others go on. `--small` is the form for CI, on a CPU: tiny
models, one engine, nothing compiled. `gpu.json` and `gpu.md` in the folder hold the figures. The exit status is 1 if a
part has failed or losses differ.
"""

import argparse
import importlib.util
import json
import os
import statistics
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import torch
import yaml

ROOT = Path(__file__).parents[1]
ENGINES = ("ddp", "fsdp2", "zero1", "zero2", "zero3")
TOLERANCE = 1e-3  # of a loss in float32, whose sums a GPU forms in another order
STEPS = 6
VOLUMES = """
import sys
import numpy as np
import m3ae
folder, count, side, steps = sys.argv[1], *map(int, sys.argv[2:])
voxels = np.random.default_rng(0).random((count, 1, side, side, side), np.float32)
data = m3ae.ArrayDataset({"scan": voxels, "kind": ["a", "b"] * (count // 2)}, {"scan": {"patch_size": 4}})
m3ae.train_generation(data, folder, kind="mopoe", size=16, steps=steps, batch_size=count // 2)
"""
Limit = float | None  # seconds for a command; none on a CPU, where other work may slow it down


class Machine:
    """The parts, on a GPU or in their small form.

    Args:
        output: The folder for everything that is written.
        small: Whether this is the form for a CPU.
    """

    def __init__(self, output: Path, small: bool) -> None:
        self.output, self.small = output, small
        self.device = "cpu" if small else "cuda"
        self.batch_size = 2 if small else 128

    def engines(self, limit: Limit) -> dict[str, Any]:
        """Return the largest relative difference of each engine's losses from those of one CPU process."""
        expected = self.losses("cpu", [sys.executable], limit, cpu=True)
        names = ENGINES[:1] if self.small else ENGINES
        differences: dict[str, Any] = {}
        for name in names:
            if name.startswith("zero") and importlib.util.find_spec("deepspeed") is None:
                differences[name] = "deepspeed is not installed"
                continue
            options = ["--config_file", f"configs/accelerate/{name}.yaml", "--num_processes", "1"]
            options += ["--main_process_port", "0", *(["--cpu"] if self.small else [])]
            losses = self.losses(name, [sys.executable, "-m", "accelerate.commands.launch", *options], limit)
            pairs = zip(losses, expected, strict=True)
            differences[name] = max(abs(loss - other) / abs(other) for loss, other in pairs)
        return differences

    def losses(self, name: str, launcher: list[str], limit: Limit, *, cpu: bool = False) -> list[float]:
        """Train a tiny model on phantoms, and return the loss of every step."""
        config = self.config(name, "tiny", 32, studies=64, steps=STEPS, mixed_precision="no", batch_size=8)
        environment = {"ACCELERATE_USE_CPU": "true"} if cpu else {}
        run([*launcher, "-m", "m3ae", "train", str(config)], limit, environment)
        return [record["training/loss"] for record in self.records(name)]

    def config(self, name: str, size: str, pixels: int, *, studies: int, steps: int, **training: Any) -> Path:
        """Write the configuration of a run, and return its path."""
        dropout = {"hidden_dropout_prob": 0.0, "attention_probs_dropout_prob": 0.0}
        image = {"image_size": pixels} | ({"patch_size": 8} if pixels < 64 else {})
        settings = {
            "task": "pretraining",
            "output_dir": str(self.output / name),
            "data": {
                "path": str(self.output / f"phantoms-{pixels}"),
                "prepare": {"name": "phantom", "num_studies": studies, "image_size": pixels},
                "image_columns": ["frontal"],
                "max_text_length": 64,
            },
            "tokenizer": {"vocab_size": 400},
            "model": {
                "size": size,
                "overrides": {"itc_weight": 1.0, "image_config": image, "text_config": dropout, **dropout},
            },
            "optimizer": {"lr": 1e-4, "warmup": 1},
            "training": {
                "max_steps": steps,
                "log_every": 1,
                "validate_every": None,
                "checkpoint_every": steps,
                "tracker": "none",
                **training,
            },
            "evaluation": {"retrieval_pairs": 4},
        }
        path = self.output / f"{name}.yaml"
        path.write_text(yaml.safe_dump(settings))
        return path

    def records(self, name: str) -> list[dict[str, Any]]:
        """Return the lines of a run's metrics that hold a training loss."""
        lines = (self.output / name / "metrics.jsonl").read_text().splitlines()
        return [record for record in map(json.loads, lines) if "training/loss" in record]

    def step(self, limit: Limit) -> dict[str, Any]:
        """Time a step beside the published procedure and a latent head, with half the samples if they do not fit."""
        while True:
            try:
                return self.pretrain_step("step", ["--baseline", "--also", "latent"], limit)
            except subprocess.CalledProcessError:
                if self.batch_size <= 8:
                    raise
                self.batch_size //= 2

    def compiled(self, limit: Limit) -> dict[str, Any]:
        """Time a compiled step beside one that is not, and beside CUDA graphs."""
        return self.pretrain_step("compiled", ["--compile", "--also", "eager", "graphs"], limit)

    def pretrain_step(self, name: str, options: list[str], limit: Limit) -> dict[str, Any]:
        """Return the figures of `pretrain_step.py`."""
        file = self.output / f"{name}.json"
        preset, dtype, count = ("tiny", "float32", "1") if self.small else ("base", "bf16", "8")
        sizes = ["--preset", preset, "--batch-size", str(self.batch_size), "--dtype", dtype]
        counts = ["--steps", count, "--rounds", "1" if self.small else "3", "--device", self.device]
        script = [sys.executable, "benchmarks/pretrain_step.py", *sizes, *counts, "--bucketed"]
        run([*script, *options, "--json", str(file)], limit)
        figures: dict[str, Any] = json.loads(file.read_text())
        return figures

    def loop(self, limit: Limit) -> dict[str, Any]:
        """Train with the loader, and return samples a second and the share of the time in which the GPU computes."""
        size, pixels, steps = ("tiny", 32, 4) if self.small else ("base", 288, 40)
        precision = "no" if self.small else "bf16"
        options: dict[str, Any] = {"mixed_precision": precision, "batch_size": self.batch_size}
        config = self.config("loop", size, pixels, studies=64 if self.small else 512, steps=steps, **options)
        run([sys.executable, "-m", "m3ae", "prepare", *self.prepare_options(config)], limit)
        with Utilisation(None if self.small else 0.5) as utilisation:
            run([sys.executable, "-m", "m3ae", "train", str(config)], limit, {"ACCELERATE_USE_CPU": str(self.small)})
        speeds = [record["samples_per_second"] for record in self.records("loop")[steps // 2 :]]
        return {"samples_per_second": statistics.median(speeds), "gpu_busy_percent": utilisation.median()}

    def volumes(self, limit: Limit) -> dict[str, Any]:
        """Train a latent model of volumes from memory, and return its samples a second."""
        sizes = ("8", "16", "20") if self.small else ("64", "96", "100")  # volumes, voxels a side, steps
        environment = {"ACCELERATE_USE_CPU": str(self.small)}
        run([sys.executable, "-c", VOLUMES, str(self.output / "volumes"), *sizes], limit, environment)
        return {"samples_per_second": statistics.median(r["samples_per_second"] for r in self.records("volumes"))}

    def prepare_options(self, config: Path) -> list[str]:
        """Return the options of `m3ae prepare` for a run's data, which are made before the GPU is watched."""
        data = yaml.safe_load(config.read_text())["data"]
        named = {name.replace("_", "-"): value for name, value in data["prepare"].items() if name != "name"}
        options = [text for name, value in named.items() for text in (f"--{name}", str(value))]
        return [data["prepare"]["name"], "--output", data["path"], *options]


class Utilisation:
    """Asks the GPU, while a block runs, how busy it is.

    Args:
        every: Seconds between two questions; None never asks.
    """

    def __init__(self, every: float | None) -> None:
        self.every, self.values, self.ended = every, list[float](), threading.Event()

    def __enter__(self) -> "Utilisation":
        self.thread = threading.Thread(target=self._watch)
        self.thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self.ended.set()
        self.thread.join()

    def _watch(self) -> None:
        command = ["nvidia-smi", "--query-gpu=utilization.gpu", "--format=csv,noheader,nounits"]
        while self.every is not None and not self.ended.wait(self.every):
            output = subprocess.run(command, capture_output=True, text=True, check=False).stdout.split()
            self.values += [float(value) for value in output[:1]]

    def median(self) -> float | None:
        """Return the middle value, before and after training left out."""
        busy = [value for value in self.values if value > 0]
        return statistics.median(busy) if busy else None


def run(command: Sequence[str], limit: Limit, environment: dict[str, str] | None = None) -> None:
    """Run a command from the repository's root; the end of its output is printed if it fails."""
    path = os.pathsep.join([str(ROOT), *filter(None, [os.environ.get("PYTHONPATH")])])
    settings = os.environ | {"HF_HUB_OFFLINE": "1", "PYTHONPATH": path} | (environment or {})
    started = time.monotonic()
    try:
        subprocess.run(command, cwd=ROOT, env=settings, timeout=limit, capture_output=True, text=True, check=True)
    except subprocess.CalledProcessError as error:
        print(f"{' '.join(command)}\n{error.stdout[-1000:]}\n{error.stderr[-3000:]}", file=sys.stderr, flush=True)
        raise
    print(f"{time.monotonic() - started:6.1f} s  {' '.join(command[1:6])}", file=sys.stderr, flush=True)


def table(figures: dict[str, Any]) -> str:
    """Lay the figures out as Markdown."""
    lines = [f"{figures['device']}, torch {figures['torch']}", "", "| engine | losses differ by |", "|---|---:|"]
    for name, difference in figures.get("engines", {}).items():
        lines.append(f"| {name} | {difference if isinstance(difference, str) else f'{difference:.1e}'} |")
    lines += ["", "| step | samples | samples/s | needed share of the peak | peak GB |", "|---|---:|---:|---:|---:|"]
    for part in ("step", "compiled"):
        found = figures.get(part, {})
        for name, values in found.items():
            if isinstance(values, dict) and "samples_per_second" in values:
                label = "compiled" if (part, name) == ("compiled", "package") else name
                speed, share = values["samples_per_second"], values["share_of_peak"]
                memory = values["peak_memory_bytes"] / 1e9
                lines.append(f"| {label} | {found['batch_size']} | {speed:.1f} | {share:.0%} | {memory:.1f} |")
    if loop := figures.get("loop"):
        busy = "" if loop["gpu_busy_percent"] is None else f", GPU busy {loop['gpu_busy_percent']:.0f} % of the time"
        lines += ["", f"loop with loader: {loop['samples_per_second']:.1f} samples/s{busy}"]
    if volumes := figures.get("volumes"):
        lines += ["", f"latent model of volumes: {volumes['samples_per_second']:.1f} samples/s"]
    lines += ["", *(f"FAILED {name}: {problem}" for name, problem in figures["failed"].items())]
    return "\n".join(lines).rstrip() + "\n"


def main(arguments: Sequence[str] | None = None) -> int:
    """Run all parts, and return the exit status."""
    parser = argparse.ArgumentParser(description="What has to be seen on a GPU.")
    parser.add_argument("--output", type=Path, default=Path("runs/gpu"), help="folder for figures and runs")
    parser.add_argument("--small", action="store_true", help="the form for CI, on a CPU")
    options = parser.parse_args(arguments)
    if not options.small and not torch.cuda.is_available():
        parser.error("there is no GPU: --small runs on a CPU")
    output = options.output.resolve()
    output.mkdir(parents=True, exist_ok=True)
    machine = Machine(output, options.small)
    device = "CPU" if options.small else torch.cuda.get_device_name()
    figures: dict[str, Any] = {"device": device, "torch": torch.__version__, "failed": {}}
    parts: dict[str, tuple[Callable[[Limit], dict[str, Any]], float]] = {
        "engines": (machine.engines, 60),  # seconds for each command
        "step": (machine.step, 90),
        "loop": (machine.loop, 90),
        "volumes": (machine.volumes, 60),
        "compiled": (machine.compiled, 240),  # last: it takes longest
    }
    for name in [name for name in parts if not (options.small and name == "compiled")]:
        part, limit = parts[name]
        try:
            figures[name] = part(None if options.small else limit)
        except Exception as error:  # whatever a part raises, the others are wanted
            figures["failed"][name] = f"{type(error).__name__}: {str(error)[:300]}"
        (output / "gpu.json").write_text(json.dumps(figures, indent=2) + "\n")
        (output / "gpu.md").write_text(table(figures))
    print(table(figures))
    differences = [value for value in figures.get("engines", {}).values() if not isinstance(value, str)]
    return int(bool(figures["failed"]) or any(value > TOLERANCE for value in differences))


if __name__ == "__main__":
    sys.exit(main())
