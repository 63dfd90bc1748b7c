"""Images and texts to be searched for each other, over all processes.

Shapes: T texts, I images, P pairs, E contrastive space.
"""

from __future__ import annotations

from collections.abc import Callable, Hashable, Sequence
from functools import partial

import torch
from accelerate import Accelerator
from torch import Tensor

from m3ae.data.collate import PairCollator
from m3ae.data.pairs import Pair
from m3ae.metrics.retrieval import retrieval_metrics
from m3ae.models.decoders import ContrastiveHead
from m3ae.models.modeling import M3AEModel
from m3ae.models.search import ImagesOnDemand, Score, embed, encode_texts, score_pairs, two_stage


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
        first_texts, self._texts = _distinct(texts)
        first_images, self._images = _distinct(image_ids)
        tokenizer = collator.processor.tokenizer
        tokens = tokenizer([texts[i] for i in first_texts], truncation=True, max_length=collator.max_text_length)
        with accelerator.autocast():
            self.texts = encode_texts(trunk, tokens["input_ids"], batch_size)

        def pixels(numbers: list[int]) -> Tensor:
            return collator([load(first_images[number]) for number in numbers])["pixel_values"]

        self.images = ImagesOnDemand(trunk, pixels, len(first_images), batch_size)

    def match(self, score: Score) -> Tensor:
        """Score every text against every image with the matching head: (T, I) on the CPU."""
        pairs = torch.cartesian_prod(torch.arange(len(self.texts)), torch.arange(len(self.images)))
        return self._expand(self._score(score, pairs).view(len(self.texts), len(self.images)))

    def compare(self, head: ContrastiveHead) -> Tensor:
        """Return the cosines (T, I) in the space of the contrastive head, on the CPU."""
        return self._expand(self._similarity(head))

    def search(self, score: Score, head: ContrastiveHead, k: int) -> tuple[Tensor, Tensor]:
        """Search both ways in two stages; see `two_stage`.

        Args:
            score: The matching head.
            head: Gives the first stage.
            k: Distinct candidates that are re-ranked.

        Returns:
            Scores of images for texts (T, I) and of texts for images (I, T), on the CPU.
        """
        of_texts, of_images = two_stage(self._similarity(head), k, partial(self._score, score))
        return self._expand(of_texts), self._expand(of_images.T).T

    def _score(self, score: Score, pairs: Tensor) -> Tensor:
        """Score pairs (P, 2), each in the process of its image."""
        processes, scores = self.accelerator.num_processes, torch.zeros(len(pairs))
        own = pairs[:, 1] % processes == self.accelerator.process_index
        with self.accelerator.autocast():
            scores[own] = score_pairs(score, self.texts, self.images, pairs[own], batch_size=self.batch_size)
        return self._sum(scores)

    def _similarity(self, head: ContrastiveHead) -> Tensor:
        processes, size = self.accelerator.num_processes, len(self.images)
        own = torch.arange(self.accelerator.process_index, size, processes)
        images = torch.zeros(size, head.image.out_features)
        with self.accelerator.autocast():
            images[own] = embed(head, "image", self.images, own, self.batch_size)
            texts = embed(head, "text", self.texts, None, self.batch_size)
        return texts @ self._sum(images).T

    def _sum(self, share: Tensor) -> Tensor:
        """Add what the processes have found, each in places of its own."""
        total: Tensor = self.accelerator.reduce(share.to(self.accelerator.device), reduction="sum")
        return total.cpu()

    def _expand(self, scores: Tensor) -> Tensor:
        """Give equal texts and images the same scores."""
        return scores[self._texts][:, self._images]


def both_ways(of_texts: Tensor, of_images: Tensor, relevant: Tensor) -> dict[str, float]:
    """Return the metrics of both directions, each of a score matrix of its own.

    Args:
        of_texts: (T, I) scores of the images for each text.
        of_images: (I, T) scores of the texts for each image.
        relevant: (T, I) bool.
    """
    forth, back = retrieval_metrics(of_texts, relevant), retrieval_metrics(of_images.T, relevant)
    return {name: (forth if name.startswith("text_to_image") else back)[name] for name in forth}


def _distinct(items: Sequence[Hashable]) -> tuple[list[int], Tensor]:
    """Return where each distinct item stands first, and for each item which of the distinct ones it is."""
    first: dict[Hashable, int] = {}
    for place, item in enumerate(items):
        first.setdefault(item, place)
    numbers = {item: number for number, item in enumerate(first)}
    return list(first.values()), torch.tensor([numbers[item] for item in items])
