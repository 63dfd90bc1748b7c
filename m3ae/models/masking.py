"""Masking as pure functions of uniform noise, and what predicts the masked: 1 (or True) always means masked.

Shapes: B batch, N patches, L text tokens, D width.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor
from torch.nn import functional as F


class PatchMask(NamedTuple):
    """Which patches are hidden.

    Attributes:
        ids_keep: (B, K) indices of the visible patches.
        ids_restore: (B, N) position of each patch in the order [visible, masked].
        mask: (B, N) bool, True = masked.
        real: (B, N) bool, False = padding, which is neither visible nor masked; None = no patch is padding.
    """

    ids_keep: Tensor
    ids_restore: Tensor
    mask: Tensor
    real: Tensor | None = None


class TokenMask(NamedTuple):
    """A corrupted text and what to predict in it.

    Attributes:
        input_ids: (B, L) the text with its masked tokens replaced.
        positions: (B, M) positions of the tokens to predict; spare slots repeat valid positions.
        labels: (B, M) the original tokens at these positions, −100 in spare slots.
    """

    input_ids: Tensor
    positions: Tensor
    labels: Tensor


def mask_patches(noise: Tensor, mask_ratio: float, real: Tensor | None = None) -> PatchMask:
    """Keep the K = int(N·(1 − mask_ratio)) patches with the lowest noise, at least one (He et al. 2022).

    Of an image with n real patches, ⌊K·n / N⌋ of these stay visible, at least one. Padding fills its other slots of
    `ids_keep`, so that K is the same for all images.

    Args:
        noise: (B, N) uniform in [0, 1).
        mask_ratio: Share of patches to hide.
        real: (B, N) bool, False = padding; at least one patch of an image is real. All are if None.
    """
    count = noise.shape[1]
    num_keep = max(1, int(count * (1 - mask_ratio)))
    if real is not None:
        rank = noise.masked_fill(~real, 1.0).argsort(dim=1).argsort(dim=1)
        hidden = rank >= (num_keep * real.sum(1, keepdim=True) // count).clamp(min=1)
        noise = torch.where(real, noise + 2 * hidden, 1.5)  # visible, padding, hidden
    ids_shuffle = noise.argsort(dim=1)
    ids_restore = ids_shuffle.argsort(dim=1)
    mask = ids_restore >= num_keep if real is None else real & hidden
    return PatchMask(ids_shuffle[:, :num_keep], ids_restore, mask, real)


def blank_padding(pixel_values: Tensor, pixel_mask: Tensor | None) -> Tensor:
    """Return images (…, C, H, W) with 0 where `pixel_mask` (…, H, W) is 0, whatever the padding has been filled with.

    Raises:
        ValueError: The mask has another shape.
    """
    if pixel_mask is None:
        return pixel_values
    expected = (*pixel_values.shape[:-3], *pixel_values.shape[-2:])
    if pixel_mask.shape != expected:
        raise ValueError(
            f"pixel_mask is of shape {tuple(pixel_mask.shape)}; expected {expected}, a number for each pixel of "
            f"images {tuple(pixel_values.shape)}."
        )
    return torch.where(pixel_mask[..., None, :, :].bool(), pixel_values, 0)


def real_patches(pixel_mask: Tensor | None, patch_size: int, ids_keep: Tensor | None = None) -> Tensor | None:
    """Return which patches (B, N), or which of `ids_keep` (B, K), have a pixel of the image.

    All patches of an image that is nothing but padding are real: an empty softmax would be NaN.

    Args:
        pixel_mask: (…, H, W) of B images, 0 = padding; None, which is returned, if no image is padded.
        patch_size: Side of a patch.
        ids_keep: Indices of patches.
    """
    if pixel_mask is None:
        return None
    real = patchify(pixel_mask.bool().flatten(0, -3)[:, None], patch_size).any(-1)
    real = real | ~real.any(1, keepdim=True)
    return real if ids_keep is None else real.gather(1, ids_keep)


def mask_tokens(
    input_ids: Tensor,
    maskable: Tensor,
    noise: Tensor,
    probability: float,
    mask_token_id: int,
    vocab_size: int,
    word_ids: Tensor | None = None,
) -> TokenMask:
    """Mask round(probability·n) of a text's n maskable tokens, at least one if n > 0 (Devlin et al. 2019).

    80 % of the chosen tokens become the mask token, 10 % a random one, and 10 % stay. The number of slots M depends on
    the shapes alone, so a compiled step never sees a new shape because of the data.

    With `word_ids` whole words are masked in random order, until the number of tokens comes nearest to probability·n;
    all tokens of a word share its fate. A word of more than twice that number is left alone, or partly masked if the
    text has no other.

    Args:
        input_ids: (B, L).
        maskable: (B, L) bool: neither special nor padding.
        noise: (B, L, 2) uniform in [0, 1): the first channel ranks the tokens, the second one decides between the
            mask token, a random token and the token itself.
        probability: Share of the tokens to predict.
        mask_token_id: Index of the mask token.
        vocab_size: Random tokens are drawn from the whole vocabulary, as published.
        word_ids: (B, L) equal numbers are tokens of one word; each token is a word if None.
    """
    length = input_ids.shape[1]
    slots = torch.sym_max(1, _rounded(probability, length))
    rank_noise, fate = noise.unbind(-1)
    random_ids = (fate * 10 % 1 * vocab_size).long().clamp(0, vocab_size - 1)
    counts = maskable.sum(1)
    budget = (counts * probability).round().long().clamp(min=1).minimum(counts)
    if word_ids is None:
        order = rank_noise.masked_fill(~maskable, 2.0).argsort(dim=1)
    else:
        slots = torch.sym_min(2 * slots, length)
        order, budget, fate = _order_words(word_ids, maskable, rank_noise, fate, budget, counts * probability)
    positions = order[:, :slots]  # (B, M)
    chosen = torch.arange(positions.shape[1], device=input_ids.device) < budget[:, None]  # (B, M)

    original, fate, random_ids = (values.gather(1, positions) for values in (input_ids, fate, random_ids))
    corrupted = torch.where(fate < 0.8, mask_token_id, torch.where(fate < 0.9, random_ids, original))
    corrupted = torch.where(chosen, corrupted, original)
    return TokenMask(input_ids.scatter(1, positions, corrupted), positions, original.masked_fill(~chosen, -100))


def _rounded(probability: float, length: int) -> int:
    """Return round(probability·length); of a length that an exported program leaves open, by integers alone."""
    if isinstance(length, int):
        return round(probability * length)
    return (round(probability * 1_000_000) * length + 500_000) // 1_000_000


def _order_words(
    word_ids: Tensor, maskable: Tensor, rank_noise: Tensor, fate: Tensor, budget: Tensor, share: Tensor
) -> tuple[Tensor, Tensor, Tensor]:
    """Return positions (B, L) word by word in random order, how many to mask (B,), and the fate (B, L) of each word.

    A word has the noise of its first token.
    """
    position = torch.arange(word_ids.shape[1], device=word_ids.device)
    word = torch.where(maskable, word_ids, -1 - position)  # what is never masked belongs to no word
    same = word[:, :, None] == word[:, None, :]  # (B, L, L)
    first, size = same.int().argmax(2), same.sum(2)
    too_long = (size > 2 * budget[:, None]).float()
    rank = (rank_noise.gather(1, first) + too_long).masked_fill(~maskable, 3.0)
    order = rank.argsort(dim=1, stable=True)

    word = first.gather(1, order)
    last = torch.cat([word[:, 1:] != word[:, :-1], torch.ones_like(word[:, :1], dtype=torch.bool)], dim=1)
    off = (position + 1 - share[:, None]).abs().masked_fill(~(last & maskable.gather(1, order)), position.shape[0] + 1)
    nearest = off.argmin(1) + 1
    limited = torch.where(nearest > 2 * budget, budget, nearest)
    return order, torch.where(budget > 0, limited, 0), fate.gather(1, first)


def collect_labels(labels: Tensor) -> tuple[Tensor, Tensor]:
    """Turn labels of a whole text into slots.

    Args:
        labels: (B, L), −100 where nothing is to be predicted.

    Returns:
        Positions (B, M) and labels (B, M), M being the largest number of labels in a text (at least 1).
    """
    is_label = labels != -100
    slots = max(1, int(is_label.sum(1).max()))
    positions = is_label.int().argsort(dim=1, descending=True, stable=True)[:, :slots]
    return positions, labels.gather(1, positions)


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
    """Cross-entropy over the labelled slots; 0 if no slot has a label.

    Args:
        logits: (B, M, V).
        labels: (B, M), −100 = no label.
    """
    total = F.cross_entropy(logits.float().flatten(0, -2), labels.flatten(), ignore_index=-100, reduction="sum")
    return total / (labels != -100).sum().clamp(min=1)
