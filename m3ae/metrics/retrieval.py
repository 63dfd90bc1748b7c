"""Retrieval: which candidates are right, and the rank of the best of them.

Shapes: Q queries, Q' distinct ones; C candidates, C' distinct ones; P pairs, B some of the queries.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import cached_property
from itertools import islice
from typing import Literal, NamedTuple

import torch
from torch import Tensor

RelevanceRule = Literal["every", "published"]
KS = (1, 5, 10)
DIRECTIONS = ("text_to_image", "image_to_text")
SCORES_AT_ONCE = 2**22  # 16 MB


def summarize_ranks(ranks: Tensor, ks: tuple[int, ...] = KS) -> dict[str, float]:
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
        queries: (Q,) number of the distinct text, or image, that each query is: from 0 on.
        candidates: (C,) number of the distinct thing that each candidate is.
        rule: The rule, one of the above.
    """

    def __init__(self, pairs: Tensor, queries: Tensor, candidates: Tensor, rule: RelevanceRule = "every") -> None:
        self._pairs, self._rule = pairs, rule
        self._members = candidates.argsort(stable=True).split(candidates.bincount().tolist())
        self._queries = torch.arange(len(queries)) if rule == "published" else queries
        self._size = int(candidates.max()) + 1
        keys = self._queries[pairs[:, 0]] * self._size + candidates[pairs[:, 1]]
        self._together, self._right = keys.unique(return_counts=True)  # ascending
        if rule == "every":
            self._right = candidates.bincount()[self._together % self._size]

    def of(self, queries: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Return what is right for some queries, one entry for each query and distinct candidate.

        Args:
            queries: (B,) numbers of queries.

        Returns:
            Where the query stands in `queries`, the number of the distinct candidate, and how many candidates equal
            to it are right.
        """
        first, end = (torch.searchsorted(self._together, (self._queries[queries] + i) * self._size) for i in (0, 1))
        counts = end - first
        rows = torch.arange(len(queries)).repeat_interleave(counts)
        entries = torch.arange(len(rows)) + (first - counts.cumsum(0) + counts)[rows]
        return rows, self._together[entries] % self._size, self._right[entries]

    def counts(self) -> Tensor:
        """Return how many candidates are right for each query, (Q,)."""
        totals = torch.zeros(int(self._queries.max()) + 1, dtype=torch.long)
        return totals.index_add_(0, self._together // self._size, self._right)[self._queries]

    def right_for(self, query: int) -> list[int]:
        """Return the numbers of all candidates that are right for a query."""
        if self._rule == "published":
            return [*self._pairs[self._pairs[:, 0] == query, 1].tolist()]
        _, numbers, _ = self.of(torch.tensor([query]))
        return sorted(candidate for number in numbers.tolist() for candidate in self._members[number].tolist())


@dataclass(frozen=True)
class Found:
    """Scores of candidates for queries; of equal queries and of equal candidates, one stands for all.

    Attributes:
        scores: Returns the scores (B, C') of the distinct candidates for the distinct queries that numbers (B,) name:
            larger = better, −∞ for a candidate that a search has left out.
        queries: (Q,) number of the distinct query that each query is.
        candidates: (C,) number of the distinct candidate that each candidate is.
    """

    scores: Callable[[Tensor], Tensor]
    queries: Tensor
    candidates: Tensor

    def ranks(self, relevance: Relevance) -> Tensor:
        """Return the rank (Q,) of the best right candidate of each query, 1 = first; ∞ if all were left out.

        Ties count against the model, and so does NaN: a candidate that is not right is placed first.
        """
        copies = self.candidates.bincount().float()
        # What outlives a block is allocated before: between the blocks' large buffers it would keep them from reuse.
        ranks = torch.empty(len(self.queries), dtype=torch.float64)
        for queries in self._blocks(len(self.queries)):
            scores = self.scores(self.queries[queries])
            rows, right, counts = relevance.of(queries)
            best = torch.full((len(queries),), -torch.inf).scatter_reduce_(0, rows, scores[rows, right], "amax")
            ahead = ~(scores < best[:, None])
            right_ahead = torch.zeros(len(queries)).index_add_(0, rows, ahead[rows, right] * counts.float())
            ranks[queries] = (
                (ahead.float() @ copies - right_ahead + 1).masked_fill(best.isneginf(), torch.inf).double()
            )
        return ranks

    def best(self, k: int) -> list[list[tuple[int, float]]]:
        """Return at most `k` candidates of each query, the best first, with their scores."""
        copies: list[list[int]] = [[] for _ in range(int(self.candidates.max()) + 1)]
        for candidate, number in enumerate(self.candidates.tolist()):
            copies[number].append(candidate)
        rows: list[list[tuple[int, float]]] = []
        for queries in self._blocks(int(self.queries.max()) + 1):
            scores = self.scores(queries)
            values, numbers = scores.topk(min(k, scores.shape[1]), dim=1)
            for row in zip(numbers.tolist(), values.tolist(), strict=True):
                pairs = ((copy, score) for number, score in zip(*row, strict=True) for copy in copies[number])
                rows.append([*islice((pair for pair in pairs if pair[1] != -torch.inf), k)])
        return [rows[query] for query in self.queries.tolist()]

    def _blocks(self, count: int) -> Iterator[Tensor]:
        """Yield the numbers below `count` in blocks whose scores fit into a little memory."""
        yield from torch.arange(count).split(max(1, SCORES_AT_ONCE // (int(self.candidates.max()) + 1)))


class BothWays(NamedTuple):
    """Scores of images for T texts, and of texts for I images."""

    text_to_image: Found
    image_to_text: Found


@dataclass(frozen=True)
class Ranking:
    """Scores, and which candidates are right, from texts to images and back."""

    scores: BothWays
    relevance: tuple[Relevance, Relevance]

    @classmethod
    def of(cls, scores: BothWays, pairs: Tensor, rule: RelevanceRule = "every") -> Ranking:
        """Judge scores by the pairs (P, 2) of a text and an image that come from the same row of the data."""
        images = Relevance(pairs, scores.text_to_image.queries, scores.text_to_image.candidates, rule)
        texts = Relevance(pairs.flip(1), scores.image_to_text.queries, scores.image_to_text.candidates, rule)
        return cls(scores, (images, texts))

    @cached_property
    def ranks(self) -> tuple[Tensor, Tensor]:
        """The rank of the best right candidate, (T,) and (I,); ∞ if all were left out."""
        return self.scores[0].ranks(self.relevance[0]), self.scores[1].ranks(self.relevance[1])

    def metrics(self) -> dict[str, float]:
        """Return recalls and median ranks both ways, numbers of queries, and the mean of the recalls."""
        metrics: dict[str, float] = {}
        for direction, ranks in zip(DIRECTIONS, self.ranks, strict=True):
            summary = summarize_ranks(ranks) | {"queries": len(ranks)}
            metrics |= {f"{direction}_{name}": value for name, value in summary.items()}
        recalls = [metrics[f"{direction}_recall@{k}"] for direction in DIRECTIONS for k in KS]
        return metrics | {"mean_recall": sum(recalls) / len(recalls)}
