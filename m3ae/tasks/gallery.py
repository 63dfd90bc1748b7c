"""Images and texts to be searched for each other, over all processes.

Shapes: T texts, I images, N items of one modality, K candidates of each, P pairs, E contrastive space.
"""

from __future__ import annotations

from collections.abc import Callable, Hashable, Sequence
from functools import partial

import torch
from accelerate import Accelerator
from accelerate.utils import send_to_device
from torch import Tensor

from m3ae.data.collate import TrunkCollator
from m3ae.data.samples import Sample
from m3ae.metrics.retrieval import BothWays, Found
from m3ae.models.fusion import Stream
from m3ae.models.heads import ContrastiveHead
from m3ae.models.modeling import M3AEModel
from m3ae.models.retrieval import (
    Encoded,
    ImagesOnDemand,
    Score,
    embed,
    encode_texts,
    nearest,
    score_both_ways,
    score_pairs,
)

IMAGES_AT_ONCE = 256  # images that are scored against all texts, in all processes together


class Gallery:
    """T texts and I images under one model; equal ones are computed once.

    The images are divided among the processes; every process has to call the same methods.

    Args:
        trunk: The encoders.
        texts: The texts.
        image_ids: (I,) equal entries name the same image.
        load: Returns a sample with the image that has a position in `image_ids`.
        collator: The collator without augmentation.
        accelerator: The accelerator, with device, autocast and the other processes.
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
        load: Callable[[int], Sample],
        collator: TrunkCollator,
        accelerator: Accelerator,
        batch_size: int,
    ) -> None:
        self.accelerator, self.batch_size = accelerator, batch_size
        first_texts, self.text_kinds = _distinct(texts)
        first_images, self.image_kinds = _distinct(image_ids)
        tokenizer, longest = collator.options.tokenizer, collator.options.max_text_length
        assert tokenizer is not None
        tokens = tokenizer([texts[i] for i in first_texts], truncation=True, max_length=longest)
        with accelerator.autocast():
            self.texts = encode_texts(trunk, tokens["input_ids"], batch_size)

        def encode(numbers: list[int]) -> Stream:
            batch = send_to_device(collator.inputs([load(first_images[n]) for n in numbers]), trunk.device)
            present, mask = batch["image_present"], batch.get("pixel_mask")
            return trunk.encode_image(batch["pixel_values"], None, present, pixel_mask=mask)

        self.images = ImagesOnDemand(encode, len(first_images), batch_size)

    def match_all(self, score: Score) -> BothWays:
        """Score every text and image with the matching head."""
        texts, blocks = torch.arange(len(self.texts)), torch.arange(len(self.images)).split(IMAGES_AT_ONCE)
        scores = torch.cat(
            [self._score(score, torch.cartesian_prod(texts, block)).view(len(texts), -1) for block in blocks], dim=1
        )
        return self._both_ways(scores.__getitem__, scores.T.__getitem__)

    def compare_all(self, head: ContrastiveHead) -> BothWays:
        """Compare every text and image by their cosine in the space of the contrastive head."""
        texts, images = self._embed(head, "text"), self._embed(head, "image")
        return self._both_ways(lambda rows: texts[rows] @ images.T, lambda rows: images[rows] @ texts.T)

    def search(self, score: Score, head: ContrastiveHead, k: int) -> tuple[BothWays, BothWays]:
        """Search both ways in two stages, without a matrix of all texts and images.

        Args:
            score: The matching head.
            head: The contrastive head, for the first stage.
            k: Number of distinct candidates that are re-ranked; each stands for all that equal it.

        Returns:
            The k nearest in the space of the contrastive head with their cosines, and these k with the scores of the
            matching head.
        """
        texts, images = self._embed(head, "text"), self._embed(head, "image")
        (cosines, numbers), (cosines_back, numbers_back) = nearest(texts, images, k), nearest(images, texts, k)
        scores, scores_back = score_both_ways(numbers, numbers_back, partial(self._score, score))
        sizes = len(images), len(texts)
        first, second = (
            self._both_ways(
                partial(_spread, sizes[0], numbers, values), partial(_spread, sizes[1], numbers_back, values_back)
            )
            for values, values_back in ((cosines, cosines_back), (scores, scores_back))
        )
        return first, second

    def _both_ways(self, of_texts: Callable[[Tensor], Tensor], of_images: Callable[[Tensor], Tensor]) -> BothWays:
        texts, images = self.text_kinds, self.image_kinds
        return BothWays(Found(of_texts, texts, images), Found(of_images, images, texts))

    def _score(self, score: Score, pairs: Tensor) -> Tensor:
        """Score pairs (P, 2), each in the process of its image."""
        scores = torch.zeros(len(pairs))
        rows = pairs[:, 1] % self.accelerator.num_processes == self.accelerator.process_index
        with self.accelerator.autocast():
            scores[rows] = score_pairs(score, self.texts, self.images, pairs[rows], batch_size=self.batch_size)
        return self._sum(scores)

    def _embed(self, head: ContrastiveHead, name: str) -> Tensor:
        """Return the unit vectors (N, E) of all distinct texts or images, each computed by one process."""
        inputs: Encoded = self.texts if name == "text" else self.images
        vectors = torch.zeros(len(inputs), head.image.out_features)
        rows = torch.arange(self.accelerator.process_index, len(inputs), self.accelerator.num_processes)
        if len(rows):
            with self.accelerator.autocast():
                vectors[rows] = embed(head, name, inputs, rows, self.batch_size)
        return self._sum(vectors)

    def _sum(self, share: Tensor) -> Tensor:
        """Add the shares of the processes, each of which is 0 outside its rows."""
        total: Tensor = self.accelerator.reduce(share.to(self.accelerator.device), reduction="sum")
        return total.cpu()


def _spread(size: int, numbers: Tensor, values: Tensor, rows: Tensor) -> Tensor:
    """Return rows of the values (N, K) of some of `size` candidates as (B, size), −∞ for the others."""
    return torch.full((len(rows), size), -torch.inf).scatter_(1, numbers[rows], values[rows])


def _distinct(items: Sequence[Hashable]) -> tuple[list[int], Tensor]:
    """Return the first position of each distinct item, and for each item which of the distinct ones it is."""
    first: dict[Hashable, int] = {}
    for position, item in enumerate(items):
        first.setdefault(item, position)
    numbers = {item: number for number, item in enumerate(first)}
    return list(first.values()), torch.tensor([numbers[item] for item in items])
