"""Several processes on one machine: asked to stop, hung, killed, and resumed by other numbers of processes.

python -m tests.faults.processes FOLDER
"""

import os
import signal
import socket
import sys
import time
import traceback
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
import torch._dynamo  # as an optimiser does: the children inherit it
from safetensors.torch import load_file

from m3ae.training import STOPPED_STATUS, TrainingStopped
from m3ae.training.checkpoint import list_checkpoints
from m3ae.training.loop import train
from m3ae.training.progress import read_metrics
from m3ae.training.task import Task
from tests.training.toy import ToyTask, toy_config

Event = Callable[[], object]


class EventfulTask(ToyTask):
    """Something happens during a micro-batch of this process."""

    def __init__(self, dropout: float, events: dict[int, Event]) -> None:
        super().__init__(dropout=dropout)
        self.events = events

    def collate(self, samples: Any) -> dict[str, torch.Tensor]:
        self.events.get(len(self.visits), bool)()
        return super().collate(samples)


def launch(
    count: int,
    folder: Path,
    *,
    dropout: float = 0.5,
    events: dict[int, Event] | None = None,
    resume: Path | bool = False,
    grouped: bool = False,
    task: Task[Any] | None = None,
    **training: Any,
) -> list[int]:
    """Train in `count` processes, of which the last one has the events; return their exit statuses.

    One process forms a group only if `grouped`, as a launcher does it. The task is the toy unless another is given.
    """
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        address = {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(listener.getsockname()[1])}
    children = []
    for rank in range(count):
        child = os.fork()
        if child:
            children.append(child)
            continue
        status = 1
        try:
            output = os.open(f"{folder}.{rank}.log", os.O_WRONLY | os.O_CREAT | os.O_APPEND)
            os.dup2(output, 1)
            os.dup2(output, 2)
            ranks = {"RANK": rank, "LOCAL_RANK": rank, "WORLD_SIZE": count, "LOCAL_WORLD_SIZE": count}
            if count > 1 or grouped:
                os.environ |= address | {name: str(value) for name, value in ranks.items()}
            toy = EventfulTask(dropout, (events or {}) if rank == count - 1 else {})
            train(toy_config(folder, log_every=1, **training), task or toy, resume=resume)
            status = 0
        except TrainingStopped:
            status = STOPPED_STATUS
        except BaseException:
            traceback.print_exc()
        finally:
            sys.stdout.flush()
            os._exit(status)
    return [os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) for child in children]


def said(folder: Path, rank: int) -> str:
    return Path(f"{folder}.{rank}.log").read_text(encoding="utf-8")


def losses(folder: Path) -> dict[int, float]:
    records = read_metrics(folder / "metrics.jsonl")
    return {record["step"]: record["training/loss"] for record in records if "training/loss" in record}


def stopped_and_resumed(root: Path) -> None:
    """A signal that reaches one process stops both after the same step, and the continuation is exact."""
    whole, run = root / "whole", root / "run"
    assert launch(2, whole, gradient_accumulation_steps=1) == [0, 0], said(whole, 0)
    statuses = launch(2, run, gradient_accumulation_steps=1, events={4: lambda: os.kill(os.getpid(), signal.SIGTERM)})
    assert statuses == [STOPPED_STATUS, STOPPED_STATUS], said(run, 0)
    assert "stopped after step 5 by SIGTERM" in said(run, 0) and "stopped" not in said(run, 1)
    checkpoint = list_checkpoints(run)[-1]
    assert checkpoint.name == "step-00000005"
    assert len(list(checkpoint.glob("random_states_*"))) == 2
    assert launch(2, run, gradient_accumulation_steps=1, resume=True) == [0, 0], said(run, 0)
    was, found = (load_file(folder / "model" / "model.safetensors") for folder in (whole, run))
    assert all(torch.equal(was[name], found[name]) for name in was)
    assert losses(run) == losses(whole)


def other_numbers_of_processes(root: Path) -> None:
    """What two processes wrote, one and three continue: the same losses."""
    two = root / "two"
    assert launch(2, two, dropout=0, gradient_accumulation_steps=1) == [0, 0], said(two, 0)
    checkpoint = two / "checkpoints" / "step-00000006"
    for count, sizes in ((1, (3, 2)), (3, (2, 1))):
        folder = root / f"by_{count}"
        sizes = dict(zip(("batch_size", "gradient_accumulation_steps"), sizes, strict=True))
        assert launch(count, folder, dropout=0, resume=checkpoint, **sizes) == [0] * count, said(folder, 0)
        for step, loss in losses(folder).items():
            assert step > 6 and abs(loss / losses(two)[step] - 1) < 1e-5, (count, step, loss, losses(two)[step])
        was, found = (load_file(run / "model" / "model.safetensors") for run in (two, folder))
        for name in was:
            torch.testing.assert_close(was[name], found[name], rtol=1e-5, atol=1e-6)


def hung(root: Path) -> None:
    """A process that hangs ends the run and is named, with what it did and its stack."""
    folder = root / "hung"
    statuses = launch(
        2, folder, gradient_accumulation_steps=1, max_step_minutes=0.1, events={3: lambda: time.sleep(600)}
    )
    assert 2 in statuses and 0 not in statuses, statuses
    both = said(folder, 0) + said(folder, 1)
    named = f"process 1 on {socket.gethostname()} loads a batch; all others wait for it"
    assert f"step 4 has taken longer than training.max_step_minutes=0.1: {named}" in both, both
    assert "in collate" in said(folder, 1)


def killed(root: Path) -> None:
    """The survivor of a process that is killed says what has happened and how to go on, and a new start does."""
    run = root / "killed"
    events = {5: lambda: os.kill(os.getpid(), signal.SIGKILL)}
    statuses = launch(2, run, gradient_accumulation_steps=1, checkpoint_every=2, events=events)
    assert statuses == [1, -signal.SIGKILL], said(run, 0)
    assert "ConnectionError: another process of the run has ended, and this one cannot go on alone" in said(run, 0)
    assert launch(2, run, gradient_accumulation_steps=1, resume=True) == [0, 0], said(run, 0)
    assert losses(run) == losses(root / "whole")


if __name__ == "__main__":
    os.environ["ACCELERATE_USE_CPU"] = "true"
    torch.set_num_threads(1)
    for scenario in (stopped_and_resumed, other_numbers_of_processes, hung, killed):
        scenario(Path(sys.argv[1]))
        print(scenario.__name__)
