"""What may befall a run: requests to stop, steps that hang, workers that die, too little memory."""

import faulthandler
import os
import re
import signal
import socket
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from types import FrameType
from typing import Any, Self

import torch.distributed
from accelerate import Accelerator
from accelerate.utils.memory import should_reduce_batch_size

from m3ae.training.config import RunConfig
from m3ae.training.sections import TrainingConfig

HUNG_STATUS = 2
_SIGNALS = (signal.SIGINT, signal.SIGTERM, signal.SIGUSR1)
_LAUNCHERS = ("ACCELERATE_MIXED_PRECISION", "TORCHELASTIC_RUN_ID")  # variables that accelerate and torchrun set
_LOST_CONNECTION = r"(closed|reset) by peer|Broken pipe|Connection was likely closed|ncclRemoteError"
_ONE_PRESS = 1.0  # seconds in which a terminal and a launcher pass on the same Ctrl-C


def is_launched() -> bool:
    """Return whether a launcher has started this process: `accelerate launch` or torchrun."""
    return any(name in os.environ for name in _LAUNCHERS)


class StopRequest:
    """A request to stop, made by Ctrl-C, by a scheduler's signals, by the end of the launcher, or by the clock.

    As a context manager it handles the signals. A Ctrl-C that the process ignores, as a background job does, stays
    ignored. Outside the main thread no signal counts.

    Args:
        max_hours: Hours from now after which the run stops; None for no limit.
    """

    def __init__(self, max_hours: float | None) -> None:
        self.max_hours = max_hours
        self._started = time.monotonic()
        self._signal: signal.Signals | None = None
        self._interrupted: float | None = None
        self._launcher = os.getppid() if is_launched() else None
        self._handlers: dict[signal.Signals, Any] = {}

    def __enter__(self) -> Self:
        if threading.current_thread() is threading.main_thread():
            ignored = signal.getsignal(signal.SIGINT) is signal.SIG_IGN
            numbers = [number for number in _SIGNALS if not (ignored and number == signal.SIGINT)]
            self._handlers = {number: signal.signal(number, self.receive) for number in numbers}
        return self

    def __exit__(self, *exception: object) -> None:
        for number, handler in self._handlers.items():
            signal.signal(number, handler)

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
        """Handle a signal; a second Ctrl-C raises KeyboardInterrupt."""
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


def ignore_stop_signals(worker: int) -> None:
    """Keep a process that loads data alive when all processes get a signal: the training process alone ends it.

    That process does so by SIGTERM, too, where it ends by an error whose traceback still holds the loader, and then
    waits for its children.
    """
    for number in _SIGNALS:
        signal.signal(number, signal.SIG_IGN)
    if hasattr(signal, "sigwaitinfo"):  # not on macOS
        signal.pthread_sigmask(signal.SIG_BLOCK, [signal.SIGTERM])  # the thread gets it, though it is ignored
        threading.Thread(target=_end_with_parent, daemon=True).start()


def _end_with_parent() -> None:
    """End this process when its parent sends SIGTERM."""
    while signal.sigwaitinfo([signal.SIGTERM]).si_pid != os.getppid():
        pass
    os._exit(0)


class Watchdog:
    """A limit on the time of a step: it ends a process that hangs, and names the process that the others wait for.

    Processes that wait for each other cannot tell who is late. Each therefore notes in the store of the process group
    what it begins, and the one with the fewest notes is late. The watchdog watches as a context manager.

    Args:
        minutes: The limit; None for none.
        accelerator: The accelerator, which knows the other processes.
    """

    def __init__(self, minutes: float | None, accelerator: Accelerator) -> None:
        self.minutes = minutes
        self.process, self.processes = accelerator.process_index, range(accelerator.num_processes)
        self._step = self._notes = 0
        self._last_note = ""
        self._deadline = float("inf")
        self._store: torch.distributed.distributed_c10d.Store | None = None
        self._closed = threading.Event()

    def __enter__(self) -> Self:
        if self.minutes is not None:
            if len(self.processes) > 1:
                # torch has no public name for the store of the process group, which outlives a collective that hangs.
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
        self._last_note = f"{self._notes} {socket.gethostname()} {activity}"
        if self._store is not None:
            self._store.set(_note_key(self.process), self._last_note)

    def _watch(self, minutes: float) -> None:
        while time.monotonic() < self._deadline:
            if self._closed.wait(min(1.0, minutes * 15)):
                return
        notes = {self.process: self._last_note}
        with suppress(RuntimeError):  # the process that keeps the store may have ended already
            notes |= self._all_notes()
        faulthandler.dump_traceback()  # of all threads, on stderr: it shows where this process is
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
        keys = {process: _note_key(process) for process in self.processes}
        return {
            process: store.get(key).decode() if store.check([key]) else "0 ? has not begun its first step"
            for process, key in keys.items()
        }


def _late(notes: dict[int, str]) -> str:
    """Return the processes that are furthest behind; `notes` hold number, host and activity."""
    fields = {process: note.split(maxsplit=2) for process, note in notes.items()}
    fewest = min(int(number) for number, *_ in fields.values())
    late = [
        f"process {process} on {host} {activity}"
        for process, (number, host, activity) in fields.items()
        if int(number) == fewest
    ]
    return ", ".join(late) + ("; all others wait for it" if len(late) < len(notes) else "")


def _note_key(process: int) -> str:
    return f"m3ae/activity/{process}"


@contextmanager
def dead_processes_explained() -> Iterator[None]:
    """Turn the death of another process, which shows at any moment of a run, into an error that says how to go on.

    Raises:
        ChildProcessError: A process that loads data has died.
        ConnectionError: Another process of the run has ended.
    """
    try:
        yield
    except RuntimeError as error:
        reason = str(error).splitlines()[0] if str(error) else ""
        if reason.startswith("DataLoader worker (pid"):
            raise ChildProcessError(
                f"a process that loads data has died: {reason} It was killed most likely for want of memory, of the "
                f"machine or of /dev/shm: lower data.num_workers or training.batch_size, or give the job more memory; "
                f"data.num_workers=0 shows an error of the data themselves. --resume continues the run"
            ) from error
        lost = re.search(_LOST_CONNECTION, str(error))
        if lost is None:
            raise
        raise ConnectionError(
            f"another process of the run has ended, and this one cannot go on alone ({lost[0]}): look for the error "
            "that the other one has printed; one that was killed, most likely for want of memory, prints none. Start "
            "all processes again with --resume, which continues from the last checkpoint"
        ) from error


@contextmanager
def out_of_memory_explained(settings: TrainingConfig, device: torch.device) -> Iterator[None]:
    """Turn a lack of memory, on whatever device, into a MemoryError that names the settings to change."""
    try:
        yield
    except (RuntimeError, MemoryError) as error:
        if isinstance(error, RuntimeError) and not should_reduce_batch_size(error):
            raise
        remedies = ["smaller inputs: model.overrides.image_config.image_size, data.max_text_length"]
        if not settings.gradient_checkpointing:
            remedies.insert(0, "training.gradient_checkpointing=true, which computes activations twice")
        if settings.batch_size > 1:
            size, accumulation = _smaller_batch(settings).values()
            smaller = f"training.batch_size={size} with training.gradient_accumulation_steps={accumulation}"
            remedies.insert(0, f"{smaller}, the same global batch")
        raise MemoryError(
            f"out of memory on {device} with training.batch_size={settings.batch_size}; change one of: "
            f"{'; '.join(remedies)} ({str(error).splitlines()[0] if str(error) else type(error).__name__})"
        ) from error


def with_smaller_batches(config: RunConfig, accelerator: Accelerator, error: MemoryError) -> RunConfig:
    """Return the configuration with a smaller micro-batch and the same global batch, or raise `error` if none is."""
    training = config.training
    if not training.halve_on_out_of_memory or training.batch_size == 1:
        raise error
    smaller = training.model_copy(update=_smaller_batch(training))
    accelerator.gradient_accumulation_steps = smaller.gradient_accumulation_steps
    accelerator.step = 0
    error.__cause__ = error.__context__ = None  # its traceback keeps what did not fit
    torch.cuda.empty_cache()
    return config.model_copy(update={"training": smaller})


def _smaller_batch(settings: TrainingConfig) -> dict[str, int]:
    """Return the largest smaller micro-batch that makes the same global batch, and its accumulation."""
    size, accumulation = settings.batch_size, settings.gradient_accumulation_steps
    factor = next(factor for factor in range(2, size + 1) if size % factor == 0)
    return {"batch_size": size // factor, "gradient_accumulation_steps": accumulation * factor}
