"""Retrieval: a model that scores how well a text and an image belong together, and collections of encoded items.

A search in two stages takes the k nearest items in the space of the contrastive head, and re-ranks them with the
matching head, which runs the fusion for every pair. A model without a contrastive head has no first stage: nothing has
brought its encoders into one space, so that their similarity means nothing before the fusion.

The functions expect a model in evaluation mode; for half precision call them under `torch.autocast`.

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
from transformers.utils.generic import ModelOutput

from m3ae.models.configuration import M3AEConfig
from m3ae.models.fusion import Stream
from m3ae.models.heads import ContrastiveHead, Float32Linear, matching_score
from m3ae.models.modeling import OTHER_HEADS, M3AEModel, M3AEPreTrainedModel
from m3ae.models.option_checks import checked_arguments
from m3ae.models.pairs import ContrastedPairs, image_text_batch, ranking_loss, same_samples, sample_ids


@dataclass
class M3AEForImageTextRetrievalOutput(ModelOutput):
    """Each image against the text of its sample and some others.

    Attributes:
        loss: () weighted sum of `losses`.
        losses: `irtr` unless `config.num_negatives` is 0, and `itc` if the model has a contrastive head.
        logits: (B, 1 + K) scores, that of the matching text in column 0; −∞ where a candidate does not count. None if
            `config.num_negatives` is 0.
        candidates: (B, 1 + K) the rows of the batch that the texts come from.
        hidden_states: With `output_hidden_states`, what `m3ae.models.attention.recording` records.
        attentions: With `output_attentions`, what it records.
        contrasted: With `pairs_only`, the pairs in the space of contrast, and nothing else.
    """

    loss: Tensor | None = None
    losses: dict[str, Tensor] | None = None
    logits: Tensor | None = None
    candidates: Tensor | None = None
    hidden_states: tuple[Tensor, ...] | None = None
    attentions: tuple[Tensor, ...] | None = None
    contrasted: ContrastedPairs | None = None


class M3AEForImageTextRetrieval(M3AEPreTrainedModel):
    """The trunk with the matching head, whose row 1 scores a pair (Chen et al. 2022).

    To search, encode each image and each text once and `score` the pairs; a pre-trained model does so unchanged. With
    `config.itc_weight`, the contrastive head of pre-training is trained further. It gives a first stage of search, and
    chooses hard negatives (Li et al. 2021, ALBEF). With `config.num_negatives` of 0 the contrastive head is trained
    alone, and nothing is fused.
    """

    _keys_to_ignore_on_load_unexpected = OTHER_HEADS

    def __init__(self, config: M3AEConfig) -> None:
        super().__init__(config)
        self.m3ae = M3AEModel(config)
        self.itm_head = Float32Linear(2 * config.hidden_size, 2)
        self.itc_head = ContrastiveHead(config) if config.itc_weight else None
        self.post_init()

    def encode_image(
        self, pixel_values: Tensor, present: Tensor | None = None, pixel_mask: Tensor | None = None
    ) -> Stream:
        """Encode images (B, C, H, W) alone.

        `present` (B,) is False where a sample has no image, and `pixel_mask` (B, H, W) is 0 at padding.
        """
        return self.m3ae.encode_image(pixel_values, None, present, pixel_mask=pixel_mask)

    def encode_text(
        self, input_ids: Tensor, attention_mask: Tensor | None = None, present: Tensor | None = None
    ) -> Stream:
        """Encode texts (B, L) alone; `attention_mask` (B, L) is 0 at padding, `present` (B,) False without text."""
        return self.m3ae.encode_text(input_ids, attention_mask, present)

    def score(self, text: Stream, image: Stream) -> Tensor:
        """Score encoded texts and images row by row: (B,) float32, larger = a better match.

        `Stream.select` makes rows of pairs from texts and images encoded once.
        """
        return matching_score(self.itm_head, self.m3ae.fuse_and_pool({"text": text, "image": image}))

    @checked_arguments
    def forward(
        self,
        pixel_values: Tensor | None = None,
        input_ids: Tensor | None = None,
        attention_mask: Tensor | None = None,
        image_present: Tensor | None = None,
        text_present: Tensor | None = None,
        pixel_mask: Tensor | None = None,
        image_ids: Tensor | None = None,
        text_ids: Tensor | None = None,
        negatives: Tensor | None = None,
        negative_noise: Tensor | None = None,
        generator: torch.Generator | None = None,
        other_pairs: Sequence[ContrastedPairs] | None = None,
        pairs_only: bool = False,
        return_loss: bool = True,
    ) -> M3AEForImageTextRetrievalOutput:
        """Let each image find the text of its sample among `config.num_negatives` others of the batch.

        The text of another sample counts as a negative only if the two samples share neither image nor text, and have
        both. Negatives are drawn evenly; with a contrastive head in proportion to the exponential of its similarities
        over the temperature, so that hard ones come first.

        Args:
            pixel_values: (B, C, H, W), or None without images; rows of absent images are ignored.
            input_ids: (B, L), or None without text; rows of absent texts are ignored.
            attention_mask: (B, L), 0 = padding.
            image_present: (B,) bool.
            text_present: (B,) bool.
            pixel_mask: (B, H, W), 0 = padding.
            image_ids: (B,) equal numbers name the same image; guessed from the pixels if None.
            text_ids: (B,) equal numbers name the same text; compared by tokens, in one process only, if None.
            negatives: (B, K) rows of the batch to take negatives from; drawn if None.
            negative_noise: (B, B) uniform noise that draws the negatives: the lowest among equally similar ones.
            generator: Source of the noise that is None.
            other_pairs: Pairs of the other micro-batches of the optimiser step, to contrast with them, too.
            pairs_only: Whether to compute only pairs, which other micro-batches are contrasted with.
            return_loss: Not used; tells Trainer that a loss needs no labels.
        """
        texts = (input_ids, attention_mask)
        batch = image_text_batch(self.config, pixel_values, *texts, image_present, text_present, pixel_mask)
        ids, present = sample_ids(batch, image_ids, text_ids), batch.complete()
        same = same_samples(*ids)
        text = self.encode_text(batch.input_ids, batch.attention_mask, batch.text_present)
        image = batch.encode_image(self.m3ae)
        contrast = None if self.itc_head is None else self.itc_head(text, image, ids, present, other_pairs or ())
        if pairs_only and contrast is not None:
            return M3AEForImageTextRetrievalOutput(contrasted=contrast.pairs)
        losses: dict[str, Tensor] = {}
        scores = candidates = None
        if self.config.num_negatives:
            allowed = ~same & present[:, None] & present[None]
            if negatives is None:
                similarity = None if contrast is None else contrast.logits
                negatives = self._draw_negatives(allowed, similarity, negative_noise, generator)
            scores, candidates = self._match(text, image, negatives, allowed)
            losses["irtr"] = ranking_loss(scores, present)
        if contrast is not None:
            losses["itc"] = contrast.loss
        weights = {"irtr": 1.0, "itc": self.config.itc_weight}
        loss = torch.stack([weights[name] * value for name, value in losses.items()]).sum()
        return M3AEForImageTextRetrievalOutput(loss, losses, scores, candidates)

    def _draw_negatives(
        self, allowed: Tensor, similarity: Tensor | None, noise: Tensor | None, generator: torch.Generator | None
    ) -> Tensor:
        """Return rows (B, K) of the batch, those that are not allowed last."""
        size = allowed.shape[0]
        if noise is None:
            noise = torch.rand(size, size, generator=generator, device=allowed.device)
        order = _draw_order(noise, None if similarity is None else similarity[:size, :size].T)
        return order.masked_fill(~allowed, torch.inf).argsort(1)[:, : min(self.config.num_negatives, size - 1)]

    def _match(self, text: Stream, image: Stream, negatives: Tensor, allowed: Tensor) -> tuple[Tensor, Tensor]:
        """Return the scores (B, 1 + K) of each image with its text and with others, and the rows of these texts."""
        rows = torch.arange(negatives.shape[0], device=negatives.device)[:, None]
        candidates = torch.cat([rows, negatives], dim=1)
        valid = torch.cat([torch.ones_like(rows, dtype=torch.bool), allowed.gather(1, negatives)], dim=1)
        scores = self.score(text.select(candidates.flatten()), image.select(rows.expand_as(candidates).flatten()))
        return scores.view(candidates.shape).masked_fill(~valid, -torch.inf), candidates


def _draw_order(noise: Tensor, log_weights: Tensor | None) -> Tensor:
    """(B, B) keys whose K lowest in a row are a weighted sample without replacement (Efraimidis and Spirakis 2006).

    Uniform noise u becomes an exponential arrival time −log(1 − u) / weight, of which this is the logarithm.
    """
    arrival = (-torch.log1p(-noise)).log()
    return arrival if log_weights is None else arrival - log_weights.detach()


# Method `score` of a model with a matching head: the scores (B,) of texts and images row by row.
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
        return _join([self.encode(numbers.tolist()) for numbers in index.split(self.batch_size)])


@torch.no_grad()
def encode_images(trunk: M3AEModel, batches: Iterable[Tensor]) -> EncodedImages:
    """Encode batches of pixel values (B, 3, H, W), and keep the images in memory."""
    return EncodedImages(_join([trunk.encode_image(pixels.to(trunk.device)) for pixels in batches]))


def _join(streams: Sequence[Stream]) -> Stream:
    """Return images as one stream; `mask` or `present` of a batch is None if it is True everywhere."""
    tokens, num_views = torch.cat([stream.tokens for stream in streams]), streams[0].num_views
    columns = {"mask": (tokens.shape[1],), "present": (num_views,) if num_views > 1 else ()}
    joined: dict[str, Tensor | None] = dict.fromkeys(columns)
    for name, shape in columns.items():
        masks = [getattr(stream, name) for stream in streams]
        if any(mask is not None for mask in masks):
            blanks = (tokens.new_ones(len(stream.tokens), *shape, dtype=torch.bool) for stream in streams)
            joined[name] = torch.cat(
                [blank if mask is None else mask for mask, blank in zip(masks, blanks, strict=True)]
            )
    return Stream(tokens, joined["mask"], joined["present"], num_views)


@torch.no_grad()
def encode_texts(trunk: M3AEModel, input_ids: Sequence[Sequence[int]], batch_size: int = 64) -> EncodedTexts:
    """Encode the tokens of texts without padding; texts of about the same length share a batch."""
    lengths = torch.tensor([len(ids) for ids in input_ids])
    texts = EncodedTexts(torch.empty(0), lengths)
    pad = trunk.text_encoder.config.pad_token_id or 0
    tokens: Tensor | None = None
    for rows in lengths.argsort(stable=True).split(batch_size):
        ids = pad_sequence([torch.tensor(input_ids[row]) for row in rows], batch_first=True, padding_value=pad)
        positions, mask = _rows(texts.starts[rows], lengths[rows])
        encoded = trunk.encode_text(ids.to(trunk.device), mask.long().to(trunk.device)).tokens
        if tokens is None:
            tokens = encoded.new_empty(int(lengths.sum()), encoded.shape[-1])
        tokens[positions[mask].to(trunk.device)] = encoded[mask.to(trunk.device)]
    assert tokens is not None, "at least one text"
    return EncodedTexts(tokens, lengths)


@torch.no_grad()
def embed(
    head: ContrastiveHead, name: str, inputs: Encoded, rows: Tensor | None = None, batch_size: int = 256
) -> Tensor:
    """Return the unit vectors (B, E) of the inputs of the modality `name` in `rows` (B,), or of all, on the CPU."""
    rows = torch.arange(len(inputs)) if rows is None else rows
    return torch.cat([head.embed(name, inputs.select(batch)).cpu() for batch in rows.split(batch_size)])


def nearest(queries: Tensor, candidates: Tensor, k: int) -> tuple[Tensor, Tensor]:
    """Return the cosines (Q, K) and the numbers (Q, K) of the k nearest candidates of each query, the nearest first.

    Args:
        queries: (Q, E) unit vectors.
        candidates: (C, E) unit vectors; K is C if there are fewer than k.
        k: Number of candidates to return.
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
        score: The method `score` of a model.
        texts: The encoded texts.
        images: The encoded images.
        pairs: (P, 2) number of the text, number of the image.
        batch_size: Number of pairs fused at once.
        block_size: Number of images selected at once.

    Returns:
        (P,) float32 on the CPU, in the order of `pairs`.
    """
    scores = torch.empty(len(pairs))
    needed, position = pairs[:, 1].unique(return_inverse=True)
    for start in range(0, len(needed), block_size):
        block = images.select(needed[start : start + block_size])
        rows = ((position >= start) & (position < start + block_size)).nonzero()[:, 0]
        rows = rows[texts.lengths[pairs[rows, 0]].argsort(stable=True)]
        values = [
            score(texts.select(pairs[batch, 0]), block.select((position[batch] - start).to(block.tokens.device)))
            for batch in rows.split(batch_size)
        ]
        scores[rows] = torch.cat(values).float().cpu()
    return scores


def score_both_ways(
    nearest_images: Tensor, nearest_texts: Tensor, score: Callable[[Tensor], Tensor]
) -> tuple[Tensor, Tensor]:
    """Score the results of a first stage for the texts and for the images; each pair is scored once.

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
    codes, position = torch.cat([of_texts.flatten(), of_images.flatten()]).unique(return_inverse=True)
    scores = score(torch.stack([codes // count, codes % count], dim=1))[position]
    return scores[: of_texts.numel()].view(of_texts.shape), scores[of_texts.numel() :].view(of_images.shape)


def _rows(starts: Tensor, lengths: Tensor) -> tuple[Tensor, Tensor]:
    """Return the rows (B, L) that texts have among packed tokens, and a mask (B, L), False behind their ends."""
    positions = torch.arange(int(lengths.max()))
    mask = positions < lengths[:, None]
    return torch.where(mask, starts[:, None] + positions, 0), mask
