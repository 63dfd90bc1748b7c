"""Stopping a run in good order: on the signals of a scheduler, or when its time is over."""

import signal
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType

STOPPED_STATUS = 75  # EX_TEMPFAIL of sysexits.h: to be tried again
_SIGNALS = (signal.SIGTERM, signal.SIGUSR1)


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

    @property
    def reason(self) -> str | None:
        """Why to stop, or None."""
        if self._signal is not None:
            return self._signal.name
        if self.max_hours is not None and time.monotonic() - self._started >= self.max_hours * 3600:
            return f"training.max_hours={self.max_hours:g}"
        return None

    def receive(self, number: int, frame: FrameType | None) -> None:
        """Handle a signal."""
        self._signal = signal.Signals(number)


@contextmanager
def stop_request(max_hours: float | None) -> Iterator[StopRequest]:
    """Turn SIGTERM and SIGUSR1 into a request to stop; outside the main thread only the limit of time counts."""
    request = StopRequest(max_hours)
    if threading.current_thread() is not threading.main_thread():
        yield request
        return
    previous = {number: signal.signal(number, request.receive) for number in _SIGNALS}
    try:
        yield request
    finally:
        for number, handler in previous.items():
            signal.signal(number, handler)


def ignore_stop_signals(worker: int) -> None:
    """Keep a process that loads data alive when a scheduler signals all processes: the training one ends it."""
    for number in _SIGNALS:
        signal.signal(number, signal.SIG_IGN)
