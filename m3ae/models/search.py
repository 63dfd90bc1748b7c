"""Search with the matching head: each image and each text is encoded once, only the fusion runs for every pair.

A search in two stages takes the k nearest in the space of the contrastive head and re-ranks those with the matching
head. A model without a contrastive head has no first stage: nothing has brought its encoders into one space, so that
the similarity of what they return means nothing before the fusion.

The model is to be in evaluation mode; for half precision call these functions under `torch.autocast`.

Shapes: Q texts, C images, P pairs, B batch, H×W pixels, L text tokens, T tokens, D fusion width, E contrastive space.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import Protocol

import torch
from torch import Tensor
from torch.nn.utils.rnn import pad_sequence

from m3ae.models.decoders import ContrastiveHead
from m3ae.models.fusion import Stream
from m3ae.models.modeling import M3AEModel

# Scores texts and images row by row, (B,): `M3AEForImageTextRetrieval.score` or `M3AEForPreTraining.score`.
Score = Callable[[Stream, Stream], Tensor]


class Encoded(Protocol):
    """A collection of encoded inputs."""

    def __len__(self) -> int: ...

    def select(self, index: Tensor) -> Stream:
        """Return the inputs that `index` (B,) names."""


@dataclass(frozen=True)
class EncodedTexts:
    """Texts without their padding.

    Attributes:
        tokens: (ΣL, D) one text after the other.
        starts: (Q,) where each begins, on the CPU.
        lengths: (Q,) on the CPU.
    """

    tokens: Tensor
    starts: Tensor
    lengths: Tensor

    def __len__(self) -> int:
        return len(self.lengths)

    def select(self, index: Tensor) -> Stream:
        """Return the texts that `index` (B,) names, padded to the longest of them."""
        lengths = self.lengths[index, None]
        places = torch.arange(int(lengths.max()))
        mask = places < lengths
        rows = torch.where(mask, self.starts[index, None] + places, 0)
        device = self.tokens.device
        return Stream(self.tokens[rows.to(device)], None if mask.all() else mask.to(device))


@dataclass(frozen=True)
class EncodedImages:
    """Images kept in memory.

    Attributes:
        tokens: (C, T, D).
    """

    tokens: Tensor

    def __len__(self) -> int:
        return len(self.tokens)

    def select(self, index: Tensor) -> Stream:
        """Return the images that `index` (B,) names."""
        return Stream(self.tokens[index.to(self.tokens.device)])


@dataclass(frozen=True)
class ImagesOnDemand:
    """Images encoded whenever they are selected, for more of them than memory holds.

    Attributes:
        trunk: Encodes them.
        load: Returns the pixel values (B, 3, H, W) of the images that a list of B numbers names.
        count: Number of images.
        batch_size: Images encoded at once.
    """

    trunk: M3AEModel
    load: Callable[[list[int]], Tensor]
    count: int
    batch_size: int = 64

    def __len__(self) -> int:
        return self.count

    def select(self, index: Tensor) -> Stream:
        """Load and encode the images that `index` (B,) names."""
        batches = (self.load(part.tolist()) for part in index.split(self.batch_size))
        return Stream(encode_images(self.trunk, batches).tokens)


@torch.no_grad()
def encode_images(trunk: M3AEModel, batches: Iterable[Tensor]) -> EncodedImages:
    """Encode images, given as batches of pixel values (B, 3, H, W), and keep them in memory."""
    return EncodedImages(torch.cat([trunk.encode_image(pixels.to(trunk.device)).tokens for pixels in batches]))


@torch.no_grad()
def encode_texts(trunk: M3AEModel, input_ids: Sequence[Sequence[int]], batch_size: int = 64) -> EncodedTexts:
    """Encode texts, given as their tokens without padding; texts of about the same length share a batch."""
    lengths = torch.tensor([len(ids) for ids in input_ids])
    order = lengths.argsort(stable=True)
    pad = trunk.text_encoder.config.pad_token_id or 0
    packed = []
    for rows in order.split(batch_size):
        ids = pad_sequence([torch.tensor(input_ids[row]) for row in rows], batch_first=True, padding_value=pad)
        mask = (torch.arange(ids.shape[1]) < lengths[rows, None]).to(trunk.device)
        packed.append(trunk.encode_text(ids.to(trunk.device), mask.long()).tokens[mask])
    ends = lengths[order].cumsum(0)
    starts = torch.empty_like(lengths).scatter_(0, order, ends - lengths[order])
    return EncodedTexts(torch.cat(packed), starts, lengths)


@torch.no_grad()
def embed(
    head: ContrastiveHead, name: str, inputs: Encoded, rows: Tensor | None = None, batch_size: int = 256
) -> Tensor:
    """Return the unit vectors (B, E) of the inputs of the modality `name` that `rows` (B,) names, on the CPU.

    `rows` of None names all inputs.
    """
    rows = torch.arange(len(inputs)) if rows is None else rows
    found = [head.embed(name, inputs.select(batch)).cpu() for batch in rows.split(batch_size)]
    return torch.cat(found)


@torch.no_grad()
def score_pairs(
    score: Score,
    texts: EncodedTexts,
    images: Encoded,
    pairs: Tensor,
    *,
    batch_size: int = 64,
    block_size: int = 256,
) -> Tensor:
    """Score pairs of texts and images.

    Images are selected in blocks, each image once. The pairs of a block go through the fusion in the order of the
    lengths of their texts, so that next to no padding is computed.

    Args:
        score: The matching head.
        texts: Q texts.
        images: C images.
        pairs: (P, 2) number of the text, number of the image.
        batch_size: Pairs fused at once.
        block_size: Images selected at once.

    Returns:
        (P,) float32 on the CPU, in the order of `pairs`.
    """
    scores = torch.empty(len(pairs))
    needed, place = pairs[:, 1].unique(return_inverse=True)
    for start in range(0, len(needed), block_size):
        block = images.select(needed[start : start + block_size])
        own = ((place >= start) & (place < start + block_size)).nonzero()[:, 0]
        own = own[texts.lengths[pairs[own, 0]].argsort(stable=True)]
        found = [
            score(texts.select(pairs[batch, 0]), block.select((place[batch] - start).to(block.tokens.device)))
            for batch in own.split(batch_size)
        ]
        scores[own] = torch.cat(found).float().cpu()
    return scores


def score_all(
    score: Score, texts: EncodedTexts, images: Encoded, *, batch_size: int = 64, block_size: int = 256
) -> Tensor:
    """Score every text against every image: (Q, C); the arguments are those of `score_pairs`."""
    rows = torch.arange(len(texts))
    columns = [
        score_pairs(
            score, texts, images, torch.cartesian_prod(rows, block), batch_size=batch_size, block_size=block_size
        )
        for block in torch.arange(len(images)).split(block_size)
    ]
    return torch.cat([column.view(len(texts), -1) for column in columns], dim=1)


def rerank(
    score: Score, texts: EncodedTexts, images: Encoded, nearest: Tensor, *, batch_size: int = 64
) -> tuple[Tensor, Tensor]:
    """Order the candidates of each text by the matching head.

    Args:
        score: The matching head.
        texts: Q texts.
        images: C images.
        nearest: (Q, K) numbers of the images that a first stage has found.
        batch_size: Pairs fused at once.

    Returns:
        (Q, K) the numbers of these images, the best first, and their scores (Q, K).
    """
    rows = torch.arange(len(nearest)).repeat_interleave(nearest.shape[1])
    pairs = torch.stack([rows, nearest.flatten()], dim=1)
    scores = score_pairs(score, texts, images, pairs, batch_size=batch_size).view(nearest.shape)
    scores, order = scores.sort(dim=1, descending=True, stable=True)
    return nearest.gather(1, order), scores


def rerank_both_ways(
    nearest_images: Tensor, nearest_texts: Tensor, score: Callable[[Tensor], Tensor]
) -> tuple[Tensor, Tensor]:
    """Score what a first stage has found for the texts and for the images; each pair is scored once.

    Args:
        nearest_images: (Q, K) numbers of images for each text.
        nearest_texts: (C, K') numbers of texts for each image.
        score: Returns the scores (P,) of pairs (P, 2): `score_pairs` with its first arguments.

    Returns:
        The scores (Q, K) and (C, K') in the same places.
    """
    count = len(nearest_texts)
    of_texts = torch.arange(len(nearest_images))[:, None] * count + nearest_images
    of_images = nearest_texts * count + torch.arange(count)[:, None]
    wanted, place = torch.cat([of_texts.flatten(), of_images.flatten()]).unique(return_inverse=True)
    scores = score(torch.stack([wanted // count, wanted % count], dim=1))[place]
    return scores[: of_texts.numel()].view(of_texts.shape), scores[of_texts.numel() :].view(of_images.shape)
