"""How the time and the memory of a step grow with samples, image size, length of texts, and modalities.

    python benchmarks/growth.py --preset small --threads 1 [--json figures.json]

One of the three is varied at a time, the other two have the middle value of their lists; all texts of a setting have
the same length. Each setting has a process of its own, whose memory is that of `pretrain_step.py`; seconds are the
middle of several steps. `needed` is the share of the machine's matrix peak, measured at the start, that the needed
operations take: where it stays the same, the count of `needed_flops.py` predicts the time of a step.

The last table is of the latent head alone: vectors of 784 values, each with an encoder and a decoder of two layers of
512, one component of the mixture drawn for each sample, or all that there are.
"""

import argparse
import json
import statistics
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from needed_flops import step_flops
from pretrain_step import DTYPES, Setting, fastest_dtype, matrix_peak, running, timed

from m3ae import M3AEConfig, M3AEForGeneration

SCHEDULES = ("separate", "joint")
VALUES, ROWS = 784, 128  # of a vector, and of a batch of them
MODALITIES = (2, 3, 4, 5)
DRAWN = {"one drawn": 1, "all": None}  # components of the mixture that are decoded for each sample


class Point(NamedTuple):
    """One setting of the three things that are varied."""

    samples: int
    image_size: int
    tokens: int


def main() -> None:
    """Run the command line."""
    parser = argparse.ArgumentParser(description="How a step's time and memory grow.")
    parser.add_argument("--preset", choices=["small", "base"], default="small", help="model")
    parser.add_argument("--dtype", choices=list(DTYPES), help="bf16 is autocast  [default: the faster one]")
    parser.add_argument("--dropout", type=float, default=0.1, help="of fusion and text encoder")
    parser.add_argument("--samples", type=int, nargs="+", default=[2, 4, 8, 16, 32])
    parser.add_argument("--image-size", type=int, nargs="+", default=[128, 160, 224, 288, 384])
    parser.add_argument("--tokens", type=int, nargs="+", default=[16, 32, 64, 128, 256])
    parser.add_argument("--steps", type=int, default=3, help="timed in each setting")
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--threads", type=int, default=torch.get_num_threads(), help="of PyTorch on a CPU")
    parser.add_argument("--json", type=Path, help="write the figures here too")
    arguments = parser.parse_args()
    torch.set_num_threads(arguments.threads)
    arguments.dtype = arguments.dtype or fastest_dtype(arguments.device)
    varied = {name: getattr(arguments, name) for name in Point._fields}
    middle = Point(**{name: values[len(values) // 2] for name, values in varied.items()})

    def setting(point: Point, schedule: str) -> Setting:
        run = (arguments.dtype, arguments.dropout, arguments.device, False, arguments.threads)
        return Setting(arguments.preset, point.samples, schedule, *run, point.image_size)

    peak = matrix_peak(setting(middle, "joint"))
    figures: dict[str, Any] = {"peak_flops_per_second": peak, "middle": middle._asdict()}
    print(f"{arguments.preset}, {arguments.dtype}, {peak / 1e12:.3f} TFLOP/s; middle: {middle._asdict()}")
    for name, values in varied.items():
        points = [middle._replace(**{name: value}) for value in values]
        figures[name] = [
            point._asdict()
            | {schedule: measure(setting(point, schedule), point.tokens, arguments.steps) for schedule in SCHEDULES}
            for point in points
        ]
        print("\n" + table(name, figures[name], peak), flush=True)
    figures["modalities"] = [
        {"modalities": count} | {kind: latent_seconds(count, drawn, arguments) for kind, drawn in DRAWN.items()}
        for count in MODALITIES
    ]
    print("\n" + modality_table(figures["modalities"]))
    if arguments.json:
        arguments.json.write_text(json.dumps(figures, indent=2) + "\n")


def measure(setting: Setting, tokens: int, steps: int) -> dict[str, float]:
    """Return the seconds, the needed operations and the bytes of the package's step."""
    lengths = [tokens] * setting.batch_size
    with running(setting, "package", [lengths]) as take_step:
        measured = [take_step() for _ in range(steps)]
    clock = "processor" if setting.device == "cpu" else "wall"
    return {
        "seconds": statistics.median(getattr(found, clock) for found in measured),
        "needed_flops": step_flops(setting.config(), lengths, setting.schedule),
        "memory_bytes": max(found.memory for found in measured),
    }


def latent_seconds(count: int, num_samples: int | None, arguments: argparse.Namespace) -> float:
    """Return the seconds of a step of a latent model of so many vectors, each missing in a fifth of the samples."""
    torch.manual_seed(0)
    device = torch.device(arguments.device)
    names = [f"vector_{number}" for number in range(count)]
    options = {"kind": "vector", "shape": [VALUES]}
    latent = {"num_samples": num_samples, "modalities": dict.fromkeys(names, options)}
    model = M3AEForGeneration(M3AEConfig.named("small", latent=latent)).train().to(device)
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-5, fused=True)
    batch = {name: {"values": torch.randn(ROWS, VALUES), "present": torch.rand(ROWS) > 0.2} for name in names}
    batch = {name: {key: value.to(device) for key, value in tensors.items()} for name, tensors in batch.items()}

    def step() -> None:
        with torch.autocast(device.type, torch.bfloat16, enabled=arguments.dtype == "bf16"):
            loss = model(batch).loss
        assert loss is not None
        loss.backward()
        optimizer.step()
        optimizer.zero_grad()

    step()  # warm up
    clock = 0 if device.type == "cpu" else 1
    return statistics.median(timed(step, arguments.device)[clock] for _ in range(5 * arguments.steps))


def table(name: str, rows: Sequence[dict[str, Any]], peak: float) -> str:
    """Lay one of the grids out, and for samples the straight lines through it."""
    header = f"| {name} | " + " | ".join(f"{schedule}: s/step | needed | GB" for schedule in SCHEDULES) + " |"
    lines = [header, "|---:" * (1 + 3 * len(SCHEDULES)) + "|"]
    for row in rows:
        cells = [str(row[name])]
        for schedule in SCHEDULES:
            found = row[schedule]
            share = found["needed_flops"] / found["seconds"] / peak
            cells += [f"{found['seconds']:.2f}", f"{100 * share:.0f} %", f"{found['memory_bytes'] / 1e9:.2f}"]
        lines.append("| " + " | ".join(cells) + " |")
    if name == "samples":
        for schedule in SCHEDULES:
            lines.append(f"\n{schedule}: " + ", ".join(straight_lines(rows, schedule)))
    return "\n".join(lines)


def straight_lines(rows: Sequence[dict[str, Any]], schedule: str) -> list[str]:
    """Say what a step takes whatever the number of samples, and what each sample adds."""
    samples = [row["samples"] for row in rows]
    lines = []
    for key, unit, factor in (("seconds", "s", 1.0), ("memory_bytes", "GB", 1e-9)):
        each, fixed = np.polyfit(samples, [row[schedule][key] * factor for row in rows], 1)
        lines.append(f"{fixed:.2f} {unit} + {each:.3f} {unit} a sample")
    return lines


def modality_table(rows: Sequence[dict[str, Any]]) -> str:
    """Lay the last table out."""
    lines = ["| modalities | " + " | ".join(f"{kind}: ms/step" for kind in DRAWN) + " |", "|---:|---:|---:|"]
    for row in rows:
        lines.append(f"| {row['modalities']} | " + " | ".join(f"{1e3 * row[kind]:.0f}" for kind in DRAWN) + " |")
    return "\n".join(lines)


if __name__ == "__main__":
    main()
