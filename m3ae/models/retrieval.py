"""Retrieval: a score of how well a text and an image belong together.

Shapes: B batch, C channels, H×W pixels, L text tokens, S tokens, D fusion width, K negatives.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor
from transformers.utils.generic import ModelOutput

from m3ae.models.base import OTHER_HEADS, M3AEPreTrainedModel
from m3ae.models.configuration import M3AEConfig
from m3ae.models.decoders import ContrastiveHead, Float32Linear, matching_score
from m3ae.models.fusion import Stream
from m3ae.models.gathering import gather_pairs
from m3ae.models.losses import contrastive_loss, ranking_loss
from m3ae.models.masking import same_samples
from m3ae.models.modeling import M3AEModel, all_present, image_fingerprint
from m3ae.models.option_checks import checked_arguments


@dataclass
class M3AEForImageTextRetrievalOutput(ModelOutput):
    """Each image against its own text and some of the others.

    Attributes:
        loss: () weighted sum of `losses`.
        losses: `irtr` where there are negatives, and `itc` where the model has a contrastive head.
        logits: (B, 1 + K) scores, the own text in column 0; −∞ where a candidate does not count. None if
            `config.num_negatives` is 0.
        candidates: (B, 1 + K) the rows of the batch that the texts come from.
        hidden_states: With `output_hidden_states`, see `m3ae.models.recording.recording`.
        attentions: With `output_attentions`, see there.
    """

    loss: Tensor | None = None
    losses: dict[str, Tensor] | None = None
    logits: Tensor | None = None
    candidates: Tensor | None = None
    hidden_states: tuple[Tensor, ...] | None = None
    attentions: tuple[Tensor, ...] | None = None


class M3AEForImageTextRetrieval(M3AEPreTrainedModel):
    """The trunk with the matching head, whose row 1 scores a pair (Chen et al. 2022).

    To search, encode each image and each text once and `score` the pairs (`m3ae.models.encoded`); a pre-trained model
    does so unchanged. With `config.itc_weight`, the contrastive head of pre-training stays and is trained further: it
    gives a first stage of search, and chooses hard negatives (Li et al. 2021, ALBEF). With `config.num_negatives` of 0
    it is trained alone, and nothing is fused.
    """

    _keys_to_ignore_on_load_unexpected = OTHER_HEADS

    def __init__(self, config: M3AEConfig) -> None:
        super().__init__(config)
        self.m3ae = M3AEModel(config)
        self.itm_head = Float32Linear(2 * config.hidden_size, 2)
        self.itc_head = ContrastiveHead(config) if config.itc_weight else None
        self.post_init()

    def encode_image(self, pixel_values: Tensor, present: Tensor | None = None) -> Stream:
        """Encode images (B, C, H, W) alone; `present` (B,) is False where there is none."""
        return self.m3ae.encode_image(pixel_values, None, present)

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
        pixel_values: Tensor,
        input_ids: Tensor,
        attention_mask: Tensor | None = None,
        image_present: Tensor | None = None,
        text_present: Tensor | None = None,
        image_ids: Tensor | None = None,
        text_ids: Tensor | None = None,
        negatives: Tensor | None = None,
        negative_noise: Tensor | None = None,
        generator: torch.Generator | None = None,
        return_loss: bool = True,
    ) -> M3AEForImageTextRetrievalOutput:
        """Let each image find its own text among `config.num_negatives` others of the batch.

        A text counts as a negative only if neither it nor its image equals the row's own, and if both are present.
        Negatives are drawn evenly; with a contrastive head in proportion to e to the power of its similarities, which
        are over the temperature, so that hard ones come first.

        Args:
            pixel_values: (B, C, H, W); rows of absent images are ignored.
            input_ids: (B, L); rows of absent texts are ignored.
            attention_mask: (B, L), 0 = padding.
            image_present: (B,) bool.
            text_present: (B,) bool.
            image_ids: (B,) equal numbers name the same image; guessed from the pixels if None.
            text_ids: (B,) equal numbers name the same text; compared token by token if None. Contrast across
                processes, in training, needs them.
            negatives: (B, K) rows of the batch to take negatives from; drawn if None.
            negative_noise: (B, B) uniform noise that draws the negatives: of equally similar ones, those with the
                lowest are taken.
            generator: Draws the noise if it is not given.
            return_loss: Not used; tells Trainer that there is a loss without labels.
        """
        present = all_present(input_ids, image_present, text_present)
        image_ids = image_fingerprint(pixel_values) if image_ids is None else image_ids
        text_ids = input_ids if text_ids is None else text_ids
        same = same_samples(image_ids, text_ids)
        text = self.encode_text(input_ids, attention_mask, text_present)
        image = self.encode_image(pixel_values, image_present)
        similarity = None if self.itc_head is None else self.itc_head(text, image)
        losses: dict[str, Tensor] = {}
        scores = candidates = None
        if self.config.num_negatives:
            allowed = ~same & present[:, None] & present[None]
            if negatives is None:
                negatives = self._draw_negatives(allowed, similarity, negative_noise, generator)
            scores, candidates = self._match(text, image, negatives, allowed)
            losses["irtr"] = ranking_loss(scores, present)
        if similarity is not None:
            contrast = gather_pairs(image_ids, text_ids, present) if self.training else (same, present)
            losses["itc"] = contrastive_loss(similarity, *contrast)
        weights = {"irtr": 1.0, "itc": self.config.itc_weight}
        loss = torch.stack([weights[name] * own for name, own in losses.items()]).sum()
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
        """Return the scores (B, 1 + K) of each image with its own and with other texts, and the rows of these."""
        own = torch.arange(negatives.shape[0], device=negatives.device)[:, None]
        candidates = torch.cat([own, negatives], dim=1)
        valid = torch.cat([torch.ones_like(own, dtype=torch.bool), allowed.gather(1, negatives)], dim=1)
        scores = self.score(text.select(candidates.flatten()), image.select(own.expand_as(candidates).flatten()))
        return scores.view(candidates.shape).masked_fill(~valid, -torch.inf), candidates


def _draw_order(noise: Tensor, log_weights: Tensor | None) -> Tensor:
    """(B, B) keys whose K lowest in a row are a weighted sample without replacement (Efraimidis and Spirakis 2006).

    Uniform noise u becomes an exponential arrival time −log(1 − u) / weight, of which this is the logarithm.
    """
    arrival = (-torch.log1p(-noise)).log()
    return arrival if log_weights is None else arrival - log_weights.detach()
