"""Whether a long run stays as it is: memory, open files, processes and threads of a training on phantoms, over time.

    python benchmarks/soak.py /tmp/soak --minutes 10 --figure docs/figures/soak.png

A run of `configs/pretrain/quickstart.yaml` with a process that loads data, and with a log, a validation and a
checkpoint every few steps, is watched from outside. The exit status is 1 if something grows after the warm-up, the
first third.
"""

import argparse
import json
import subprocess
import sys
import time
from pathlib import Path
from statistics import median

import matplotlib
import psutil

ROOT = Path(__file__).parents[1]
SETTINGS = (
    *("training.max_steps=1000000", "training.validate_every=20", "training.checkpoint_every=20"),
    *("training.log_every=5", "training.batch_size=8", "training.tracker=tensorboard", "optimizer.schedule=constant"),
    *("data.num_workers=1", "data.prepare.num_studies=200", "evaluation.retrieval_pairs=0"),
)
WARM_UP = 1 / 3
TOLERATED = {"memory, training": 0.02, "memory, loading": 0.02, "open files": 0.0, "processes": 0.0, "threads": 0.0}

Samples = list[dict[str, float]]


def main() -> None:
    """Run the command line."""
    parser = argparse.ArgumentParser(description="Watch a long run.")
    parser.add_argument("folder", type=Path, help="for the run and its data")
    parser.add_argument("--minutes", type=float, default=10)
    parser.add_argument("--every", type=float, default=2, help="seconds between two looks")
    parser.add_argument("--figure", type=Path)
    parser.add_argument("--json", type=Path, help="write all that was seen here")
    arguments = parser.parse_args()
    samples = watch(arguments.folder, arguments.minutes, arguments.every)
    if arguments.json:
        arguments.json.write_text(json.dumps(samples) + "\n")
    if arguments.figure:
        draw(samples, arguments.figure)
    changes = {name: growth(samples, name) for name in TOLERATED}
    steps = json.loads((arguments.folder / "run" / "metrics.jsonl").read_text().splitlines()[-1])["step"]
    print(json.dumps({"minutes": arguments.minutes, "steps": steps, "looks": len(samples), "growth": changes}))
    sys.exit(any(change > TOLERATED[name] for name, change in changes.items()))


def watch(folder: Path, minutes: float, every: float) -> Samples:
    """Train for so long; return what was seen, from the first step on."""
    run = folder / "run"
    own = [f"output_dir={run}", f"data.path={folder / 'phantoms'}", f"training.max_hours={minutes / 60}"]
    command = [sys.executable, ROOT / "scripts" / "pretrain.py", ROOT / "configs" / "pretrain" / "quickstart.yaml"]
    folder.mkdir(parents=True, exist_ok=True)
    samples: Samples = []
    with (folder / "log.txt").open("w") as log:
        training = subprocess.Popen([*command, *SETTINGS, *own], stdout=log, stderr=log)
        process, begun = psutil.Process(training.pid), None
        while training.poll() is None:
            if begun is None and (run / "metrics.jsonl").exists():
                begun = time.monotonic()
            if begun is not None and process.is_running():
                samples.append({"minutes": (time.monotonic() - begun) / 60, **look(process)})
            time.sleep(every)
    if training.returncode != 75:
        raise RuntimeError(f"the run ended with {training.returncode}: see {folder / 'log.txt'}")
    return [sample for sample in samples if sample["minutes"] < minutes]  # then it ends its processes


def look(process: psutil.Process) -> dict[str, float]:
    """Return what a process and its children hold now; memory in MB, and pages that they share count for each."""
    children = process.children(recursive=True)
    return {
        "memory, training": resident(process),
        "memory, loading": sum(map(resident, children)),
        "open files": process.num_fds(),
        "processes": len(children),
        "threads": process.num_threads(),
    }


def resident(process: psutil.Process) -> float:
    """Return the memory of a process in MB; 0 if it has ended."""
    try:
        return float(process.memory_info().rss) / 1e6
    except psutil.NoSuchProcess:
        return 0.0


def growth(samples: Samples, name: str) -> float:
    """Return by what share the last third exceeds the middle one: by its median."""
    third = len(samples) // 3
    middle, last = (median(sample[name] for sample in part) for part in (samples[third:-third], samples[-third:]))
    return last / middle - 1 if middle else last


def draw(samples: Samples, path: Path) -> None:
    """Draw all over time, the warm-up shaded."""
    matplotlib.use("Agg")
    import matplotlib.pyplot as plt

    figure, axes = plt.subplots(1, 2, figsize=(8, 2.6), layout="constrained")
    minutes = [sample["minutes"] for sample in samples]
    for axis, names in zip(
        axes, (("memory, training", "memory, loading"), ("open files", "processes", "threads")), strict=True
    ):
        for name in names:
            axis.plot(minutes, [sample[name] for sample in samples], label=name, linewidth=1)
        axis.axvspan(0, minutes[-1] * WARM_UP, color="0.92")
        axis.set(xlabel="minutes", ylim=(0, 1.3 * axis.get_ylim()[1]), xlim=(0, minutes[-1]))
        axis.legend(frameon=False, fontsize=8, ncols=3, loc="upper right")
        axis.spines[["top", "right"]].set_visible(False)
    axes[0].set_ylabel("resident, MB")
    axes[1].set_ylabel("number")
    figure.savefig(path, dpi=90)


if __name__ == "__main__":
    main()
