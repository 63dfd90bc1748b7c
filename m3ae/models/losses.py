"""Objectives of the masked pass and of the fine-tuned heads, as pure functions."""

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


def unpatchify(patches: Tensor, patch_size: int, num_channels: int, rows: int | None = None) -> Tensor:
    """Put images (B, C, H, W) together from patches (B, N, P·P·C) in some rows: the inverse of `patchify`.

    Without a number of rows, images are square.
    """
    batch, count, _ = patches.shape
    rows = rows or round(count**0.5)
    columns = count // rows
    grid = patches.reshape(batch, rows, columns, patch_size, patch_size, num_channels)
    return grid.permute(0, 5, 1, 3, 2, 4).reshape(batch, num_channels, rows * patch_size, columns * patch_size)


def normalize_patches(patches: Tensor) -> Tensor:
    """Give each patch (…, P·P·C) mean 0 and variance 1: (x − mean) / √(var + 1e-6)."""
    centred = patches - patches.mean(dim=-1, keepdim=True)
    variance = centred.square().sum(dim=-1, keepdim=True) / (patches.shape[-1] - 1)  # `var` takes ten times as long
    return centred / (variance + 1e-6).sqrt()


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
    own = torch.eye(logits.shape[0], dtype=torch.bool, device=logits.device)
    masked = logits.float().masked_fill((same & ~own) | ~(valid[:, None] & valid[None]) & ~own, -torch.inf)
    log_odds = masked.log_softmax(1).diagonal() + masked.log_softmax(0).diagonal()
    return -(log_odds * valid).sum() / (2 * valid.sum().clamp(min=1))


def answer_loss(logits: Tensor, labels: Tensor, *, exclusive: bool = False) -> Tensor:
    """Cross-entropy of the answers, averaged over the questions.

    Args:
        logits: (B, A).
        labels: (B,) the answer's index, −100 for a question without one in the list, which is left out; or (B, A) how
            right each answer is, from 0 to 1.
        exclusive: Whether one answer out of all is right (softmax; what is right is divided by its sum), rather than
            each of them by itself (binary cross-entropy summed over the answers; Chen et al. 2022).
    """
    if labels.dim() == 1:
        known = labels != -100
        targets = F.one_hot(labels.clamp(min=0), logits.shape[-1]).float()
    else:
        known = torch.ones_like(labels[:, 0], dtype=torch.bool)
        targets = labels.float()
    if exclusive:
        shares = targets / targets.sum(-1, keepdim=True).clamp(min=torch.finfo(torch.float32).tiny)
        loss = F.cross_entropy(logits.float(), shares, reduction="none")
    else:
        loss = F.binary_cross_entropy_with_logits(logits.float(), targets, reduction="none").sum(-1)
    return (loss * known).sum() / known.sum().clamp(min=1)


def class_loss(logits: Tensor, labels: Tensor, weights: Tensor | None = None) -> Tensor:
    """Cross-entropy over the labelled samples, averaged with the weight of each one's class.

    Args:
        logits: (B, A).
        labels: (B,) −100 = unknown.
        weights: (A,) one for each class; 1 if None.
    """
    loss = F.cross_entropy(logits.float(), labels, weights, ignore_index=-100, reduction="none")
    known = labels != -100
    weight = known.float() if weights is None else weights[labels.clamp(min=0)] * known
    return loss.sum() / torch.where(known.any(), weight.sum(), 1)


def multi_label_loss(logits: Tensor, labels: Tensor, weights: Tensor | None = None) -> Tensor:
    """Binary cross-entropy over the known entries; 0 where there is none.

    Args:
        logits: (B, A).
        labels: (B, A) 0 or 1, −100 = unknown.
        weights: (A,) of the positives of each label; 1 if None.
    """
    known = labels != -100
    targets = labels.float().masked_fill(~known, 0)
    loss = F.binary_cross_entropy_with_logits(logits.float(), targets, pos_weight=weights, reduction="none")
    return (loss * known).sum() / known.sum().clamp(min=1)


def ranking_loss(scores: Tensor, valid: Tensor) -> Tensor:
    """Cross-entropy of finding the first among the candidates; 0 where there is nothing to find.

    Args:
        scores: (B, 1 + K), the positive in column 0, −∞ where a candidate does not count.
        valid: (B,) bool: the row has a positive.
    """
    loss = torch.where(valid, -scores.float().log_softmax(-1)[:, 0], 0)
    return loss.sum() / valid.sum().clamp(min=1)
