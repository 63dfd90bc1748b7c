"""Images and texts that are encoded once, and compared: by the contrastive head, by the matching head, or by both.

A search in two stages takes the k nearest in the space of the contrastive head and re-ranks those with the matching
head, for which only the fusion runs for every pair. A model without a contrastive head has no first stage: nothing has
brought its encoders into one space, so that the similarity of what they return means nothing before the fusion.

The model is to be in evaluation mode; for half precision call these functions under `torch.autocast`.

Shapes: N items of a modality, Q queries, C candidates, P pairs, B batch, H×W pixels, L text tokens, T image tokens, D
fusion width, E contrastive space.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Protocol

import torch
from torch import Tensor
from torch.nn.utils.rnn import pad_sequence

from m3ae.models.decoders import ContrastiveHead
from m3ae.models.fusion import Stream
from m3ae.models.modeling import M3AEModel

# Scores texts and images row by row, (B,): the method `score` of a model with a matching head.
Score = Callable[[Stream, Stream], Tensor]
SCORES_AT_ONCE = 2**22  # of all pairs of some queries and all candidates: 16 MB


class Encoded(Protocol):
    """A collection of encoded items of one modality."""

    def __len__(self) -> int: ...

    def select(self, index: Tensor) -> Stream:
        """Return the items that `index` (B,) names."""


@dataclass(frozen=True)
class EncodedTexts:
    """Texts without their padding.

    Attributes:
        tokens: (ΣL, D) one text after the other.
        lengths: (N,) on the CPU.
    """

    tokens: Tensor
    lengths: Tensor

    @cached_property
    def starts(self) -> Tensor:
        """Where each text begins, (N,) on the CPU."""
        return self.lengths.cumsum(0) - self.lengths

    def __len__(self) -> int:
        return len(self.lengths)

    def select(self, index: Tensor) -> Stream:
        """Return the texts that `index` (B,) names, padded to the longest of them."""
        rows, mask = _rows(self.starts[index], self.lengths[index])
        device = self.tokens.device
        return Stream(self.tokens[rows.to(device)], None if mask.all() else mask.to(device))


@dataclass(frozen=True)
class EncodedImages:
    """Images kept in memory, as one stream with N rows."""

    stream: Stream

    def __len__(self) -> int:
        return len(self.stream.tokens)

    def select(self, index: Tensor) -> Stream:
        """Return the images that `index` (B,) names."""
        return self.stream.select(index.to(self.stream.tokens.device))


@dataclass(frozen=True)
class ImagesOnDemand:
    """Images encoded whenever they are selected, for more of them than memory holds.

    Attributes:
        encode: Returns the stream of the images that a list of B numbers names.
        count: Number of images.
        batch_size: Images encoded at once.
    """

    encode: Callable[[list[int]], Stream]
    count: int
    batch_size: int = 64

    def __len__(self) -> int:
        return self.count

    def select(self, index: Tensor) -> Stream:
        """Load and encode the images that `index` (B,) names."""
        return _join([self.encode(part.tolist()) for part in index.split(self.batch_size)])


@torch.no_grad()
def encode_images(trunk: M3AEModel, batches: Iterable[Tensor]) -> EncodedImages:
    """Encode images, given as batches of pixel values (B, 3, H, W), and keep them in memory."""
    return EncodedImages(_join([trunk.encode_image(pixels.to(trunk.device)) for pixels in batches]))


def _join(streams: Sequence[Stream]) -> Stream:
    """Return images as one stream; a batch in which all are present does not say so."""
    present = None
    if any(stream.present is not None for stream in streams):
        shape = (-1, streams[0].num_views) if streams[0].num_views > 1 else (-1,)
        masks = [
            stream.tokens.new_ones(len(stream.tokens) * stream.num_views, dtype=torch.bool).view(shape)
            if stream.present is None
            else stream.present
            for stream in streams
        ]
        present = torch.cat(masks)
    return Stream(torch.cat([stream.tokens for stream in streams]), None, present, streams[0].num_views)


@torch.no_grad()
def encode_texts(trunk: M3AEModel, input_ids: Sequence[Sequence[int]], batch_size: int = 64) -> EncodedTexts:
    """Encode texts, given as their tokens without padding; texts of about the same length share a batch."""
    lengths = torch.tensor([len(ids) for ids in input_ids])
    texts = EncodedTexts(torch.empty(0), lengths)
    pad = trunk.text_encoder.config.pad_token_id or 0
    tokens: Tensor | None = None
    for rows in lengths.argsort(stable=True).split(batch_size):
        ids = pad_sequence([torch.tensor(input_ids[row]) for row in rows], batch_first=True, padding_value=pad)
        places, mask = _rows(texts.starts[rows], lengths[rows])
        encoded = trunk.encode_text(ids.to(trunk.device), mask.long().to(trunk.device)).tokens
        if tokens is None:
            tokens = encoded.new_empty(int(lengths.sum()), encoded.shape[-1])
        tokens[places[mask].to(trunk.device)] = encoded[mask.to(trunk.device)]
    assert tokens is not None, "there is at least one text"
    return EncodedTexts(tokens, lengths)


@torch.no_grad()
def embed(
    head: ContrastiveHead, name: str, inputs: Encoded, rows: Tensor | None = None, batch_size: int = 256
) -> Tensor:
    """Return the unit vectors (B, E) of the inputs of the modality `name` that `rows` (B,) names, on the CPU.

    `rows` of None names all inputs.
    """
    rows = torch.arange(len(inputs)) if rows is None else rows
    return torch.cat([head.embed(name, inputs.select(batch)).cpu() for batch in rows.split(batch_size)])


def nearest(queries: Tensor, candidates: Tensor, k: int) -> tuple[Tensor, Tensor]:
    """Return the cosines (Q, K) and the numbers (Q, K) of the k nearest candidates of each query, the nearest first.

    Args:
        queries: (Q, E) unit vectors.
        candidates: (C, E) unit vectors; K is C if there are fewer than k.
        k: How many to find.
    """
    k = min(k, len(candidates))
    cosines, numbers = queries.new_empty(len(queries), k), torch.empty(len(queries), k, dtype=torch.long)
    for rows in torch.arange(len(queries)).split(max(1, SCORES_AT_ONCE // len(candidates))):
        cosines[rows], numbers[rows] = (queries[rows] @ candidates.T).topk(k, dim=1)
    return cosines, numbers


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
        texts: The texts.
        images: The images.
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
        rows = ((place >= start) & (place < start + block_size)).nonzero()[:, 0]
        rows = rows[texts.lengths[pairs[rows, 0]].argsort(stable=True)]
        parts = [
            score(texts.select(pairs[batch, 0]), block.select((place[batch] - start).to(block.tokens.device)))
            for batch in rows.split(batch_size)
        ]
        scores[rows] = torch.cat(parts).float().cpu()
    return scores


def score_both_ways(
    nearest_images: Tensor, nearest_texts: Tensor, score: Callable[[Tensor], Tensor]
) -> tuple[Tensor, Tensor]:
    """Score what a first stage has found for the texts and for the images; each pair is scored once.

    Args:
        nearest_images: (N, K) numbers of images for each of N texts.
        nearest_texts: (C, K') numbers of texts for each of C images.
        score: Returns the scores (P,) of pairs (P, 2): `score_pairs` with its first arguments.

    Returns:
        The scores (N, K) and (C, K') of the same pairs.
    """
    count = len(nearest_texts)
    of_texts = torch.arange(len(nearest_images))[:, None] * count + nearest_images
    of_images = nearest_texts * count + torch.arange(count)[:, None]
    wanted, place = torch.cat([of_texts.flatten(), of_images.flatten()]).unique(return_inverse=True)
    scores = score(torch.stack([wanted // count, wanted % count], dim=1))[place]
    return scores[: of_texts.numel()].view(of_texts.shape), scores[of_texts.numel() :].view(of_images.shape)


def _rows(starts: Tensor, lengths: Tensor) -> tuple[Tensor, Tensor]:
    """Return the rows (B, L) that texts have among packed tokens, and a mask (B, L), False behind their ends."""
    places = torch.arange(int(lengths.max()))
    mask = places < lengths[:, None]
    return torch.where(mask, starts[:, None] + places, 0), mask
