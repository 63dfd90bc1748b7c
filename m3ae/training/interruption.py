"""Stopping a run in good order: on Ctrl-C, by a scheduler's signals, with its launcher, or when its time is over."""

import os
import signal
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType

STOPPED_STATUS = 75  # EX_TEMPFAIL of sysexits.h: to be tried again
_SIGNALS = (signal.SIGINT, signal.SIGTERM, signal.SIGUSR1)
_LAUNCHERS = ("ACCELERATE_MIXED_PRECISION", "TORCHELASTIC_RUN_ID")  # variables that accelerate and torchrun set
_ONE_PRESS = 1.0  # seconds in which a terminal and a launcher pass on the same Ctrl-C


class TrainingStopped(Exception):
    """A run stopped before its end because it was asked to; resuming continues it."""


class StopRequest:
    """Whether this process has been asked to stop.

    Args:
        max_hours: Hours from now after which it is; None for no limit.
    """

    def __init__(self, max_hours: float | None) -> None:
        self.max_hours = max_hours
        self._started = time.monotonic()
        self._signal: signal.Signals | None = None
        self._interrupted: float | None = None
        self._launcher = os.getppid() if any(name in os.environ for name in _LAUNCHERS) else None

    @property
    def reason(self) -> str | None:
        """Why to stop, or None."""
        if self._signal is not None:
            return self._signal.name
        if self._launcher is not None and os.getppid() != self._launcher:
            return "the end of its launcher"
        if self.max_hours is not None and time.monotonic() - self._started >= self.max_hours * 3600:
            return f"training.max_hours={self.max_hours:g}"
        return None

    def receive(self, number: int, frame: FrameType | None) -> None:
        """Handle a signal.

        Raises:
            KeyboardInterrupt: It is a second Ctrl-C.
        """
        self._signal = signal.Signals(number)
        if number != signal.SIGINT:
            return
        now = time.monotonic()
        if self._interrupted is None:
            self._interrupted = now
            if os.environ.get("RANK", "0") == "0":  # written past the buffers, which the signal may have come upon
                os.write(2, b"\nCtrl-C: the step is finished and a checkpoint written; once more ends at once\n")
        elif now - self._interrupted > _ONE_PRESS:
            raise KeyboardInterrupt


@contextmanager
def stop_request(max_hours: float | None) -> Iterator[StopRequest]:
    """Turn signals into a request to stop; a Ctrl-C that the process ignores, as a background job does, stays ignored.

    Outside the main thread no signal counts.
    """
    request = StopRequest(max_hours)
    if threading.current_thread() is not threading.main_thread():
        yield request
        return
    ignored = signal.getsignal(signal.SIGINT) is signal.SIG_IGN
    previous = {
        number: signal.signal(number, request.receive) for number in _SIGNALS if not ignored or number != signal.SIGINT
    }
    try:
        yield request
    finally:
        for number, handler in previous.items():
            signal.signal(number, handler)


def ignore_stop_signals(worker: int) -> None:
    """Keep a process that loads data alive when all processes get a signal: the training one ends it."""
    for number in _SIGNALS:
        signal.signal(number, signal.SIG_IGN)
