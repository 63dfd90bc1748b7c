"""How long a pre-training step takes, against the published procedure, and how much of the machine it uses.

    python benchmarks/pretrain_step.py --preset small --dtype bf16 --dropout 0.1 --baseline [--json figures.json]

A step is forward, backward and AdamW on random images and texts of 12 to 64 tokens. `--baseline` times beside it, in
turns and on the same samples, the published three passes of `reference_pretraining.py`; `ratio` is how many times
longer these take. Each procedure has a process of its own: so the memory that the package asks the C library to keep
is not the baseline's too, and the peak (resident on a CPU, allocated on a GPU) is that of one procedure. On a CPU the
seconds are processor time over all threads, so that other work on the machine disturbs little; those of the wall clock
are in the file of `--json`, too.

`needed` is what `needed_flops.py` counts; the machine's peak is that of large matrix products in the same precision,
measured between the rounds.

`--also latent checkpointing` takes the package's step once more with a latent head (a mixture of products over image
and text), or with activations computed again in the backward pass, and says how many times as long that takes;
`--compile --also eager graphs` says it of a step that is not compiled, and of one with CUDA graphs.
"""

import argparse
import json
import multiprocessing
import resource
import statistics
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from multiprocessing.connection import Connection
from pathlib import Path
from signal import SIGKILL
from typing import Any, NamedTuple

import torch
import yaml
from needed_flops import step_flops
from reference_pretraining import ReferencePreTraining
from torch import Tensor

from m3ae import M3AEConfig, M3AEForPreTraining
from m3ae.models.masking import mask_tokens
from m3ae.models.pairs import match_pairs
from m3ae.precision import choose_precision
from m3ae.training.trained_model import choose_attention, enable_gradient_checkpointing

PHANTOM = Path(__file__).parents[1] / "configs/pretrain/phantom.yaml"
BATCH_SIZES = {"tiny": 4, "small": 16, "base": 8, "phantom": 32}
SHORTEST, LONGEST = 12, 64  # tokens of a text
VARIANTS = ("latent", "checkpointing", "eager", "graphs")
DTYPES = {"float32": torch.float32, "bf16": torch.bfloat16}

Batch = dict[str, Tensor]
Step = Callable[[Batch], None]


class Measured(NamedTuple):
    """Seconds of processor and wall clock that the steps took, and the most bytes that their process has needed."""

    processor: float
    wall: float
    memory: int


class Setting(NamedTuple):
    """What is measured; see the command line's help."""

    preset: str
    batch_size: int
    schedule: str
    dtype: str
    dropout: float
    device: str
    compiled: bool
    threads: int
    image_size: int | None = None  # in pixels; the preset's if None

    def config(self, *, latent: bool = False) -> M3AEConfig:
        """Return the model's configuration, with a latent head if that is asked for."""
        dropout = {"hidden_dropout_prob": self.dropout, "attention_probs_dropout_prob": self.dropout}
        options: dict[str, Any] = {"schedule": self.schedule, "text_config": dropout} | dropout
        if latent:
            options["latent"] = {"num_samples": 1}
        if self.preset == "phantom":  # without contrast, which the published procedure has not
            shipped = yaml.safe_load(PHANTOM.read_text())
            text = {"vocab_size": shipped["tokenizer"]["vocab_size"]} | dropout
            options = shipped["model"]["overrides"] | options | {"itc_weight": 0.0, "text_config": text}
        elif self.preset == "base":
            options["image_config"] = {"num_hidden_layers": 12}
        if self.image_size is not None:
            options["image_config"] = options.get("image_config", {}) | {"image_size": self.image_size}
        return M3AEConfig.named("mini" if self.preset == "phantom" else self.preset, **options)

    def autocast(self) -> torch.autocast:
        """Return the context of the forward pass."""
        return torch.autocast(self.device, torch.bfloat16, enabled=self.dtype == "bf16")


def main() -> None:
    """Run the command line."""
    parser = argparse.ArgumentParser(description="Seconds, arithmetic and memory of a pre-training step.")
    parser.add_argument("--preset", choices=list(BATCH_SIZES), default="small", help="model and batch")
    parser.add_argument("--batch-size", type=int, help="tiny 4, small 16, base 8, phantom 32 by default")
    parser.add_argument("--schedule", choices=["separate", "joint"], default="separate", help="of the package's step")
    parser.add_argument("--dtype", choices=list(DTYPES), help="bf16 is autocast  [default: the faster one]")
    parser.add_argument("--dropout", type=float, default=0.1, help="of fusion and text encoder")
    parser.add_argument("--baseline", action="store_true", help="time the published procedure, too")
    parser.add_argument("--also", nargs="*", choices=VARIANTS, default=[], help="take the step once more with this")
    parser.add_argument("--steps", type=int, default=2, help="timed in each round, each on another batch")
    parser.add_argument("--rounds", type=int, default=3, help="of the procedures in turns")
    parser.add_argument("--bucketed", action="store_true", help="the package gets batches of like lengths")
    parser.add_argument("--compile", action="store_true", help="the package's model through torch.compile")
    parser.add_argument("--profile", action="store_true", help="only say which operators the package's time goes to")
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--threads", type=int, default=torch.get_num_threads(), help="of PyTorch on a CPU")
    parser.add_argument("--json", type=Path, help="write the figures here too")
    arguments = parser.parse_args()
    if {"eager", "graphs"} & {*arguments.also} and not arguments.compile:
        parser.error("--also eager and graphs need --compile, to compare with")
    arguments.dtype = arguments.dtype or fastest_dtype(arguments.device)
    setting = Setting(
        arguments.preset,
        arguments.batch_size or BATCH_SIZES[arguments.preset],
        arguments.schedule,
        arguments.dtype,
        arguments.dropout,
        arguments.device,
        arguments.compile,
        arguments.threads,
    )
    torch.set_num_threads(setting.threads)
    if arguments.profile:
        print(profile(setting))
        return
    beside = ["baseline"] * arguments.baseline + arguments.also
    figures = measure(setting, beside, arguments.rounds, arguments.steps, arguments.bucketed)
    print(report(setting, figures))
    if arguments.json:
        arguments.json.write_text(json.dumps(setting._asdict() | figures, indent=2) + "\n")


def fastest_dtype(device: str) -> str:
    """Return the name of the type that a run would choose on a device."""
    return "bf16" if choose_precision(torch.device(device)).name == "bf16" else "float32"


def measure(setting: Setting, beside: Sequence[str], rounds: int, steps: int, bucketed: bool) -> dict[str, Any]:
    """Time the package and what is asked for `beside` it, `baseline` or `VARIANTS`, in turns on the same samples."""
    config, size = setting.config(), setting.batch_size
    lengths = torch.randint(SHORTEST, LONGEST + 1, (steps, size), generator=torch.Generator().manual_seed(0))
    sorted_lengths = lengths.flatten().sort().values.view(steps, size)
    own = sorted_lengths if bucketed else lengths
    rows = {name: lengths if name == "baseline" else own for name in ("package", *beside)}
    peaks: list[float] = []
    measured: dict[str, list[Measured]] = {name: [] for name in rows}
    with ExitStack() as stack:
        procedures = {name: stack.enter_context(running(setting, name, rows[name].tolist())) for name in rows}
        for _ in range(rounds):
            peaks.append(matrix_peak(setting))
            for name, take_steps in procedures.items():
                measured[name].append(take_steps())

    clock = "processor" if setting.device == "cpu" else "wall"
    figures: dict[str, Any] = {"peak_flops_per_second": spread(peaks), "samples": lengths.numel()}
    for name in rows:
        schedule = "separate" if name == "baseline" else setting.schedule
        needed = step_flops(config, lengths.flatten().tolist(), schedule) / steps
        own, wall = ([getattr(found, kind) / steps for found in measured[name]] for kind in (clock, "wall"))
        figures[name] = {
            "seconds_per_step": spread(own),
            "wall_seconds_per_step": spread(wall),
            "samples_per_second": size / statistics.median(own),
            "needed_flops_per_step": needed,
            "share_of_peak": needed / statistics.median(own) / statistics.median(peaks),
            "peak_memory_bytes": max(found.memory for found in measured[name]),
        }
    for name in VARIANTS:
        if name in measured:
            pairs = zip(measured[name], measured["package"], strict=True)
            figures[f"{name}_ratios"] = [getattr(found, clock) / getattr(plain, clock) for found, plain in pairs]
    if "baseline" in measured:
        for label, kind in (("ratio", clock), ("wall_ratio", "wall")):
            pairs = zip(measured["baseline"], measured["package"], strict=True)
            figures[f"{label}s"] = [getattr(slow, kind) / getattr(fast, kind) for slow, fast in pairs]
            figures[label] = statistics.median(figures[f"{label}s"])
        memory = {name: figures[name]["peak_memory_bytes"] for name in rows}
        figures["memory_ratio"] = memory["package"] / memory["baseline"]
    return figures


@contextmanager
def running(setting: Setting, name: str, lengths: list[list[int]]) -> Iterator[Callable[[], Measured]]:
    """Yield what times the steps of a procedure, in a process of its own."""
    context = multiprocessing.get_context("spawn")
    here, there = context.Pipe()
    process = context.Process(target=serve, args=(there, setting, name, lengths), daemon=True)
    process.start()
    there.close()

    def measure_there() -> Measured:
        try:
            here.send(None)
            return here.recv()
        except (EOFError, ConnectionError):
            process.join()
            killed = process.exitcode == -SIGKILL
            ended = "was killed, as for lack of memory" if killed else "ended, its error is above"
            raise SystemExit(f"The process of {name} {ended}; the setting was {setting}.") from None

    try:
        yield measure_there
    finally:
        process.terminate()
        process.join()


def serve(connection: Connection, *arguments: Any) -> None:
    """Time the steps of `Procedure(*arguments)` whenever a message comes."""
    procedure = Procedure(*arguments)
    while True:
        connection.recv()
        connection.send(procedure.measure())


class Procedure:
    """The steps of the package or of the baseline on batches of texts of these lengths."""

    def __init__(self, setting: Setting, name: str, lengths: list[list[int]]) -> None:
        torch.set_num_threads(setting.threads)
        config, self.device = setting.config(), setting.device
        self.step = reference_step(setting) if name == "baseline" else package_step(setting, name)
        self.batches = [draw_batch(config, torch.tensor(row), setting.device) for row in lengths]
        for batch in self.batches if setting.compiled else self.batches[:1]:
            self.step(batch)  # warm up

    def measure(self) -> Measured:
        """Take one step on each batch."""
        processor, wall = timed(lambda: [self.step(batch) for batch in self.batches], self.device)
        if self.device == "cpu":
            memory = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
        else:
            memory = torch.cuda.max_memory_allocated(self.device)
        return Measured(processor, wall, memory)


def draw_batch(config: M3AEConfig, lengths: Tensor, device: str) -> Batch:
    """Draw random images and texts of these lengths, padded to `LONGEST` or the longest, and all noise."""
    generator = torch.Generator().manual_seed(int(lengths.sum()))
    size, image, vocabulary = len(lengths), config.image_config, config.text_config.vocab_size
    padded = max(LONGEST, int(lengths.max()))
    attention_mask = (torch.arange(padded) < lengths[:, None]).long()
    input_ids = torch.randint(5, vocabulary - 1, (size, padded), generator=generator)
    input_ids[:, 0] = config.text_config.bos_token_id
    input_ids[torch.arange(size), lengths - 1] = config.text_config.eos_token_id
    batch = {
        "pixel_values": torch.randn(size, 3, image.image_size, image.image_size, generator=generator),
        "input_ids": input_ids.where(attention_mask.bool(), config.text_config.pad_token_id),
        "attention_mask": attention_mask,
        "image_noise": torch.rand(size, image.num_patches, generator=generator),
        "text_noise": torch.rand(size, padded, 2, generator=generator),
        "match_noise": torch.rand(size, 2, generator=generator),
        "image_ids": torch.arange(size),
        "text_ids": torch.arange(size),
    }
    return {name: value.to(device) for name, value in batch.items()}


def package_step(setting: Setting, variant: str = "package") -> Step:
    """Return what takes a step of the package, texts cut to a multiple of 8 tokens as its collator does."""
    torch.manual_seed(0)
    device, compiled = torch.device(setting.device), setting.compiled and variant != "eager"
    model = M3AEForPreTraining(setting.config(latent=variant == "latent")).train().to(device)
    choose_attention(model, device, setting.dtype)
    if variant == "checkpointing":
        enable_gradient_checkpointing(model)
    if compiled:
        model.compile(mode="reduce-overhead" if variant == "graphs" else None)
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-5, fused=True)

    def step(batch: Batch) -> None:
        length = -(-int(batch["attention_mask"].sum(1).max()) // 8) * 8
        cut = {name: batch[name][:, :length] for name in ("input_ids", "attention_mask", "text_noise")}
        with setting.autocast():
            loss = model(**batch | cut).loss
        loss.backward()
        optimizer.step()
        optimizer.zero_grad()

    return step


def reference_step(setting: Setting) -> Step:
    """Return what takes a step of the published procedure."""
    torch.manual_seed(0)
    config = setting.config()
    model = ReferencePreTraining(config).train().to(setting.device)
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-5)

    def step(batch: Batch) -> None:
        ids, mask = batch["input_ids"], batch["attention_mask"].bool()
        vocabulary, probability = config.text_config.vocab_size, config.mlm_probability
        words = mask_tokens(ids, mask & (ids > 2), batch["text_noise"], probability, vocabulary - 1, vocabulary)
        labels = torch.full_like(ids, -100).scatter(1, words.positions, words.labels)
        pairs = match_pairs(batch["image_ids"], batch["text_ids"], mask[:, 0], batch["match_noise"])
        inputs = {name: batch[name] for name in ("pixel_values", "input_ids", "attention_mask", "image_noise")}
        with setting.autocast():
            losses = model(
                **inputs,
                mlm_input_ids=words.input_ids,
                mlm_labels=labels,
                image_index=pairs.image_index,
                itm_labels=pairs.labels,
            )
            loss = torch.stack(list(losses.values())).sum()
        loss.backward()
        optimizer.step()
        optimizer.zero_grad()

    return step


def timed(work: Callable[[], Any], device: str) -> tuple[float, float]:
    """Return the seconds of processor and wall clock that the work takes."""
    synchronize(device)
    started = time.process_time(), time.perf_counter()
    work()
    synchronize(device)
    return time.process_time() - started[0], time.perf_counter() - started[1]


def synchronize(device: str) -> None:
    """Wait for a GPU."""
    if device != "cpu":
        torch.cuda.synchronize(device)


def matrix_peak(setting: Setting, side: int = 4096) -> float:
    """Return operations per second (of the same clock as the steps) of large matrix products, the best of five."""
    left, right = (torch.randn(side, side, device=setting.device).to(DTYPES[setting.dtype]) for _ in range(2))
    clock, repeats = (0, 1) if setting.device == "cpu" else (1, 50)
    products = 2 * side**3 * repeats
    return max(
        products / timed(lambda: [left @ right for _ in range(repeats)], setting.device)[clock] for _ in range(5)
    )


def profile(setting: Setting, least: float = 0.01) -> str:
    """Take two steps, and list the operators that take at least this share of the second's processor or GPU time."""
    lengths = torch.randint(SHORTEST, LONGEST + 1, (setting.batch_size,), generator=torch.Generator().manual_seed(0))
    batch = draw_batch(setting.config(), lengths, setting.device)
    step = package_step(setting)
    step(batch)
    with torch.profiler.profile() as profiler:
        step(batch)
        synchronize(setting.device)
    kind = "self_cpu_time_total" if setting.device == "cpu" else "self_device_time_total"
    spent = sorted(((getattr(found, kind), found.count, found.key) for found in profiler.key_averages()), reverse=True)
    total = sum(took for took, _, _ in spent)
    shown = [entry for entry in spent if entry[0] >= least * total]
    return "\n".join(f"{took / total:6.1%} {took / 1e3:9.1f} ms {count:6} × {name}" for took, count, name in shown)


def spread(values: Sequence[float]) -> dict[str, float]:
    """Return the smallest, the middle and the largest value."""
    return {"min": min(values), "median": statistics.median(values), "max": max(values)}


def report(setting: Setting, figures: dict[str, Any]) -> str:
    """Lay the figures out."""
    peak = figures["peak_flops_per_second"]
    lines = [
        f"{setting.preset}, batch {setting.batch_size}, {setting.schedule}, {setting.dtype}, dropout "
        f"{setting.dropout:g}, {setting.device}, {setting.threads} threads; matrix products "
        f"{peak['median'] / 1e12:.3f} TFLOP/s ({peak['min'] / 1e12:.3f} to {peak['max'] / 1e12:.3f})",
        f"{'':<14}{'s/step: min':>12}{'median':>8}{'max':>8}{'samples/s':>11}{'needed TFLOP':>14}"
        f"{'of peak':>9}{'peak GB':>9}",
    ]
    for name in ("package", "baseline", *VARIANTS):
        if found := figures.get(name):
            seconds = found["seconds_per_step"]
            lines.append(
                f"{name:<14}{seconds['min']:>12.2f}{seconds['median']:>8.2f}{seconds['max']:>8.2f}"
                f"{found['samples_per_second']:>11.2f}{found['needed_flops_per_step'] / 1e12:>14.2f}"
                f"{100 * found['share_of_peak']:>8.0f}%{found['peak_memory_bytes'] / 1e9:>9.1f}"
            )
    for name in VARIANTS:
        if ratios := figures.get(f"{name}_ratios"):
            memory = figures[name]["peak_memory_bytes"] / figures["package"]["peak_memory_bytes"]
            over_rounds = f"rounds {min(ratios):.2f} to {max(ratios):.2f}"
            longer = f"{name}: {statistics.median(ratios):.2f} times as long ({over_rounds})"
            lines.append(f"{longer}, memory {100 * memory:.0f} %")
    if "ratio" in figures:
        ratios = figures["ratios"]
        lines.append(
            f"ratio {figures['ratio']:.2f} (rounds {min(ratios):.2f} to {max(ratios):.2f}), "
            f"memory {100 * figures['memory_ratio']:.0f} %"
        )
    return "\n".join(lines)


if __name__ == "__main__":
    main()
