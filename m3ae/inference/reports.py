"""Reports on images, written by a fine-tuned model.

Shapes: B batch, V views, H×W pixels.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from PIL import Image
from torch import Tensor

from m3ae.inference.inputs import BATCH_SIZE, encode_pixels, encode_words
from m3ae.models.processing import M3AEProcessor
from m3ae.models.reports import M3AEForReportGeneration

Study = Image.Image | Sequence[Image.Image | None]


@torch.inference_mode()
def write_reports(
    model: M3AEForReportGeneration,
    processor: M3AEProcessor,
    images: Sequence[Study],
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
        images: An image for each report; of a model of several views also a list, in the order of `config.views`, with
            None for a view that is missing.
        texts: A further text for each report, such as the indication, if the model was trained with them; None where
            it is missing.
        batch_size: The number of reports at a time.
        seed: The seed of sampling.
        options: Options of transformers' `generate` that replace the model's, such as `num_beams=4`, or
            `do_sample=True, top_p=0.9`.

    Raises:
        ValueError: The numbers of images and texts differ, a study has more views than the model, or there is no such
            option.
    """
    if texts is not None and len(texts) != len(images):
        raise ValueError(f"expected a text for each image, got {len(texts)} texts and {len(images)} images")
    reports: list[str] = []
    with torch.random.fork_rng(devices=[] if model.device.type == "cpu" else None):
        torch.manual_seed(seed)
        for start in range(0, len(images), batch_size):
            inputs: dict[str, Any] = _pixels(model, processor, images[start : start + batch_size])
            if texts is not None:
                batch = texts[start : start + batch_size]
                inputs |= encode_words(model, processor, [text or "" for text in batch])
                inputs["text_present"] = torch.tensor([bool(text) for text in batch], device=model.device)
            reports += decode_reports(processor, model.generate(**inputs, **options))
    return reports


def decode_reports(processor: M3AEProcessor, ids: Tensor) -> list[str]:
    """Return the texts of token ids (B, L)."""
    return [text.strip() for text in processor.tokenizer.batch_decode(ids, skip_special_tokens=True)]


def _pixels(model: M3AEForReportGeneration, processor: M3AEProcessor, studies: Sequence[Study]) -> dict[str, Tensor]:
    """Return `pixel_values` (B, 3, H, W), or of several views (B, V, 3, H, W) with `image_present` (B, V)."""
    views = [[study] if isinstance(study, Image.Image) else [*study] for study in studies]
    number = max(map(len, views))
    if number > model.config.num_views:
        raise ValueError(f"images: got {number} views of a study, and the model takes {model.config.num_views}")
    padded = [view for study in views for view in [*study, *[None] * (number - len(study))]]
    present = torch.tensor([view is not None for view in padded], device=model.device)
    blank = Image.new("L", (1, 1))
    pixels = encode_pixels(model, processor, [view or blank for view in padded]).unflatten(0, (-1, number))
    present = present.view(-1, number)
    if model.config.num_views == 1:
        pixels, present = pixels[:, 0], present[:, 0]
    return {"pixel_values": pixels, "image_present": present}
