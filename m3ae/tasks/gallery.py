"""Images and texts to be searched for each other, over all processes.

Shapes: T texts, I images, Q queries, K candidates of each, P pairs, E contrastive space.
"""

from __future__ import annotations

from collections.abc import Callable, Hashable, Iterator, Sequence
from functools import partial
from itertools import count, islice
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import TYPE_CHECKING, NamedTuple

import torch
from accelerate import Accelerator
from torch import Tensor

from m3ae.data.collate import PairCollator
from m3ae.data.pairs import Pair
from m3ae.metrics.gather import gather_rows
from m3ae.metrics.retrieval import Relevance, ranks_of_best_match
from m3ae.models.decoders import ContrastiveHead
from m3ae.models.modeling import M3AEModel
from m3ae.models.search import Encoded, ImagesOnDemand, Score, embed, encode_texts, rerank_both_ways, score_pairs

if TYPE_CHECKING:
    from m3ae.data.index import EmbeddingIndex

EMBEDDED_AT_ONCE = 4096  # in all processes together
QUERIES_AT_ONCE = 1024


class Found(NamedTuple):
    """What is found for Q queries among C candidates; of equal queries and of equal candidates, one stands for all.

    Attributes:
        kinds: (Q', K) the distinct candidates found for each distinct query, in any order.
        scores: (Q', K) larger = better.
        queries: (Q,) which of the distinct ones each query is.
        candidates: (C,) which of the distinct ones each candidate is.
    """

    kinds: Tensor
    scores: Tensor
    queries: Tensor
    candidates: Tensor

    def ranks(self, relevance: Relevance) -> Tensor:
        """Return the rank (Q,) of the best-placed right candidate of each query; ∞ if none is found."""
        ranks = []
        for queries in torch.arange(len(self.queries)).split(QUERIES_AT_ONCE):
            kinds, scores = (part[self.queries[queries]] for part in (self.kinds, self.scores))
            right, others = relevance.copies(queries, kinds)
            ranks.append(ranks_of_best_match(scores, right > 0, others))
        return torch.cat(ranks)

    def best(self, number: int) -> list[list[tuple[int, float]]]:
        """Return the best candidates of each query, so many at most, and their scores."""
        members: list[list[int]] = [[] for _ in range(int(self.candidates.max()) + 1)]
        for candidate, kind in enumerate(self.candidates.tolist()):
            members[kind].append(candidate)
        scores, columns = self.scores.topk(min(number, self.scores.shape[1]), dim=1)
        rows = [*zip(self.kinds.gather(1, columns).tolist(), scores.tolist(), strict=True)]
        found = (
            ((candidate, score) for kind, score in zip(*rows[query], strict=True) for candidate in members[kind])
            for query in self.queries.tolist()
        )
        return [[*islice(candidates, number)] for candidates in found]


class BothWays(NamedTuple):
    """The images found for T texts, and the texts found for I images."""

    text_to_image: Found
    image_to_text: Found


class Gallery:
    """T texts and I images under one model; equal ones are computed once.

    The images are divided among the processes, each of which has to call the same methods.

    Args:
        trunk: The encoders.
        texts: The texts.
        image_ids: (I,) equal entries name the same image.
        load: Returns a pair with the image that has a place in `image_ids`.
        collator: Without augmentation.
        accelerator: Gives device, autocast and the other processes.
        batch_size: Inputs encoded and pairs fused at once.

    Attributes:
        text_kinds: (T,) which of the distinct texts each is.
        image_kinds: (I,) which of the distinct images each is.
    """

    def __init__(
        self,
        trunk: M3AEModel,
        texts: Sequence[str],
        image_ids: Sequence[Hashable],
        load: Callable[[int], Pair],
        collator: PairCollator,
        accelerator: Accelerator,
        batch_size: int,
    ) -> None:
        self.accelerator, self.batch_size = accelerator, batch_size
        first_texts, self.text_kinds = _distinct(texts)
        first_images, self.image_kinds = _distinct(image_ids)
        tokenizer = collator.processor.tokenizer
        tokens = tokenizer([texts[i] for i in first_texts], truncation=True, max_length=collator.max_text_length)
        with accelerator.autocast():
            self.texts = encode_texts(trunk, tokens["input_ids"], batch_size)

        def pixels(numbers: list[int]) -> Tensor:
            return collator([load(first_images[number]) for number in numbers])["pixel_values"]

        self.images = ImagesOnDemand(trunk, pixels, len(first_images), batch_size)

    def match(self, score: Score) -> Tensor:
        """Score every text against every image with the matching head: (T, I) on the CPU."""
        return self._matches(score)[self.text_kinds][:, self.image_kinds]

    def match_all(self, score: Score) -> BothWays:
        """Find everything, with the scores of the matching head."""
        return self._everything(self._matches(score))

    def compare_all(self, head: ContrastiveHead) -> BothWays:
        """Find everything, with the cosines in the space of the contrastive head."""
        texts, images = (torch.cat(list(self._embeddings(head, name))) for name in ("text", "image"))
        return self._everything(texts @ images.T)

    def search(self, score: Score, head: ContrastiveHead, k: int) -> tuple[BothWays, BothWays]:
        """Search both ways in two stages, without a matrix of all texts and images.

        The k nearest in the space of the contrastive head are found exactly, by an index on the disk, and are scored
        by the matching head.

        Args:
            score: The matching head.
            head: Gives the first stage.
            k: Candidates that are re-ranked: distinct ones, each of which stands for all that equal it.

        Returns:
            What the first stage finds, with its cosines, and the same with the scores of the matching head.
        """
        with TemporaryDirectory(prefix="m3ae-index-") as folder:
            texts, images = (self._index(head, name, Path(folder) / name) for name in ("text", "image"))
            first = self._both_ways(self._nearest(texts, images, k), self._nearest(images, texts, k))
        scores = rerank_both_ways(first[0].kinds, first[1].kinds, partial(self._score, score))
        return first, BothWays(*(found._replace(scores=own) for found, own in zip(first, scores, strict=True)))

    def _matches(self, score: Score) -> Tensor:
        """Score every distinct text against every distinct image."""
        pairs = torch.cartesian_prod(torch.arange(len(self.texts)), torch.arange(len(self.images)))
        return self._score(score, pairs).view(len(self.texts), len(self.images))

    def _everything(self, scores: Tensor) -> BothWays:
        """Find all distinct images for each distinct text and back, with the scores (T', I')."""
        texts, images = map(torch.arange, scores.shape)
        return self._both_ways((images.expand(scores.shape), scores), (texts.expand(scores.T.shape), scores.T))

    def _both_ways(self, of_texts: tuple[Tensor, Tensor], of_images: tuple[Tensor, Tensor]) -> BothWays:
        texts, images = self.text_kinds, self.image_kinds
        return BothWays(Found(*of_texts, texts, images), Found(*of_images, images, texts))

    def _score(self, score: Score, pairs: Tensor) -> Tensor:
        """Score pairs (P, 2), each in the process of its image."""
        processes, scores = self.accelerator.num_processes, torch.zeros(len(pairs))
        own = pairs[:, 1] % processes == self.accelerator.process_index
        with self.accelerator.autocast():
            scores[own] = score_pairs(score, self.texts, self.images, pairs[own], batch_size=self.batch_size)
        return self._sum(scores)

    def _embeddings(self, head: ContrastiveHead, name: str) -> Iterator[Tensor]:
        """Yield the unit vectors (B, E) of all distinct texts or images in order, each computed by one process."""
        inputs: Encoded = self.texts if name == "text" else self.images
        for rows in torch.arange(len(inputs)).split(EMBEDDED_AT_ONCE):
            share = torch.zeros(len(rows), head.image.out_features)
            own = rows % self.accelerator.num_processes == self.accelerator.process_index
            if own.any():
                with self.accelerator.autocast():
                    share[own] = embed(head, name, inputs, rows[own], self.batch_size)
            yield self._sum(share)

    def _index(self, head: ContrastiveHead, name: str, folder: Path) -> EmbeddingIndex:
        from m3ae.data.index import build_index  # needs faiss

        numbers = map(str, count())
        parts = (part.numpy() for part in self._embeddings(head, name))
        return build_index(folder, ((list(islice(numbers, len(part))), part) for part in parts))

    def _nearest(self, queries: EmbeddingIndex, candidates: EmbeddingIndex, k: int) -> tuple[Tensor, Tensor]:
        """Search the k nearest of each query, some of them in each process: numbers and cosines (Q, K)."""
        own = range(self.accelerator.process_index, len(queries), self.accelerator.num_processes)
        found: list[tuple[Tensor, Tensor]] = []
        for start in range(0, len(own), EMBEDDED_AT_ONCE):
            rows, cosines = candidates.search(queries.vectors(own[start : start + EMBEDDED_AT_ONCE]), k)
            found += zip(torch.from_numpy(rows), torch.from_numpy(cosines), strict=True)
        numbers, values = zip(*gather_rows(found), strict=True)
        return torch.stack(numbers), torch.stack(values)

    def _sum(self, share: Tensor) -> Tensor:
        """Add what the processes have found, each in places of its own."""
        total: Tensor = self.accelerator.reduce(share.to(self.accelerator.device), reduction="sum")
        return total.cpu()


def _distinct(items: Sequence[Hashable]) -> tuple[list[int], Tensor]:
    """Return where each distinct item stands first, and for each item which of the distinct ones it is."""
    first: dict[Hashable, int] = {}
    for place, item in enumerate(items):
        first.setdefault(item, place)
    numbers = {item: number for number, item in enumerate(first)}
    return list(first.values()), torch.tensor([numbers[item] for item in items])
