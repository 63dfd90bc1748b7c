"""Retrieval: which candidates are right, recall at K and median rank of a score matrix.

Shapes: Q queries, C candidates of each, P pairs, T texts, I images.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal

import datasets
import torch
from torch import Tensor

from m3ae.metrics.base import InMemoryMetric, as_matrix

RelevanceRule = Literal["every", "published"]


def ranks_of_best_match(scores: Tensor, relevant: Tensor, others: Tensor | None = None) -> Tensor:
    """Rank (1 = first) of the best-placed relevant candidate of each query.

    Ties count against the model, and so does NaN: a candidate that is not relevant is placed first.

    Args:
        scores: (Q, C), higher is better.
        relevant: (Q, C) bool.
        others: (Q, C) for how many that are not relevant each stands; if None, for one unless it is relevant itself.

    Returns:
        (Q,) float64 ranks; ∞ where no candidate is relevant.
    """
    best = scores.masked_fill(~relevant, -torch.inf).amax(dim=1, keepdim=True)
    ahead = ~(scores < best) * (~relevant if others is None else others)
    return (ahead.sum(dim=1) + 1).double().masked_fill(~relevant.any(dim=1), torch.inf)


def recall_at_k(scores: Tensor, relevant: Tensor, ks: tuple[int, ...] = (1, 5, 10)) -> dict[str, float]:
    """Share of the queries (Q, C) with a relevant candidate among the first K, and median; see `summarize_ranks`."""
    return summarize_ranks(ranks_of_best_match(scores, relevant), ks)


def summarize_ranks(ranks: Tensor, ks: tuple[int, ...] = (1, 5, 10)) -> dict[str, float]:
    """Return the share of ranks (Q,) that are K at most, as `recall@K`, and `median_rank`.

    The median of an even number of ranks is the lower of the two in the middle.
    """
    recalls = {f"recall@{k}": float((ranks <= k).double().mean()) for k in ks}
    return recalls | {"median_rank": float(ranks.median())}


class Relevance:
    """Which candidates are right for which queries, without a matrix of all of them.

    - `every`: a candidate is right if it stands together with the query in any row of the data. Equal captions of
      different images, equal images with different captions, and several captions or views of a row all count.
    - `published`: only if both come from the same row, as in the code of ViLT and M3AE (`compute_irtr_recall`), where
      an equal caption of another image is wrong. All captions of a row are queries and candidates there, and any of
      them is a hit; the candidates that `torch.topk` puts first among equal scores, whereas we count ties as misses.

    Args:
        pairs: (P, 2) numbers of a query and a candidate that come from the same row of the data, each pair once.
        queries: (Q,) which of the distinct texts, or images, each query is: from 0 on.
        candidates: (C,) which of the distinct things that are searched each candidate is.
        rule: One of the above.
    """

    def __init__(self, pairs: Tensor, queries: Tensor, candidates: Tensor, rule: RelevanceRule = "every") -> None:
        self._pairs, self._candidates, self._rule = pairs, candidates, rule
        self._queries = torch.arange(len(queries)) if rule == "published" else queries
        self._copies = candidates.bincount()
        keys = self._keys(pairs[:, 0], candidates[pairs[:, 1]])
        self._together, self._right = keys.unique(return_counts=True)  # ascending
        if rule == "every":
            self._right = self._copies[self._together % len(self._copies)]

    def copies(self, queries: Tensor, kinds: Tensor) -> tuple[Tensor, Tensor]:
        """Count the candidates that are one of the distinct ones: those right for a query, and the others.

        Args:
            queries: (B,) numbers of queries.
            kinds: (B, K) numbers of distinct candidates.

        Returns:
            (B, K) and (B, K).
        """
        keys = self._keys(queries[:, None], kinds)
        place = torch.searchsorted(self._together, keys).clamp(max=len(self._together) - 1)
        right = torch.where(self._together[place] == keys, self._right[place], 0)
        return right, self._copies[kinds] - right

    def counts(self) -> Tensor:
        """Return how many candidates are right for each query, (Q,)."""
        found = torch.zeros(int(self._queries.max()) + 1, dtype=torch.long)
        return found.index_add_(0, self._together // len(self._copies), self._right)[self._queries]

    def right_for(self, query: int) -> list[int]:
        """Return the numbers of all candidates that are right for a query."""
        found = self._pairs[self._queries[self._pairs[:, 0]] == self._queries[query], 1]
        if self._rule == "every":
            found = torch.isin(self._candidates, self._candidates[found]).nonzero()[:, 0]
        return [*found.tolist()]

    def _keys(self, queries: Tensor, kinds: Tensor) -> Tensor:
        keys: Tensor = self._queries[queries] * len(self._copies) + kinds
        return keys


def relevant_images(
    text_rows: Tensor, image_rows: Tensor, text_ids: Tensor, image_ids: Tensor, rule: RelevanceRule = "every"
) -> Tensor:
    """Which images are right for which texts, all of them; see `Relevance`.

    Args:
        text_rows: (T,) the row of the data that each text comes from.
        image_rows: (I,) the row that each image comes from.
        text_ids: (T,) equal numbers name the same text.
        image_ids: (I,) equal numbers name the same image.
        rule: What counts.

    Returns:
        (T, I) bool.
    """
    same_row = text_rows[:, None] == image_rows
    if rule == "published":
        return same_row
    texts, images = (ids.unique(return_inverse=True)[1] for ids in (text_ids, image_ids))
    kinds = torch.arange(int(images.max()) + 1).expand(len(texts), -1)
    right, _ = Relevance(same_row.nonzero(), texts, images).copies(torch.arange(len(texts)), kinds)
    relevant: Tensor = (right > 0)[:, images]
    return relevant


def retrieval_metrics(scores: Tensor, relevant: Tensor) -> dict[str, float]:
    """Return recall at 1, 5 and 10 and median rank both ways, and the number of queries.

    Args:
        scores: (T, I), higher = a better match.
        relevant: (T, I) bool, for instance of `relevant_images`.

    Returns:
        `text_to_image_recall@1`, …, `text_to_image_median_rank`, `text_to_image_queries`, and the same as
        `image_to_text_…`. A text without a right image (or an image without a right text) is a candidate, not a query.

    Raises:
        ValueError: No text has a right image.
    """
    if not relevant.any():
        raise ValueError(f"none of the {len(scores)} texts has a right image among the {scores.shape[1]} candidates")
    metrics: dict[str, float] = {}
    for name, matrix, right in (("text_to_image", scores, relevant), ("image_to_text", scores.T, relevant.T)):
        is_query = right.any(1)
        found = recall_at_k(matrix[is_query], right[is_query]) | {"queries": int(is_query.sum())}
        metrics |= {f"{name}_{key}": value for key, value in found.items()}
    return metrics


class RetrievalMetrics(InMemoryMetric):
    """Recall at 1, 5 and 10 and median rank, text to image and image to text; see `retrieval_metrics`.

    Every right candidate counts: the best-placed one is the rank of a query. What is right is the caller's choice;
    `relevant_images` makes it, by content or by the published rule.

    Args of `compute`:
        predictions: The scores of all images for each text, in the same order for each.
        references: The positions of the images that are right for each text; may be empty.

    Returns of `compute`:
        `text_to_image_recall@1`, `…recall@5`, `…recall@10`, `…median_rank`, `…queries`, and `image_to_text_…`.
    """

    FEATURES = {  # noqa: RUF012
        "predictions": datasets.List(datasets.Value("float64")),
        "references": datasets.List(datasets.Value("int64")),
    }

    def _compute(
        self, predictions: Sequence[Sequence[float]], references: Sequence[Sequence[int]]
    ) -> dict[str, float]:
        scores = torch.from_numpy(as_matrix(predictions, "predictions"))
        relevant = torch.zeros(scores.shape, dtype=torch.bool)
        for text, images in enumerate(references):
            wrong = [image for image in images if not 0 <= image < scores.shape[1]]
            if wrong:
                raise ValueError(f"references of text {text}: no image {wrong[0]} among the {scores.shape[1]} scored")
            relevant[text, images] = True
        return retrieval_metrics(scores, relevant)
