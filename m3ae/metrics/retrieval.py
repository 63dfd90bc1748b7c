"""Retrieval: which candidates are right, recall at K and median rank of a score matrix.

Shapes: Q queries, C candidates, T texts, I images.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal

import datasets
import torch
from torch import Tensor

from m3ae.metrics.base import InMemoryMetric, as_matrix

RelevanceRule = Literal["every", "published"]


def ranks_of_best_match(scores: Tensor, relevant: Tensor) -> Tensor:
    """Rank (1 = first) of the best-placed relevant candidate of each query.

    Ties count against the model, and so does NaN: a candidate that is not relevant is placed first.

    Args:
        scores: (Q, C), higher is better.
        relevant: (Q, C) bool, at least one in each row.

    Returns:
        (Q,) ranks.
    """
    best = scores.masked_fill(~relevant, -torch.inf).amax(dim=1, keepdim=True)
    return (~(scores < best) & ~relevant).sum(dim=1) + 1


def recall_at_k(scores: Tensor, relevant: Tensor, ks: tuple[int, ...] = (1, 5, 10)) -> dict[str, float]:
    """Share of the queries (Q, C) with a relevant candidate among the first K, as `recall@K`, and `median_rank`.

    The median of an even number of ranks is the lower of the two in the middle.
    """
    ranks = ranks_of_best_match(scores, relevant).double()
    recalls = {f"recall@{k}": float((ranks <= k).double().mean()) for k in ks}
    return recalls | {"median_rank": float(ranks.median())}


def relevant_images(
    text_rows: Tensor, image_rows: Tensor, text_ids: Tensor, image_ids: Tensor, rule: RelevanceRule = "every"
) -> Tensor:
    """Which images are right for which texts, and the other way round.

    - `every`: an image is right for a text if the two stand together in any row of the data. Equal captions of
      different images, equal images with different captions, and several captions or views of a row all count.
    - `published`: only if both come from the same row, as in the code of ViLT and M3AE (`compute_irtr_recall`), where
      an equal caption of another image is wrong. All captions of a row are queries and candidates there, and any of
      them is a hit; the candidates that `torch.topk` puts first among equal scores, whereas we count ties as misses.

    Args:
        text_rows: (T,) the row of the data that each text comes from.
        image_rows: (I,) the row that each image comes from.
        text_ids: (T,) equal numbers name the same text.
        image_ids: (I,) equal numbers name the same image.
        rule: One of the above.

    Returns:
        (T, I) bool.
    """
    same_row = text_rows[:, None] == image_rows
    if rule == "published":
        return same_row
    text_kinds, image_kinds = text_ids.unique(return_inverse=True)[1], image_ids.unique(return_inverse=True)[1]
    together = same_row.new_zeros(int(text_kinds.max()) + 1, int(image_kinds.max()) + 1)
    texts, images = same_row.nonzero(as_tuple=True)
    together[text_kinds[texts], image_kinds[images]] = True
    return together[text_kinds][:, image_kinds]


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
