"""Micro-batches that do not fit: halved if the config says so, the global batch unchanged."""

import pytest
import torch

from m3ae.training.loop import train
from m3ae.training.progress import read_metrics

from ..training.toy import ToyTask, toy_config


class LimitedTask(ToyTask):
    """A model whose forward pass has memory for so many samples, from a micro-batch on."""

    def __init__(self, limit, start=0):
        super().__init__(dropout=0.0, samples=64)
        self.sizes, forward = [], self.model.forward

        def limited(x, y):
            if self.model.training:
                if len(x) > limit and len(self.visits) > start:
                    raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2 GiB")
                self.sizes.append(len(x))
            return forward(x, y)

        self.model.forward = limited


def losses(folder):
    return [line["training/loss"] for line in read_metrics(folder / "metrics.jsonl") if "training/loss" in line]


def test_the_micro_batch_shrinks_and_the_global_batch_stays(tmp_path, capsys):
    settings = {"batch_size": 8, "gradient_accumulation_steps": 2, "log_every": 1, "max_steps": 4}
    train(toy_config(tmp_path / "whole", **settings), ToyTask(dropout=0.0, samples=64))
    task = LimitedTask(limit=3, start=3)  # the second micro-batch of the second step does not fit
    train(toy_config(tmp_path / "run", halve_on_out_of_memory=True, **settings), task)
    steps = task.sizes[: task.sizes.index(2) + 8]
    assert steps == [8, 8, 8] + [2] * 8, "16 samples in the first step, a failed one, and 16 again"
    assert losses(tmp_path / "run") == pytest.approx(losses(tmp_path / "whole"), rel=1e-5)
    said = capsys.readouterr().out
    assert [f"going on with training.batch_size={size}" in said for size in (8, 4, 2, 1)] == [False, True, True, False]


def test_one_sample_cannot_be_halved(tmp_path):
    with pytest.raises(
        MemoryError, match=r"with training.batch_size=1; change one of: training.gradient_checkpointing"
    ):
        train(toy_config(tmp_path, halve_on_out_of_memory=True, batch_size=2), LimitedTask(limit=0))
