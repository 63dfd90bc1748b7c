"""A plan for pre-training on 1,000 GPUs and 100 million pairs, in arithmetic: the tables of `docs/scale.md`.

    python benchmarks/scale.py docs/scale.md

What is measured comes from `scale_measure.py`, on one core of an AMD EPYC (Zen 4) that other work shared; what is
assumed is a data sheet's or a guess, and is said to be so.
"""

import re
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from math import ceil, sqrt
from pathlib import Path

import torch
from needed_flops import step_flops

from m3ae import M3AEConfig, M3AEForPreTraining
from m3ae.data.shards import ROWS_PER_GROUP, ROWS_PER_SHARD

GB, TB, HOUR = 1e9, 1e12, 3600


@dataclass(frozen=True)
class Constant:
    """A number with its origin: `measured` or `assumed`."""

    value: float
    unit: str
    what: str
    origin: str


def measured(value: float, unit: str, what: str) -> Constant:
    """Return what `scale_measure.py` found, or `needed_flops.py` counted."""
    return Constant(value, unit, what, "measured")


def assumed(value: float, unit: str, what: str) -> Constant:
    """Return what nobody here has measured."""
    return Constant(value, unit, what, "assumed")


CONSTANTS = {
    "gpus": assumed(1000, "", "GPUs, 8 a machine"),
    "pairs": assumed(100e6, "", "pairs, one image and one text each"),
    "epochs": assumed(10, "", "passes over them"),
    "batch": assumed(32, "", "pairs of a GPU in a step, one micro-batch"),
    "tokens": assumed(32, "", "tokens of a text, after bucketing by length"),
    "peak": assumed(989e12, "FLOP/s", "bf16 peak of a GPU (H100 SXM, data sheet)"),
    "share": assumed(0.35, "", "share of the peak that a step reaches"),
    "device_memory": assumed(80 * GB, "B", "memory of a GPU"),
    "inside": assumed(450 * GB, "B/s", "link of a GPU to the others of its machine, each way (NVLink 4, data sheet)"),
    "between": assumed(50 * GB, "B/s", "network of a GPU, each way (400 Gbit/s)"),
    "link_share": assumed(0.7, "", "share of these that a collective reaches"),
    "cores": assumed(12, "", "CPU cores beside a GPU"),
    "disk": assumed(100 * GB, "B/s", "shared file system, all machines together"),
    "writer": assumed(1 * GB, "B/s", "one process writing to it"),
    "gpu_life": assumed(50_000, "h", "between two failures of a GPU (Llama 3: 419 in 54 days of 16,384)"),
    "restart": assumed(300, "s", "from a failure to the first step after it"),
    "preparing_machines": assumed(20, "", "machines of 64 cores that prepare"),
    "activations": measured(636.4e6, "B", "kept for the backward pass of a pair (`base`, 288 px, bf16, 32 tokens)"),
    "stored": measured(50_748, "B", "of a prepared pair (ROCOv2, 260 pairs, shorter side 384 px, JPEG 95)"),
    "loaded": measured(277, "1/s", "pairs that a core reads, decodes, crops to 288 px, tokenizes and collates"),
    "prepared": measured(113, "1/s", "pairs that a core prepares (ROCOv2)"),
    "listed": measured(1_589, "B", "of a source's row in memory while it is prepared"),
    "slice": measured(136, "B", "of one of the slices that a stream shuffles"),
    "footer": measured(106e-6, "s", "to open a shard whose footer is in memory"),
    "disk_here": measured(39e6, "B/s", "a checkpoint's file to this machine's disk, other work beside it"),
    "hashed": measured(1.45e9, "B/s", "SHA-256 of one core"),
}
ENGINES = ("DDP", "ZeRO-1", "ZeRO-2", "ZeRO-3", "FSDP2")
WORD = 4  # bytes: weights, gradients and moments are float32, autocast is bf16
GPUS_PER_MACHINE = 8


@dataclass(frozen=True)
class Plan:
    """What follows from the constants.

    Attributes:
        values: The constants by name.
        parameters: Of the model.
        largest: Parameters of its largest layer, which sharding engines put together at once.
        flops: Needed operations of a pair, forward and backward.
    """

    values: dict[str, float]
    parameters: int
    largest: int
    flops: float

    def memory(self, engine: str) -> dict[str, float]:
        """Return bytes by use on one GPU.

        DDP keeps everything, and buckets beside the gradients. ZeRO-1 shards the moments, ZeRO-2 the gradients too
        (Rajbhandari et al. 2020), ZeRO-3 and FSDP2 the weights too, of which two layers at a time are whole, beside
        the whole model that is measured and saved.
        """
        whole, n = WORD * self.parameters, self.values["gpus"]
        weights, gradients, moments = {
            "DDP": (whole, 2 * whole, 2 * whole),
            "ZeRO-1": (whole, whole, 2 * whole / n),
            "ZeRO-2": (whole, whole / n, 2 * whole / n),
        }.get(engine, (whole + whole / n + 2 * WORD * self.largest, whole / n + WORD * self.largest, 2 * whole / n))
        activations = self.values["batch"] * self.values["activations"]
        return {"weights": weights, "gradients": gradients, "moments": moments, "activations": activations}

    @property
    def compute_seconds(self) -> float:
        """Of a step."""
        return self.values["batch"] * self.flops / (self.values["peak"] * self.values["share"])

    def traffic(self, engine: str) -> float:
        """Return bytes that a GPU sends in a step: two passes over the gradients, or three with sharded weights."""
        return (2 if engine in ("DDP", "ZeRO-1", "ZeRO-2") else 3) * WORD * self.parameters

    def traffic_seconds(self, engine: str) -> float:
        """Return the time of that, first inside a machine, then, an eighth for each GPU, between machines."""
        machines = self.values["gpus"] / GPUS_PER_MACHINE
        inside = (1 - 1 / GPUS_PER_MACHINE) / self.values["inside"]
        between = (1 - 1 / machines) / (GPUS_PER_MACHINE * self.values["between"])
        return self.traffic(engine) * (inside + between) / self.values["link_share"]

    def step_seconds(self, engine: str) -> float:
        """Return the time of a step: what is sent hides behind the backward pass, two thirds of the computing."""
        exposed = max(0.0, self.traffic_seconds(engine) - 2 / 3 * self.compute_seconds)
        return self.compute_seconds + exposed

    @property
    def steps(self) -> int:
        """Of the run."""
        return ceil(self.values["epochs"] * self.values["pairs"] / (self.values["gpus"] * self.values["batch"]))

    @property
    def pairs_per_second(self) -> float:
        """That one GPU takes in."""
        return self.values["batch"] / self.step_seconds("DDP")

    @property
    def checkpoint_bytes(self) -> float:
        """Weights and two moments."""
        return 3 * WORD * self.parameters

    def checkpoint_seconds(self, writers: int) -> float:
        """Return how long all wait for a checkpoint: written by some processes, hashed by one."""
        rate = min(writers * self.values["writer"], self.values["disk"])
        return self.checkpoint_bytes * (1 / rate + 1 / self.values["hashed"])

    @property
    def seconds_between_failures(self) -> float:
        """Of the whole run."""
        return self.values["gpu_life"] * HOUR / self.values["gpus"]

    def interval(self, writers: int) -> float:
        """Return the seconds between checkpoints that lose least (Young 1974)."""
        return sqrt(2 * self.checkpoint_seconds(writers) * self.seconds_between_failures)

    def lost_share(self, writers: int) -> float:
        """Return the share of the time that goes into checkpoints, repeated steps and restarts."""
        interval = self.interval(writers)
        repeated = (interval / 2 + self.values["restart"]) / self.seconds_between_failures
        return self.checkpoint_seconds(writers) / interval + repeated

    def contrast_bytes(self) -> float:
        """Return what the similarities of all texts and images of a step take, with softmax and gradient."""
        return 3 * WORD * (self.values["gpus"] * self.values["batch"]) ** 2


def plan() -> Plan:
    """Return the plan for `base` at 288 px."""
    config = M3AEConfig.named("base")
    with torch.device("meta"):
        model = M3AEForPreTraining(config)
    layers = [layer for blocks in model.modules() if isinstance(blocks, torch.nn.ModuleList) for layer in blocks]
    values = {name: constant.value for name, constant in CONSTANTS.items()}
    flops = step_flops(config, [int(values["tokens"])], "separate")
    return Plan(values, size_of(model), max(map(size_of, layers)), flops)


def size_of(module: torch.nn.Module) -> int:
    """Return the number of parameters."""
    return sum(parameter.numel() for parameter in module.parameters())


def tables(found: Plan) -> dict[str, str]:
    """Return the Markdown tables of `docs/scale.md` by name."""
    failures = f"a failure every {found.seconds_between_failures / HOUR:.0f} h"
    return {
        "constants": table(("what", "value", "origin"), constant_rows(found)),
        "memory": table(("GB on a GPU", "weights", "gradients", "moments", "activations", "all"), memory_rows(found)),
        "communication": table(
            ("a step", "GB sent by a GPU", "ms for that", "ms computing", "ms in all"), traffic_rows(found)
        ),
        "data": table(("data", ""), data_rows(found)),
        "run": table(("run", ""), run_rows(found)),
        "checkpoints": table((failures, "written by 1 process", "by 64"), checkpoint_rows(found)),
    }


def constant_rows(found: Plan) -> list[list[str]]:
    """Return every number that the plan rests on."""
    rows = [[constant.what, si(constant.value, constant.unit), constant.origin] for constant in CONSTANTS.values()]
    return [
        *rows,
        ["parameters of `base`", si(found.parameters), "counted"],
        ["needed operations of a pair, `separate`, forward and backward", si(found.flops, "FLOP"), "counted"],
    ]


def memory_rows(found: Plan) -> list[list[str]]:
    """Return the memory of a GPU by engine."""
    rows = []
    for engine in ENGINES:
        uses = found.memory(engine).values()
        share = sum(uses) / found.values["device_memory"]
        rows.append([engine, *(f"{use / GB:.2f}" for use in uses), f"{sum(uses) / GB:.1f} ({share:.0%})"])
    return rows


def traffic_rows(found: Plan) -> list[list[str]]:
    """Return what is sent in a step, and the time of the step, by engine."""
    rows = []
    for engine in ENGINES:
        times = (found.traffic_seconds(engine), found.compute_seconds, found.step_seconds(engine))
        rows.append([engine, f"{found.traffic(engine) / GB:.1f}", *(f"{1e3 * seconds:.0f}" for seconds in times)])
    return rows


def data_rows(found: Plan) -> list[list[str]]:
    """Return what 100 million pairs ask of disks, cores and memory."""
    v = found.values
    pairs, machines, rate = v["pairs"], v["preparing_machines"], found.pairs_per_second
    shards, slices = ceil(pairs / ROWS_PER_SHARD), ceil(pairs / ROWS_PER_GROUP)
    core_hours = pairs / v["prepared"] / HOUR
    loaders = GPUS_PER_MACHINE * ceil(rate / v["loaded"])
    return [
        ["stored", f"{pairs * v['stored'] / TB:.1f} TB"],
        [f"shards of {ROWS_PER_SHARD:,} rows", f"{shards:,} of {ROWS_PER_SHARD * v['stored'] / 1e6:.0f} MB"],
        ["preparing", f"{core_hours:,.0f} core hours"],
        [f"on {machines:.0f} machines of 64 cores", f"{60 * core_hours / (machines * 64):.0f} min"],
        ["shards of one of them (`--shard-range`)", f"{ceil(shards / machines):,}"],
        ["memory of each for the list of all rows", f"{pairs * v['listed'] / GB:.0f} GB"],
        ["pairs a second that a GPU takes in", f"{rate:,.0f}"],
        ["that all take in", f"{rate * v['gpus']:,.0f}"],
        ["cores that load for a GPU", f"{rate / v['loaded']:.1f} of {v['cores']:.0f}"],
        ["read by all", f"{rate * v['gpus'] * v['stored'] / GB:.0f} GB/s of {v['disk'] / GB:.0f}"],
        ["footers that all processes open at the start", f"{shards * v['gpus'] / 1e6:.0f} million"],
        ["a process, if they are in memory", f"{shards * v['footer']:.1f} s"],
        ["slices that each loading process shuffles", f"{slices:,}, {slices * v['slice'] / 1e6:.0f} MB"],
        [f"all {loaders} loading processes of a machine", f"{slices * v['slice'] * loaders / GB:.1f} GB"],
    ]


def run_rows(found: Plan) -> list[list[str]]:
    """Return the size of a step and of the run."""
    v = found.values
    pairs = v["epochs"] * v["pairs"]
    hidden = found.traffic_seconds("DDP") / (2 / 3 * found.compute_seconds)
    return [
        ["pairs of a step", f"{v['gpus'] * v['batch']:,.0f}"],
        ["steps", f"{found.steps:,}"],
        ["time of the run, nothing lost", f"{pairs / (v['gpus'] * found.pairs_per_second) / 60:.0f} min"],
        ["the same on 64 GPUs", f"{pairs / (64 * found.pairs_per_second) / HOUR:.1f} h"],
        ["the published 25.6 million pairs on 8 GPUs", f"{25.6e6 / (8 * found.pairs_per_second) / HOUR:.1f} h"],
        ["pairs of a GPU from which on DDP hides what it sends", f"{ceil(v['batch'] * hidden)}"],
        ["similarities of a step on every GPU, if `itc_weight` is not 0", f"{found.contrast_bytes() / GB:.1f} GB"],
    ]


def checkpoint_rows(found: Plan) -> list[list[str]]:
    """Return size and cost of checkpoints, by the number of processes that write."""
    cells = {
        "size": lambda writers: f"{found.checkpoint_bytes / GB:.1f} GB",
        "all wait": lambda writers: f"{found.checkpoint_seconds(writers):.1f} s",
        "interval that loses least": lambda writers: f"{found.interval(writers) / 60:.0f} min",
        "in steps": lambda writers: f"{found.interval(writers) / found.step_seconds('DDP'):,.0f}",
        "share of the time lost": lambda writers: f"{found.lost_share(writers):.2%}",
    }
    here = f"{found.checkpoint_bytes / found.values['disk_here']:.0f} s"
    return [
        *([name, cell(1), cell(64)] for name, cell in cells.items()),
        ["written to the disk measured here", here, ""],
    ]


def table(head: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """Lay out a Markdown table, numbers to the right."""
    return "\n".join("| " + " | ".join(cells) + " |" for cells in (head, ["---", *["---:"] * (len(head) - 1)], *rows))


def si(value: float, unit: str = "") -> str:
    """Return a number with its unit and the prefix that suits it."""
    for factor, prefix in ((1e12, "T"), (1e9, "G"), (1e6, "M"), (1e3, "k"), (1, ""), (1e-3, "m"), (1e-6, "µ")):
        if value >= factor and (unit or factor >= 1e6):
            return f"{value / factor:.3g} {prefix}{unit}".strip()
    return f"{value:,.4g}"


def fill(page: str, found: Plan) -> str:
    """Return the page with each table behind its mark, `<!-- name -->`."""
    for name, text in tables(found).items():
        page, marks = re.subn(rf"(<!-- {name} -->\n\n)(?:\|.*\n)*\n?", lambda mark: f"{mark[1]}{text}\n\n", page)  # noqa: B023
        if marks != 1:
            raise ValueError(f"the page has {marks} marks <!-- {name} -->, expected one")
    return page


if __name__ == "__main__":
    path = Path(sys.argv[1])
    path.write_text(fill(path.read_text(encoding="utf-8"), plan()), encoding="utf-8")
