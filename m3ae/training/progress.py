"""What a person sees of a run: a bar, or lines where there is no terminal, and how long the run will still take."""

import statistics
import sys
import time
from collections.abc import Mapping
from typing import Self

from tqdm import tqdm
from transformers.utils import logging

from m3ae.training.sections import TrainingConfig

TIMED_STEPS = 6  # before the first estimate
FAR_ABOVE = 3.0  # times the expected step, which is worth a warning
SECONDS_BETWEEN_LINES = 10.0


class Progress:
    """The progress of a run, as a context manager around its steps.

    Args:
        settings: Length of the run, and what its steps are expected to take.
        step: Steps that were taken before.
        shown: Whether this process is the one that shows it.
    """

    def __init__(self, settings: TrainingConfig, step: int, shown: bool) -> None:
        self.settings, self.announce = settings, tqdm.write if shown else _be_silent
        logging.disable_progress_bar()  # transformers' own, for what takes no time: loading and writing a model
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
        """Show what was logged at a step, beside the bar or as a line of its own."""
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
