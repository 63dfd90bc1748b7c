"""Measuring a saved model on a split, without training."""

from __future__ import annotations

from pathlib import Path

import torch
from accelerate import Accelerator

from m3ae.files import check_replaceable
from m3ae.tasks import task_class
from m3ae.training.config import RunConfig
from m3ae.training.cpu import prepare_cpu
from m3ae.training.engine import settle_precision
from m3ae.training.metrics_log import format_metrics
from m3ae.training.randomness import fixed_randomness


def evaluate(config: RunConfig, split: str = "test", output: Path | None = None) -> dict[str, float]:
    """Measure the model at `model.path`, with its own head and labels, and print the metrics.

    Args:
        config: A run of any task but pre-training; nothing of it is trained.
        split: Name of the split.
        output: Folder for what is found; by default `evaluation` in `output_dir`.

    Returns:
        `<split>/<metric>`, with controls and intervals, as after training.

    Raises:
        FileExistsError: The folder holds results of something else.
        FileNotFoundError: There is no such prepared folder.
        ValueError: The task is pre-training, no model is named, it has not the task's head, or there is no such split.
    """
    if config.task == "pretraining":
        raise ValueError("task: got pretraining, which is measured when it ends; expected another task")
    if config.model.path is None or config.model.from_scratch:
        raise ValueError("model.path: expected the folder or hub name of a trained model to evaluate: model=FOLDER")
    own_list = config.question_answering.model_copy(update={"answers": "checkpoint"})
    folder = output or config.output_dir / "evaluation"
    for name, sign in {"results.json": "from_scratch", "predictions.jsonl": "id", "latent.json": "subsets"}.items():
        check_replaceable(folder / name, f'"{sign}"')
    merged = config.finetuning.model_copy(update={"lora": None})
    changes = {"output_dir": folder, "question_answering": own_list, "finetuning": merged}
    config = config.model_copy(update=changes)
    accelerator = Accelerator(mixed_precision=settle_precision(config).training.mixed_precision)
    prepare_cpu(accelerator)
    task = task_class(config.task).from_config(config, for_training=False)
    if not task.has(split):
        raise ValueError(f"{config.data.path} has no split {split!r}: it has {', '.join(task.manifest.splits)}")
    model = task.model.to(accelerator.device).eval()
    with fixed_randomness(config.training.seed), torch.no_grad():
        metrics: dict[str, float] = task.measure(model, accelerator, split)
    accelerator.print(format_metrics(str(config.model.path), metrics))
    return metrics
