"""What a scheduler does to a run: signals, limits of time; and a device with too little memory."""

import os
import signal
import threading
from pathlib import Path

import pytest
import torch
from accelerate.state import AcceleratorState
from safetensors.torch import load_file

from m3ae.cli import cli
from m3ae.precision import Precision
from m3ae.training import TrainingStopped, engine, safety
from m3ae.training.checkpoint import list_checkpoints
from m3ae.training.config import load_config
from m3ae.training.loop import train
from m3ae.training.safety import StopRequest

from ..training.toy import ToyTask, toy_config
from .processes import losses


@pytest.fixture(autouse=True)
def _interrupts_are_heeded():
    """A shell's job in the background ignores Ctrl-C, which a run does, too, where it finds it so."""
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    yield
    signal.signal(signal.SIGINT, before)


class SignalledTask(ToyTask):
    """Receives a signal during its micro-batch `number`."""

    def __init__(self, number, signal_number=signal.SIGTERM):
        super().__init__()
        self.number, self.signal_number = number, signal_number

    def collate(self, samples):
        if len(self.visits) == self.number:
            os.kill(os.getpid(), self.signal_number)
        return super().collate(samples)


@pytest.mark.parametrize(("signal_number", "step"), [(signal.SIGTERM, 5), (signal.SIGUSR1, 8), (signal.SIGINT, 6)])
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


def test_the_first_ctrl_c_says_what_happens_and_a_second_one_ends_at_once(tmp_path, monkeypatch, capfd):
    monkeypatch.setattr(safety, "_ONE_PRESS", 0.0)
    task = SignalledTask(4, signal.SIGINT)
    task.evaluate = lambda *_: os.kill(os.getpid(), signal.SIGINT)  # the validation, which a first one lets end
    with pytest.raises(KeyboardInterrupt):
        train(toy_config(tmp_path, validate_every=3), task)
    assert "Ctrl-C: the step is finished and a checkpoint written; once more ends at once" in capfd.readouterr().err
    assert signal.getsignal(signal.SIGINT) is signal.default_int_handler


def test_one_ctrl_c_that_comes_twice_counts_once(tmp_path):
    task = SignalledTask(4, signal.SIGINT)
    task.evaluate = lambda *arguments: (os.kill(os.getpid(), signal.SIGINT), ToyTask.evaluate(task, *arguments))[1]
    with pytest.raises(TrainingStopped, match="after step 3 by SIGINT"):
        train(toy_config(tmp_path, validate_every=3), task)


def test_ctrl_c_stays_ignored_where_it_was(tmp_path, monkeypatch):
    handler = signal.signal(signal.SIGINT, signal.SIG_IGN)
    try:
        assert train(toy_config(tmp_path), SignalledTask(4, signal.SIGINT))["step"] == 8
    finally:
        signal.signal(signal.SIGINT, handler)


@pytest.mark.parametrize("launched", [True, False])
def test_a_run_ends_with_its_launcher_and_survives_its_shell(tmp_path, monkeypatch, launched):
    for name in ("ACCELERATE_MIXED_PRECISION", "TORCHELASTIC_RUN_ID"):
        monkeypatch.delenv(name, raising=False)
    if launched:
        monkeypatch.setenv("ACCELERATE_MIXED_PRECISION", "no")

    class Orphan(ToyTask):
        def collate(self, samples):
            if len(self.visits) == 4:
                monkeypatch.setattr(os, "getppid", lambda: 1)
            return super().collate(samples)

    if not launched:
        assert train(toy_config(tmp_path), Orphan())["step"] == 8
        return
    with pytest.raises(TrainingStopped, match="stopped after step 3 by the end of its launcher"):
        train(toy_config(tmp_path), Orphan())
    assert list_checkpoints(tmp_path)[-1].name == "step-00000003"


def test_the_time_is_up(tmp_path, capsys):
    with pytest.raises(TrainingStopped, match=r"after step 1 by training.max_hours=1e-09"):
        train(toy_config(tmp_path, max_hours=1e-9), ToyTask())
    assert list_checkpoints(tmp_path)[-1].name == "step-00000001"


def test_a_thread_leaves_signals_alone():
    handlers = []

    def look():
        with StopRequest(None) as request:
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
        cli(["train", str(Path(__file__).parents[2] / "configs" / "pretrain" / "quickstart.yaml")])
    assert end.value.code == 75
    assert "error" not in capsys.readouterr().err
    with pytest.raises(SystemExit):
        cli(["train", "--help"])
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


def test_a_resumed_run_keeps_the_precision_that_was_chosen_for_it(tmp_path, monkeypatch, capsys) -> None:
    monkeypatch.setattr(engine, "choose_precision", lambda device: Precision("bf16", "it is fast"))
    automatic = {"mixed_precision": "auto", "max_steps": 5}
    train(toy_config(tmp_path / "whole", **automatic), ToyTask())
    assert capsys.readouterr().err.startswith("precision: bf16 (it is fast)\n")
    with pytest.raises(TrainingStopped):
        train(toy_config(tmp_path / "run", **automatic), SignalledTask(3))
    monkeypatch.setattr(engine, "choose_precision", lambda device: Precision("no", "another machine"))
    train(toy_config(tmp_path / "run", **automatic), ToyTask(), resume=True)
    assert "precision: that of the checkpoint, bf16\n" in capsys.readouterr().err
    assert losses(tmp_path / "run") == losses(tmp_path / "whole")
    AcceleratorState._reset_state(reset_partial_state=True)  # as in another process
    train(toy_config(tmp_path / "float32", **automatic), ToyTask())
    assert losses(tmp_path / "float32") != losses(tmp_path / "whole")
    for folder, name in (("run", "bf16"), ("float32", "no")):
        assert load_config(tmp_path / folder / "config.yaml").training.mixed_precision == name
