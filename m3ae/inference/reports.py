"""Reports on images, written by a fine-tuned model."""

from __future__ import annotations

import copy
from collections.abc import Sequence
from typing import Any

import torch

from m3ae.inference.inputs import BATCH_SIZE
from m3ae.inference.prediction import predict
from m3ae.models.processing import M3AEProcessor
from m3ae.models.reports import M3AEForReportGeneration


def write_reports(
    model: M3AEForReportGeneration,
    processor: M3AEProcessor,
    images: Sequence[Any],
    texts: Sequence[str | None] | None = None,
    *,
    batch_size: int = BATCH_SIZE,
    seed: int = 0,
    **options: Any,
) -> list[str]:
    """Write a report on each image, or on each study of several views.

    Args:
        model: The model, in evaluation mode.
        processor: The model's processor.
        images: An image for each report, as `m3ae.predict` takes them.
        texts: A further text for each report, such as the indication, if the model was trained with such texts.
        batch_size: The number of reports at a time.
        seed: The seed of sampling.
        options: Options of transformers' `generate` that replace the model's, such as `num_beams=4`, or
            `do_sample=True, top_p=0.9`.

    Raises:
        ValueError: Images and texts differ in number, an image cannot be read, or there is no such option.
    """
    usual = model.generation_config
    model.generation_config = copy.deepcopy(usual)
    try:
        if unknown := model.generation_config.update(**options):
            raise ValueError(f"generate has no option {', '.join(unknown)}")
        with torch.random.fork_rng(devices=[] if model.device.type == "cpu" else None):
            torch.manual_seed(seed)
            rows = predict((model, processor), images, texts, batch_size=batch_size)
    finally:
        model.generation_config = usual
    if errors := [f"image {number}: {row['error']}" for number, row in enumerate(rows) if "error" in row]:
        raise ValueError("; ".join(errors))
    return [row["report"] for row in rows]
