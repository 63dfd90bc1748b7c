"""What a scheduler does to a run: signals, limits of time; and a device with too little memory."""

import os
import signal
import threading
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from m3ae.cli import cli
from m3ae.training.checkpoint import list_checkpoints
from m3ae.training.interruption import TrainingStopped, stop_request
from m3ae.training.loop import train

from ..training.toy import ToyTask, toy_config


class SignalledTask(ToyTask):
    """Receives a signal during its micro-batch `number`."""

    def __init__(self, number, signal_number=signal.SIGTERM):
        super().__init__()
        self.number, self.signal_number = number, signal_number

    def collate(self, samples):
        if len(self.visits) == self.number:
            os.kill(os.getpid(), self.signal_number)
        return super().collate(samples)


@pytest.mark.parametrize(("signal_number", "step"), [(signal.SIGTERM, 5), (signal.SIGUSR1, 8)])
def test_a_signal_ends_the_step_and_resuming_is_exact(tmp_path, capsys, signal_number, step):
    handler = signal.getsignal(signal_number)
    train(toy_config(tmp_path / "whole"), ToyTask())
    config = toy_config(tmp_path / "run")
    with pytest.raises(TrainingStopped, match=f"stopped after step {step} by {signal.Signals(signal_number).name}"):
        train(config, SignalledTask(2 * step - 2, signal_number))
    assert f"stopped after step {step} by SIG" in capsys.readouterr().out
    assert list_checkpoints(tmp_path / "run")[-1].name == f"step-{step:08d}"
    assert signal.getsignal(signal_number) is handler
    train(config, ToyTask(), resume=True)
    for name in ("model", "best"):
        was, found = (load_file(tmp_path / run / name / "model.safetensors") for run in ("whole", "run"))
        assert all(torch.equal(was[key], found[key]) for key in was)


def test_the_time_is_up(tmp_path, capsys):
    with pytest.raises(TrainingStopped, match=r"after step 1 by training.max_hours=1e-09"):
        train(toy_config(tmp_path, max_hours=1e-9), ToyTask())
    assert list_checkpoints(tmp_path)[-1].name == "step-00000001"


def test_a_thread_leaves_signals_alone():
    handlers = []

    def look():
        with stop_request(None) as request:
            handlers.append((signal.getsignal(signal.SIGTERM), request.reason))

    thread = threading.Thread(target=look)
    thread.start()
    thread.join()
    assert handlers == [(signal.getsignal(signal.SIGTERM), None)]


def test_the_exit_status_is_documented(monkeypatch, capsys):
    def stopped(*_, **__):
        raise TrainingStopped("stopped after step 3 by SIGTERM")

    monkeypatch.setattr("m3ae.training.loop.train", stopped)
    monkeypatch.setattr("m3ae.tasks.task_class", lambda name: type("Task", (), {"from_config": lambda config: None}))
    with pytest.raises(SystemExit) as end:
        cli(["pretrain", str(Path(__file__).parents[2] / "configs" / "pretrain" / "quickstart.yaml")])
    assert end.value.code == 75
    assert "error" not in capsys.readouterr().err
    with pytest.raises(SystemExit):
        cli(["pretrain", "--help"])
    assert "ends with the exit status 75" in " ".join(capsys.readouterr().out.split())


@pytest.mark.parametrize(
    "error", [torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2 GiB"), MemoryError()]
)
def test_too_little_memory_names_the_settings_to_change(tmp_path, error):
    task = ToyTask()

    def fail(**_):
        raise error

    task.model.forward = fail
    with pytest.raises(MemoryError) as raised:
        train(toy_config(tmp_path), task)
    message = str(raised.value)
    assert message.startswith(
        "out of memory on cpu with training.batch_size=3; change one of: "
        "training.batch_size=1 with training.gradient_accumulation_steps=6, the same global batch; "
        "training.gradient_checkpointing=true"
    )
    assert "model.overrides.image_config.image_size, data.max_text_length" in message


def test_other_runtime_errors_stay_what_they_are(tmp_path):
    task = ToyTask()
    task.model.body = torch.nn.Linear(3, 8)
    with pytest.raises(RuntimeError, match="mat1 and mat2 shapes"):
        train(toy_config(tmp_path), task)
