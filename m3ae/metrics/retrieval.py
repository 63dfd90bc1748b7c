"""Recall at K and median rank of a score matrix."""

from __future__ import annotations

import torch
from torch import Tensor


def ranks_of_best_match(scores: Tensor, relevant: Tensor) -> Tensor:
    """Rank (1 = first) of the best-placed relevant candidate of each query.

    Ties count against the model: a candidate with an equal score that is not relevant is placed first.

    Args:
        scores: (Q, C), higher is better.
        relevant: (Q, C) bool, at least one in each row.

    Returns:
        (Q,) ranks.
    """
    best = scores.masked_fill(~relevant, -torch.inf).amax(dim=1, keepdim=True)
    return ((scores >= best) & ~relevant).sum(dim=1) + 1


def recall_at_k(scores: Tensor, relevant: Tensor, ks: tuple[int, ...] = (1, 5, 10)) -> dict[str, float]:
    """Share of the queries (Q, C) with a relevant candidate among the first K, as `recall@K`, and `median_rank`."""
    ranks = ranks_of_best_match(scores, relevant).float()
    recalls = {f"recall@{k}": float((ranks <= k).float().mean()) for k in ks}
    return recalls | {"median_rank": float(ranks.median())}
