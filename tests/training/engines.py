"""FSDP2 and DeepSpeed on CPUs, by the code that runs on GPUs: python -m tests.training.engines FOLDER ENGINE… [--all]

accelerate falls back to DDP on a CPU. Here it is told that it has GPUs, with gloo in the place of NCCL and of a kernel
that DeepSpeed would compile; its plugins, what they make of model and optimiser, and our loop are unchanged.
"""

import importlib
import importlib.util
import os
import sys
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager
from pathlib import Path
from typing import Any
from unittest import mock

import torch
import torch.distributed as dist
from accelerate import Accelerator, PartialState
from accelerate.utils import DistributedType
from safetensors.torch import load_file
from torch.distributed.algorithms.ddp_comm_hooks.default_hooks import allreduce_hook

from m3ae import M3AEForPreTraining
from m3ae.models import objectives
from m3ae.training.progress import read_metrics
from tests.faults.processes import launch, losses, said
from tests.models.tiny_latent import digits_batch, latent_model
from tests.training.tiny_task import TinyPreTraining
from tests.training.toy import ToyTask

ENGINES = {
    "ddp": {"ACCELERATE_USE_CPU": "true"},
    "fsdp2": {
        "ACCELERATE_USE_FSDP": "true",
        "FSDP_VERSION": "2",
        "FSDP_AUTO_WRAP_POLICY": "TRANSFORMER_BASED_WRAP",
        "FSDP_CPU_RAM_EFFICIENT_LOADING": "false",
    },
    "zero1": {"ACCELERATE_USE_DEEPSPEED": "true", "ACCELERATE_DEEPSPEED_ZERO_STAGE": "1"},
    "zero2": {"ACCELERATE_USE_DEEPSPEED": "true", "ACCELERATE_DEEPSPEED_ZERO_STAGE": "2"},
    "zero3": {"ACCELERATE_USE_DEEPSPEED": "true", "ACCELERATE_DEEPSPEED_ZERO_STAGE": "3"},
}


def allow_cpu_engines() -> None:
    prepare = PartialState._prepare_backend
    PartialState._prepare_backend = lambda self, cpu=False, *rest: (
        prepare(self, cpu, *rest) if cpu or "RANK" not in os.environ else ("gloo", DistributedType.MULTI_GPU)
    )
    PartialState.set_device = lambda self: setattr(self, "device", torch.device("cpu"))
    if importlib.util.find_spec("deepspeed"):
        os.environ["DS_ACCELERATOR"] = "cpu"
        importlib.import_module("deepspeed.comm.torch").build_shm_op = lambda: None


def chosen(engine: str) -> AbstractContextManager[Any]:
    return mock.patch.dict(os.environ, ENGINES[engine])


def trains_as_one_process(engine: str, root: Path) -> None:
    """Two processes give the losses and the model of one, and one and three continue what they have written.

    The model is the average over the steps, which ZeRO does not have.
    """
    one, two = root / "one", root / engine
    average = {} if engine.startswith("zero") else {"ema_decay": 0.9}
    if not one.exists():
        assert launch(1, one, dropout=0, **average) == [0], said(one, 0)
    with chosen(engine):
        assert launch(2, two, dropout=0, gradient_accumulation_steps=1, **average) == [0, 0], said(two, 0) + said(
            two, 1
        )
        assert_equal(two, one)
        checkpoint = two / "checkpoints" / "step-00000006"
        writers = {path.name.split("-model-")[0] for path in checkpoint.glob("*.safetensors")}
        assert writers == {"shard-00001", "shard-00002"}
        for count, size, accumulation in ((1, 3, 2), (3, 2, 1)):
            folder = root / f"{engine}_by_{count}"
            sizes = {"batch_size": size, "gradient_accumulation_steps": accumulation} | average
            statuses = launch(count, folder, dropout=0, resume=checkpoint, grouped=True, **sizes)
            assert statuses == [0] * count, said(folder, 0)
            assert_equal(folder, one)
    folder = root / f"{engine}_by_none"
    assert launch(1, folder, dropout=0, resume=checkpoint, **average) == [0], said(folder, 0)
    assert_equal(folder, one)


def trains_the_model(engine: str, root: Path) -> None:
    """The real model, half the samples without an image: the losses of DDP, which then continues the run."""
    sizes = {"batch_size": 2, "gradient_accumulation_steps": 2, "max_steps": 3, "checkpoint_every": 2}
    expected, folder = root / "model", root / f"model_{engine}"
    for run, name in ((expected, "ddp"), (folder, engine)):
        if not run.exists():
            with chosen(name):
                assert launch(2, run, task=TinyPreTraining(itc_weight=1.0), **sizes) == [0, 0], said(run, 0)
    # Not the weights: the gradient of a key's bias is nothing but rounding, and AdamW makes a full step of it.
    assert_same_losses(folder, expected)
    M3AEForPreTraining.from_pretrained(folder / "model")
    continued, checkpoint = root / f"model_{engine}_continued", folder / "checkpoints" / "step-00000002"
    with chosen("ddp"):
        task = TinyPreTraining(itc_weight=1.0)
        assert launch(2, continued, task=task, resume=checkpoint, **sizes) == [0, 0], said(continued, 0)
    assert_same_losses(continued, expected)


def skips_what_is_not_finite(engine: str, root: Path) -> None:
    """A step without a finite gradient changes nothing, and bfloat16 nearly nothing."""
    sizes = {"gradient_accumulation_steps": 1, "max_steps": 4}
    expected, folder, rounded = root / "skipping", root / f"skipping_{engine}", root / f"rounded_{engine}"
    for run, name in ((expected, "ddp"), (folder, engine)):
        if not run.exists():
            with chosen(name):
                assert launch(2, run, task=ToyTask(dropout=0, nan_at=[1]), **sizes) == [0, 0], said(run, 0)
    assert "step 2 skipped, not finite: process 0: loss = nan" in said(folder, 0)
    assert losses(folder).keys() == {1, 3, 4}
    assert_equal(folder, expected)
    with chosen(engine):
        task = ToyTask(dropout=0, nan_at=[1])
        assert launch(2, rounded, task=task, mixed_precision="bf16", **sizes) == [0, 0], said(rounded, 0)
    assert_same_losses(rounded, expected, tolerance=0.02)
    assert losses(rounded) != losses(expected)


def communicates_once_a_step(root: Path) -> None:
    """Of the micro-batches that make a step, the last one alone reduces gradients."""
    folder, task = root / "counted", CountingTask()
    with chosen("ddp"), mock.patch.object(Accelerator, "prepare", task.prepare_counting(Accelerator.prepare)):
        statuses = launch(2, folder, task=task, max_steps=2, gradient_accumulation_steps=4)
    assert statuses == [0, 0], said(folder, 0)
    assert read_metrics(folder / "metrics.jsonl")[-1]["validation/reductions"] == 2


class CountingTask(ToyTask):
    """Counts the reductions of gradients; the model fits into one bucket."""

    reductions = 0

    def prepare_counting(self, prepare: Callable[..., Any]) -> Callable[..., Any]:
        def count(group: Any, bucket: dist.GradBucket) -> torch.futures.Future[torch.Tensor]:
            self.reductions += 1
            return allreduce_hook(group, bucket)

        def counting(accelerator: Accelerator, *objects: Any) -> Any:
            prepared = prepare(accelerator, *objects)
            prepared[0].register_comm_hook(None, count)
            return prepared

        return counting

    def report(self, model: torch.nn.Module, accelerator: Accelerator) -> dict[str, float]:
        return {"validation/reductions": float(self.reductions)}


def contrasts_all_samples(engine: str, root: Path) -> None:
    """Contrast over the samples of two processes, and of their micro-batches, is that of one batch of them all."""
    runs = {
        "one": ("ddp", 1, 6, 1),
        f"two_{engine}": (engine, 2, 3, 1),
        f"cached_{engine}": (engine, 2, 1, 3),
    }
    for name, (used, count, size, accumulation) in runs.items():
        folder, over = root / f"contrast_{name}", "step" if accumulation > 1 else "micro_batch"
        if folder.exists():
            continue
        sizes = {"batch_size": size, "gradient_accumulation_steps": accumulation, "contrast_over": over}
        with chosen(used):
            task = TinyPreTraining(mim_weight=0.0, mlm_weight=0.0, itm_weight=0.0, itc_weight=1.0)
            statuses = launch(count, folder, task=task, max_steps=3, **sizes)
        assert statuses == [0] * count, said(folder, 0)
        assert_same_losses(folder, root / "contrast_one")


def draws_its_own_components(root: Path) -> None:
    """Each of two processes draws components of the mixture for its own samples."""
    folder, task = root / "components", ComponentsTask()
    draw = objectives._draw_components
    with chosen("ddp"), mock.patch.object(objectives, "_draw_components", task.keep_drawn(draw)):
        assert launch(2, folder, task=task, batch_size=6, max_steps=4) == [0, 0], said(folder, 0)
    assert 0 < read_metrics(folder / "metrics.jsonl")[-1]["validation/different"] < 1


class ComponentsTask(TinyPreTraining):
    """A mixture of products of experts on triplets; keeps the components that training draws."""

    def __init__(self) -> None:
        self.model = latent_model(kind="mopoe", objective="elbo", num_samples=1)
        self.drawn: list[torch.Tensor] = []

    def keep_drawn(self, draw: Callable[..., torch.Tensor]) -> Callable[..., torch.Tensor]:
        def keeping(*arguments: Any) -> torch.Tensor:
            self.drawn.append(draw(*arguments).flatten())
            return self.drawn[-1]

        return keeping

    def collate(self, samples: Sequence[int]) -> dict[str, Any]:
        return {"modalities": digits_batch(len(samples))}

    def evaluate(self, model: Any, accelerator: Accelerator, split: str) -> dict[str, float]:
        return {"loss": 0.0}

    def report(self, model: Any, accelerator: Accelerator) -> dict[str, float]:
        here, there = accelerator.gather(torch.stack(self.drawn)[None])
        return {"validation/different": (here != there).float().mean().item()}


def assert_same_losses(run: Path, expected: Path, tolerance: float = 1e-5) -> None:
    """Those of training, and the one that a whole model was measured to have at the end."""
    found, wanted = ({**losses(folder), "last": validation_loss(folder)} for folder in (run, expected))
    assert len(found) > 1 and found.keys() <= wanted.keys()
    for step, loss in found.items():
        assert abs(loss / wanted[step] - 1) < tolerance, (run.name, step, loss, wanted[step])


def assert_equal(run: Path, expected: Path) -> None:
    assert_same_losses(run, expected)
    was, found = (load_file(folder / "model" / "model.safetensors") for folder in (expected, run))
    assert was.keys() == found.keys()
    for name in was:
        torch.testing.assert_close(was[name], found[name], rtol=1e-5, atol=1e-6)


def validation_loss(folder: Path) -> float:
    return float(read_metrics(folder / "metrics.jsonl")[-1]["validation/loss"])


if __name__ == "__main__":
    torch.set_num_threads(1)
    folder, *engines = sys.argv[1:]
    thoroughly = engines if "--all" in engines else ("fsdp2", "zero3")  # the others take the same ways
    engines = [engine for engine in engines if engine != "--all"]
    os.environ.pop("ACCELERATE_USE_CPU", None)  # which says that no other engine is wanted
    allow_cpu_engines()
    for engine in engines:
        if engine == "ddp" or engine in thoroughly:
            contrasts_all_samples(engine, Path(folder))
        if engine == "ddp":
            communicates_once_a_step(Path(folder))
            draws_its_own_components(Path(folder))
        trains_as_one_process(engine, Path(folder))
        if engine in thoroughly:
            trains_the_model(engine, Path(folder))
            skips_what_is_not_finite(engine, Path(folder))
        print(engine, flush=True)
