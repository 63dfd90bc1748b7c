"""Processes that load data and die, and shards that cannot be read."""

import multiprocessing
import os
import signal
import subprocess
import time
from pathlib import Path

import pytest
import torch.utils.data

from m3ae.data.samples import trunk_columns
from m3ae.data.sets import SampleStream, StreamedSet, UnreadableShardError
from m3ae.training.loop import train
from m3ae.training.safety import ignore_stop_signals

from ..data.folder import write_folder
from ..training.toy import ToyTask, toy_config


class KilledWorkerTask(ToyTask):
    """Its second sample in a worker costs that worker its life."""

    def __getitem__(self, visit):
        if torch.utils.data.get_worker_info() is not None:
            os.kill(os.getpid(), signal.SIGKILL)
        return super().__getitem__(visit)


class FailingTask(ToyTask):
    def __getitem__(self, visit):
        raise RuntimeError("no such sample")


def with_workers(folder, count):
    config = toy_config(folder)
    return config.model_copy(update={"data": config.data.model_copy(update={"num_workers": count})})


def test_a_worker_that_is_killed_is_named_with_what_to_do(tmp_path):
    with pytest.raises(ChildProcessError) as raised:
        train(with_workers(tmp_path, 1), KilledWorkerTask())
    said = str(raised.value)
    assert said.startswith("a process that loads data has died: DataLoader worker (pid")
    assert "lower data.num_workers or training.batch_size" in said and "--resume" in said


def answer(connection):
    ignore_stop_signals(0)
    while True:
        connection.send(connection.recv())


def test_a_worker_ends_by_the_sigterm_of_its_parent_alone():
    here, there = multiprocessing.Pipe()
    worker = multiprocessing.get_context("fork").Process(target=answer, args=(there,), daemon=True)
    worker.start()
    for number in range(2):
        here.send(number)
        assert here.recv() == number
        subprocess.run(["sh", "-c", f"kill -TERM {worker.pid}"], check=True)  # as a scheduler does
        while "ShdPnd:\t0000000000000000" not in Path(f"/proc/{worker.pid}/status").read_text():
            time.sleep(0.01)  # a second signal would be lost while the first one waits
    worker.terminate()  # as multiprocessing does when the parent ends
    worker.join(60)
    assert worker.exitcode == 0


def test_other_errors_of_workers_stay_what_they_are(tmp_path):
    with pytest.raises(RuntimeError, match="no such sample"):
        train(with_workers(tmp_path, 1), FailingTask())


@pytest.fixture
def shards(tmp_path):
    """Three shards of four rows."""
    columns = {"id": [f"r{n}" for n in range(12)], "image": [*range(12)], "text": [[f"Text {n}."] for n in range(12)]}
    return write_folder(tmp_path / "data", columns, images=["image"], shards=[4, 4, 4], group=2)


def open_stream(folder, max_unreadable=0):
    return SampleStream([StreamedSet(folder, trunk_columns(["image"], "text"))], 0, max_unreadable=max_unreadable)


def zero(path):
    path.write_bytes(bytes(path.stat().st_size))


def ids(stream, count):
    samples = stream.share(0, 1)
    return sorted(next(samples).id for _ in range(count))


def test_a_shard_that_turns_unreadable_is_named(shards):
    stream = open_stream(shards)
    zero(shards / "train-00001-of-00003.parquet")
    with pytest.raises(UnreadableShardError, match=r"train-00001-of-00003\.parquet cannot be read \(.*; restore it"):
        ids(stream, 12)
    with pytest.raises(UnreadableShardError, match=r"train-00001.*data\.max_unreadable_shards \(now 0\)"):
        open_stream(shards)


def test_as_many_as_allowed_are_left_out(shards, capsys):
    stream = open_stream(shards, max_unreadable=1)
    assert ids(stream, 12) == sorted(f"r{n}" for n in range(12))
    zero(shards / "train-00001-of-00003.parquet")
    rest = sorted(f"r{n}" for n in range(12) if n // 4 != 1)
    for readers in (lambda: stream, lambda: open_stream(shards, max_unreadable=1)):
        opened = readers()
        assert ids(opened, 8) == rest
        assert len(opened.texts()) == 8
        said = capsys.readouterr().err.splitlines()
        assert len(said) == 1, said
        assert "train-00001-of-00003.parquet cannot be read" in said[0]
    (shards / "train-00002-of-00003.parquet").unlink()
    with pytest.raises(UnreadableShardError, match="train-00002"):
        ids(stream, 12)
    zero(shards / "train-00000-of-00003.parquet")
    (shards / "train-00002-of-00003.parquet").write_bytes(b"")
    with pytest.raises(UnreadableShardError, match="no shard is left"):
        ids(open_stream(shards, max_unreadable=3), 1)


def test_a_shard_that_is_written_anew_under_a_run_is_named(shards):
    stream, path = open_stream(shards), shards / "train-00001-of-00003.parquet"
    contents, time = path.read_bytes(), path.stat().st_mtime_ns
    path.unlink()
    path.write_bytes(contents)
    os.utime(path, ns=(time, time + 10**9))
    with pytest.raises(UnreadableShardError, match=r"train-00001.*cannot be read \(it has changed since the run's"):
        ids(stream, 12)
