"""Exact means over samples that are spread over batches and processes."""

from __future__ import annotations

import torch
from accelerate.utils import gather_object
from torch import Tensor


class MeanMetrics:
    """Running sums and counts by name, so that a mean never depends on how samples were batched or distributed."""

    def __init__(self) -> None:
        self._sums: dict[str, tuple[Tensor, Tensor]] = {}

    def add(self, name: str, values: Tensor, valid: Tensor | None = None) -> None:
        """Count the values, or those where `valid` (of the same shape, bool) is True."""
        valid = torch.ones_like(values, dtype=torch.bool) if valid is None else valid
        total = torch.where(valid, values.double(), 0.0).sum()
        count = valid.sum()
        before = self._sums.get(name, (0.0, 0))
        self._sums[name] = (before[0] + total, before[1] + count)

    def compute(self) -> dict[str, float]:
        """Return the means over all processes, each of which has to call this; a mean of nothing is left out."""
        own = {name: (float(total), int(count)) for name, (total, count) in self._sums.items()}
        everywhere = gather_object([own])
        means = {}
        for name in sorted({name for part in everywhere for name in part}):
            parts = [part[name] for part in everywhere if name in part]
            count = sum(count for _, count in parts)
            if count:
                means[name] = sum(total for total, _ in parts) / count
        return means
