"""A limit on the time of a step, so that a process which hangs ends the run and is named."""

import faulthandler
import os
import socket
import sys
import threading
import time
from contextlib import suppress
from typing import Self

import torch.distributed
from accelerate import Accelerator

HUNG_STATUS = 2


class Watchdog:
    """Ends this process when one of its steps takes too long, with a message on which process the others wait for.

    Processes that wait for each other cannot tell who is late. So each notes in the store of the process group what it
    begins, and the one with the fewest notes is late. It watches as a context manager.

    Args:
        minutes: The limit; None for none.
        accelerator: Gives the other processes.
    """

    def __init__(self, minutes: float | None, accelerator: Accelerator) -> None:
        self.minutes = minutes
        self.process, self.processes = accelerator.process_index, range(accelerator.num_processes)
        self._step = self._notes = 0
        self._own = ""
        self._deadline = float("inf")
        self._store: torch.distributed.distributed_c10d.Store | None = None
        self._closed = threading.Event()

    def __enter__(self) -> Self:
        if self.minutes is not None:
            if len(self.processes) > 1:
                self._store = torch.distributed.distributed_c10d._get_default_store()
            threading.Thread(target=self._watch, args=(self.minutes,), daemon=True).start()
        return self

    def __exit__(self, *exception: object) -> None:
        self._closed.set()

    def begin(self, step: int) -> None:
        """Start the time of a step, counted from 1."""
        if self.minutes is not None:
            self._step, self._deadline = step, time.monotonic() + self.minutes * 60

    def end(self) -> None:
        """Stop the time: validations and checkpoints have no limit."""
        self._deadline = float("inf")

    def note(self, activity: str) -> None:
        """Note what this process begins."""
        if self.minutes is None:
            return
        self._notes += 1
        self._own = f"{self._notes} {socket.gethostname()} {activity}"
        if self._store is not None:
            self._store.set(_key(self.process), self._own)

    def _watch(self, minutes: float) -> None:
        while time.monotonic() < self._deadline:
            if self._closed.wait(min(1.0, minutes * 15)):
                return
        notes = {self.process: self._own}
        with suppress(RuntimeError):  # the process that keeps the store may have ended already
            notes |= self._all_notes()
        faulthandler.dump_traceback()  # of all threads, on stderr: where this process is
        print(
            f"error: step {self._step} has taken longer than training.max_step_minutes={minutes:g}: {_late(notes)}. "
            f"The stack above is that of process {self.process}; --resume continues from the last checkpoint",
            file=sys.stderr,
            flush=True,
        )
        os._exit(HUNG_STATUS)  # the main thread may be where no exception reaches it

    def _all_notes(self) -> dict[int, str]:
        store = self._store
        if store is None:
            return {}
        keys = {process: _key(process) for process in self.processes}
        return {
            process: store.get(key).decode() if store.check([key]) else "0 ? has not begun its first step"
            for process, key in keys.items()
        }


def _late(notes: dict[int, str]) -> str:
    """Say who has got least far; `notes` hold number, host and activity."""
    parts = {process: note.split(maxsplit=2) for process, note in notes.items()}
    fewest = min(int(number) for number, *_ in parts.values())
    late = [
        f"process {process} on {host} {activity}"
        for process, (number, host, activity) in parts.items()
        if int(number) == fewest
    ]
    return ", ".join(late) + ("; all others wait for it" if len(late) < len(notes) else "")


def _key(process: int) -> str:
    return f"m3ae/activity/{process}"
