"""Progress of a run: means of the losses, the file `metrics.jsonl`, and what a person sees while the run goes on."""

import json
import math
import os
import statistics
import sys
import time
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from logging import LogRecord, getLogger
from pathlib import Path
from typing import Any, Self

import torch
from accelerate.utils import gather_object
from pydantic import BaseModel, TypeAdapter
from tqdm import tqdm
from transformers.utils import logging

from m3ae.files import write_text
from m3ae.training.sections import TrainingConfig

TIMED_STEPS = 6  # before the first estimate
FAR_ABOVE = 3.0  # times the expected step, which is worth a warning
SECONDS_BETWEEN_LINES = 10.0


class _Record(BaseModel, extra="allow"):
    """A line of `metrics.jsonl`."""

    step: int
    __pydantic_extra__: dict[str, float | None]


def mean_losses(losses: Sequence[Mapping[str, torch.Tensor]]) -> dict[str, torch.Tensor]:
    """Return the mean of each named scalar over the micro-batches that have it."""
    names = dict.fromkeys(name for batch in losses for name in batch)
    return {name: torch.stack([batch[name].detach() for batch in losses if name in batch]).mean() for name in names}


class LossMeter:
    """Sums of named scalars, kept on the device until they are read: a reader waits for the device."""

    def __init__(self) -> None:
        self._sums: dict[str, torch.Tensor] = {}
        self._counts: Counter[str] = Counter()

    def add(self, values: Mapping[str, torch.Tensor]) -> None:
        """Add one step's scalars; a name may be absent in some steps."""
        for name, value in values.items():
            self._sums[name] = self._sums[name] + value.detach() if name in self._sums else value.detach()
            self._counts[name] += 1

    def pop_means(self) -> dict[str, float]:
        """Return the means over the added steps and all processes, and start again; every process has to call it."""
        sums = torch.stack(list(self._sums.values())).tolist() if self._sums else []
        local = [(name, total, self._counts[name]) for name, total in zip(self._sums, sums, strict=True)]
        self._sums.clear()
        self._counts.clear()
        totals: dict[str, float] = {}
        counts: Counter[str] = Counter()
        # As objects, because processes may have met different losses and a tensor reduction would then hang.
        for name, total, count in gather_object(local):
            totals[name] = totals.get(name, 0.0) + total
            counts[name] += count
        return {name: total / counts[name] for name, total in totals.items()}


class MetricsLog:
    """The file `metrics.jsonl`: one JSON object a line, each with its `step`; non-finite numbers become null.

    Args:
        path: The file.
        lines: Lines to continue after; what a killed run wrote after its last checkpoint is dropped.

    Attributes:
        lines: Lines in the file.
    """

    def __init__(self, path: Path, lines: int) -> None:
        self.path = path
        kept = read_metrics(path)[:lines]
        self.lines = len(kept)
        write_text(path, "".join(f"{json.dumps(record)}\n" for record in kept))

    def write(self, step: int, values: Mapping[str, float]) -> None:
        """Append one line.

        Raises:
            OSError: The disk is full; nothing of the line is left.
        """
        finite = {name: value if math.isfinite(value) else None for name, value in values.items()}
        length = self.path.stat().st_size
        try:
            with self.path.open("a", encoding="utf-8") as file:
                file.write(f"{json.dumps({'step': step, **finite})}\n")
        except OSError:
            os.truncate(self.path, length)
            raise
        self.lines += 1


def read_metrics(path: Path) -> list[dict[str, Any]]:
    """Return the lines of a `metrics.jsonl`, without a last one that a kill cut short; none of a missing file.

    Raises:
        ValueError: A line is damaged.
    """
    if not path.exists():
        return []
    with damage_named(path):
        *lines, _unfinished = path.read_text(encoding="utf-8").split("\n")
        records: list[dict[str, Any]] = [json.loads(line) for line in lines]
        TypeAdapter(list[_Record]).validate_python(records)
    return records


@contextmanager
def damage_named(file: Path) -> Iterator[None]:
    """Name a record of a run, or a model's file, that holds something else than it should, in a ValueError."""
    try:
        yield
    except (ValueError, RecursionError) as error:
        raise ValueError(f"{file} is damaged: {' '.join(str(error).split())}") from error


def format_metrics(title: str, metrics: Mapping[str, float]) -> str:
    """Lay out one metric a line, to be printed; `<split>/shuffled_<metric>` stands beside its counterpart."""
    plain = {name: value for name, value in metrics.items() if "/shuffled_" not in name}
    width = max(map(len, [title, *plain]))
    header = f"{title:<{width}}  {'own':>10}  {'shuffled':>10}"
    rows = []
    for name, value in plain.items():
        shuffled = metrics.get(name.replace("/", "/shuffled_", 1))
        rows.append(f"{name:<{width}}  {value:>10.4f}" + ("" if shuffled is None else f"  {shuffled:>10.4f}"))
    return "\n".join([header if len(plain) < len(metrics) else title, "-" * len(header), *rows])


def _is_no_guess(record: LogRecord) -> bool:
    """Say whether a line of DeepSpeed, which accelerate imports for every checkpoint, is more than what it found."""
    return "Setting accelerator to CPU" not in str(record.msg)


class Progress:
    """The progress of a run, as a context manager around its steps.

    Args:
        settings: Length of the run, and what its steps are expected to take.
        step: Steps that were taken before.
        shown: Whether this process is the one that shows it.
    """

    def __init__(self, settings: TrainingConfig, step: int, shown: bool) -> None:
        self.settings, self.announce = settings, tqdm.write if shown else _be_silent
        getLogger("DeepSpeed").addFilter(_is_no_guess)
        logging.disable_progress_bar()  # of transformers, which shows what takes no time: loading and writing a model
        self._bar = tqdm(
            total=settings.max_steps,
            initial=step,
            unit="step",
            dynamic_ncols=True,
            disable=not shown or not sys.stderr.isatty(),
        )
        self._steps: list[float] = []
        self._validated = False
        self._last_line = float("-inf")

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *exception: object) -> None:
        self._bar.close()

    def show(self, step: int, values: Mapping[str, str]) -> None:
        """Show what was logged at a step, beside the bar or as a separate line."""
        self._bar.set_postfix(values)
        now, end = time.monotonic(), self.settings.max_steps
        if self._bar.disable and (step == end or now - self._last_line >= SECONDS_BETWEEN_LINES):
            self._last_line = now
            self.announce(f"step {step} of {end}: {', '.join(f'{name} {value}' for name, value in values.items())}")

    def add_step(self, step: int, seconds: float) -> None:
        """Count a step; after the first ones, say how long the others will take, and whether that is unexpected."""
        self._bar.update()
        if len(self._steps) == TIMED_STEPS:
            return
        self._steps.append(seconds)
        if len(self._steps) < TIMED_STEPS or step == self.settings.max_steps:
            return
        left, usual, expected = self.settings.max_steps - step, self._usual_step(), self.settings.expected_step_seconds
        time_left = f"{in_words(usual * left)} left: {left} steps of {in_words(usual)}"
        self.announce(f"about {time_left}; validations and the final report come on top")
        if expected is not None and usual > FAR_ABOVE * expected:
            self.announce(
                f"warning: a step takes {usual / expected:.1f} times the {in_words(expected)} that the config expects "
                "of the hardware in its header: look for other programs, or take a smaller model or fewer steps"
            )

    def add_validation(self, step: int, seconds: float) -> None:
        """Count a validation; after the first one, say how long the run will take with those to come."""
        every, left = self.settings.validate_every, self.settings.max_steps - step
        if every is not None and left and self._steps and not self._validated:
            total = self._usual_step() * left + seconds * -(-left // every)
            self.announce(f"about {in_words(total)} left, with validations of {in_words(seconds)}")
        self._validated = True

    def _usual_step(self) -> float:
        return statistics.median(self._steps[1:] or self._steps)  # the first one also warms up


def _be_silent(message: str) -> None:
    pass


def in_words(seconds: float) -> str:
    """Return a length of time as people say it."""
    for unit, size in (("h", 3600), ("min", 60)):
        if seconds >= 1.5 * size:
            return f"{seconds / size:.{1 if seconds < 10 * size else 0}f} {unit}"
    return f"{seconds:.{2 if seconds < 1 else 1 if seconds < 10 else 0}f} s"
