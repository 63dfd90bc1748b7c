"""Exact means over samples that are spread over batches and processes."""

from __future__ import annotations

import torch
from accelerate import Accelerator
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

    def compute(self, accelerator: Accelerator) -> dict[str, float]:
        """Return the means over all processes; a name without any value is left out."""
        means = {}
        for name, (total, count) in sorted(self._sums.items()):
            both = accelerator.reduce(torch.stack([total, count.double()]).to(accelerator.device), reduction="sum")
            if both[1] > 0:
                means[name] = float(both[0] / both[1])
        return means
