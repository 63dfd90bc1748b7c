"""Measuring a saved model on a split, without training."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

import torch
from accelerate import Accelerator

from m3ae.files import check_replaceable
from m3ae.tasks import task_class
from m3ae.training.config import FineTuningRun, QuestionAnsweringRun, RunConfig
from m3ae.training.engine import prepare_cpu, settle_precision
from m3ae.training.loop import fixed_randomness
from m3ae.training.progress import format_metrics


def evaluate(config: RunConfig, split: str = "test", output: Path | None = None) -> dict[str, float]:
    """Measure the model at `model.path`, with its head and labels, and print the metrics.

    Args:
        config: A run of any task; nothing is trained.
        split: Name of the split.
        output: Folder for the results; by default `evaluation` in `output_dir`.

    Returns:
        `<split>/<metric>`, with controls and intervals, as after training.

    Raises:
        FileExistsError: The folder holds results of something else.
        FileNotFoundError: There is no such prepared folder.
        ValueError: No model is named, the model lacks the task's head, or there is no such split.
    """
    if config.model.path is None or config.model.from_scratch:
        raise ValueError("model.path: expected the folder or hub name of a trained model to evaluate: model=FOLDER")
    folder = output or config.output_dir / "evaluation"
    signs = {"results.json": "from_scratch", "predictions.jsonl": "id", "latent.json": "subsets"}
    for name, sign in signs.items():
        check_replaceable(folder / name, f'"{sign}"')
    earlier = [name for name in signs if (folder / name).is_file()]
    changes: dict[str, Any] = {"output_dir": folder}
    if isinstance(config, FineTuningRun):
        changes["finetuning"] = config.finetuning.model_copy(update={"lora": None})  # merged when it was saved
    if isinstance(config, QuestionAnsweringRun):
        changes["question_answering"] = config.question_answering.model_copy(update={"answers": "checkpoint"})
    config = config.model_copy(update=changes)
    config.output_dir.mkdir(parents=True, exist_ok=True)  # before hours of measuring, not after
    accelerator = Accelerator(mixed_precision=settle_precision(config).training.mixed_precision)
    if earlier:
        accelerator.print(f"{folder} holds {', '.join(earlier)} already, which will be replaced", file=sys.stderr)
    prepare_cpu(accelerator)
    task = task_class(config.task).from_config(config, for_training=False)
    if not task.has(split):
        raise ValueError(f"{config.data.path} has no split {split!r}: it has {', '.join(task.manifest.splits)}")
    task.check(split)
    model = task.model.to(accelerator.device).eval()
    with fixed_randomness(config.training.seed), torch.no_grad():
        metrics: dict[str, float] = task.measure(model, accelerator, split)
    accelerator.print(format_metrics(str(config.model.path), metrics))
    return metrics
