"""Masked reconstructions, as numbers and as a picture."""

from __future__ import annotations

import textwrap
from collections.abc import Mapping, Sequence
from pathlib import Path

import torch
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from torch import Tensor

from m3ae.models.losses import patchify, unpatchify
from m3ae.models.pretraining import M3AEForPreTraining
from m3ae.models.processing import M3AEImageProcessor


def predicted_patches(model: M3AEForPreTraining, pixel_values: Tensor, mim_logits: Tensor) -> Tensor:
    """Turn predictions (B, N, P·P·C) into patches on the scale of `pixel_values`.

    A model that predicts normalised patches says nothing of their mean and contrast: these are the original's.
    """
    if not model.config.norm_pix_loss:
        return mim_logits.float()
    patches = patchify(pixel_values, model.patch_size)
    deviation = (patches.var(dim=-1, keepdim=True) + 1e-6).sqrt()
    return mim_logits.float() * deviation + patches.mean(dim=-1, keepdim=True)


def reconstruct(model: M3AEForPreTraining, batch: Mapping[str, Tensor]) -> tuple[Tensor, Tensor]:
    """Hide patches and fill them in.

    Returns:
        Images (B, C, H, W) with grey in place of the masked patches, and the same with the model's patches there.
    """
    pixel_values = batch["pixel_values"]
    output = model(**batch)
    mask = output.mim_mask[..., None]
    original = patchify(pixel_values, model.patch_size)
    predicted = predicted_patches(model, pixel_values, output.mim_logits)
    channels = pixel_values.shape[1]
    masked = unpatchify(torch.where(mask, 0.0, original), model.patch_size, channels)
    return masked, unpatchify(torch.where(mask, predicted, original), model.patch_size, channels)


def plot_reconstructions(
    path: Path,
    model: M3AEForPreTraining,
    batch: Mapping[str, Tensor],
    texts: Sequence[str | None],
    image_processor: M3AEImageProcessor,
) -> None:
    """Draw original, masked input and reconstruction of each image of a batch, a column a sample."""
    masked, filled = reconstruct(model, batch)
    rows = {"original": batch["pixel_values"], "masked": masked, "reconstruction": filled}
    mean = torch.tensor(image_processor.image_mean)[:, None, None]
    std = torch.tensor(image_processor.image_std)[:, None, None]

    figure = Figure(figsize=(2.1 * len(texts), 7.2), layout="constrained")
    FigureCanvasAgg(figure)
    axes = figure.subplots(len(rows), len(texts), squeeze=False)
    for row, (name, images) in enumerate(rows.items()):
        for column, image in enumerate(images.float().cpu()):
            panel = axes[row, column]
            panel.imshow((image * std + mean).clamp(0, 1).permute(1, 2, 0).numpy())
            panel.set_xticks([])
            panel.set_yticks([])
            if column == 0:
                panel.set_ylabel(name)
            if row == len(rows) - 1:
                panel.set_xlabel(textwrap.fill(textwrap.shorten(texts[column] or "(no text)", 90), 26), fontsize=7)
    hidden = f"{model.config.mask_ratio:.0%} of the patches masked"
    note = "; mean and contrast of each patch are the original's" if model.config.norm_pix_loss else ""
    figure.suptitle(f"{hidden}{note}", fontsize=10)
    figure.savefig(path, dpi=130)
