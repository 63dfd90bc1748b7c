"""Objectives of the masked pass, as pure functions."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional as F


def patchify(pixel_values: Tensor, patch_size: int) -> Tensor:
    """Cut images (B, C, H, W) into patches (B, N, P·P·C), channels last within a patch (He et al. 2022)."""
    batch, channels, height, width = pixel_values.shape
    rows, columns = height // patch_size, width // patch_size
    patches = pixel_values.reshape(batch, channels, rows, patch_size, columns, patch_size)
    return patches.permute(0, 2, 4, 3, 5, 1).reshape(batch, rows * columns, -1)


def unpatchify(patches: Tensor, patch_size: int, num_channels: int) -> Tensor:
    """Put square images (B, C, H, W) together from patches (B, N, P·P·C): the inverse of `patchify`."""
    batch, count, _ = patches.shape
    side = round(count**0.5)
    grid = patches.reshape(batch, side, side, patch_size, patch_size, num_channels)
    return grid.permute(0, 5, 1, 3, 2, 4).reshape(batch, num_channels, side * patch_size, side * patch_size)


def normalize_patches(patches: Tensor) -> Tensor:
    """Give each patch (…, P·P·C) mean 0 and variance 1: (x − mean) / √(var + 1e-6)."""
    variance = patches.var(dim=-1, keepdim=True)
    return (patches - patches.mean(dim=-1, keepdim=True)) / (variance + 1e-6).sqrt()


def masked_image_loss(prediction: Tensor, target: Tensor, mask: Tensor) -> Tensor:
    """Mean squared error over the masked patches; 0 where nothing is masked.

    Args:
        prediction: (B, N, P·P·C).
        target: (B, N, P·P·C).
        mask: (B, N) bool, True = masked and present.
    """
    error = (prediction.float() - target.float()).square().mean(-1)
    return (error * mask).sum() / mask.sum().clamp(min=1)


def masked_language_loss(logits: Tensor, labels: Tensor) -> Tensor:
    """Cross-entropy over the labelled slots; 0 where there is none.

    Args:
        logits: (B, M, V).
        labels: (B, M), −100 = no label.
    """
    total = F.cross_entropy(logits.float().flatten(0, -2), labels.flatten(), ignore_index=-100, reduction="sum")
    return total / (labels != -100).sum().clamp(min=1)


def matching_loss(logits: Tensor, labels: Tensor, valid: Tensor) -> Tensor:
    """Cross-entropy over the pairs that have both modalities; 0 where there is none.

    Args:
        logits: (B, 2).
        labels: (B,) 1 = matched.
        valid: (B,) bool.
    """
    return masked_language_loss(logits, labels.masked_fill(~valid, -100))


def contrastive_loss(logits: Tensor, same: Tensor, valid: Tensor) -> Tensor:
    """Symmetric InfoNCE: each text finds its image among the batch's, and each image its text (Radford et al. 2021).

    Args:
        logits: (B, B) similarity of text i and image j over the temperature.
        same: (B, B) bool: i and j share the image or the text; such a pair is no negative.
        valid: (B,) bool: the sample has both modalities.
    """
    own = torch.eye(len(logits), dtype=torch.bool, device=logits.device)
    masked = logits.float().masked_fill((same & ~own) | ~(valid[:, None] & valid[None]) & ~own, -torch.inf)
    log_odds = masked.log_softmax(1).diagonal() + masked.log_softmax(0).diagonal()
    return -(log_odds * valid).sum() / (2 * valid.sum().clamp(min=1))
