"""Pairs of images and texts: a batch of them, which of its samples are the same, and mismatched ones to tell apart.

Shapes: B batch, V views, C channels, H×W pixels, L text tokens.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, NamedTuple

import torch
from torch import Tensor
from torch.distributed.nn.functional import all_gather
from torch.nn import functional as F
from transformers import PreTrainedConfig

from m3ae.models.configuration import M3AEConfig, M3AEImageConfig
from m3ae.models.encoders import denormalize_images
from m3ae.models.masking import blank_padding, masked_language_loss

if TYPE_CHECKING:
    from m3ae.models.fusion import Stream
    from m3ae.models.modeling import M3AEEncoders


class ImageTextBatch(NamedTuple):
    """A batch of images and texts; the attributes are arguments of `M3AEForPreTraining.forward`."""

    pixel_values: Tensor
    input_ids: Tensor
    attention_mask: Tensor | None
    image_present: Tensor | None
    text_present: Tensor | None
    pixel_mask: Tensor | None = None

    def pixels(self) -> Tensor:
        """Return the images, zero where absent or padding, so that no NaN of an absent one reaches a loss."""
        pixels, present = blank_padding(self.pixel_values, self.pixel_mask), self.image_present
        return pixels if present is None else torch.where(present[..., None, None, None], pixels, 0)

    def encode_image(self, trunk: M3AEEncoders, ids_keep: Tensor | None = None) -> Stream:
        """Encode the images alone, or those of their patches that `ids_keep` (B·V, K) names."""
        return trunk.encode_image(self.pixel_values, ids_keep, self.image_present, pixel_mask=self.pixel_mask)

    @property
    def num_views(self) -> int:
        """Number of images V of a sample."""
        return 1 if self.pixel_values.dim() == 4 else self.pixel_values.shape[1]

    def text(self) -> dict[str, Tensor]:
        """Return the text as a batch of modalities has it."""
        tensors = {"input_ids": self.input_ids, "attention_mask": self.attention_mask, "present": self.text_present}
        return {name: tensor for name, tensor in tensors.items() if tensor is not None}

    def view(self, number: int, config: M3AEImageConfig) -> dict[str, Tensor]:
        """Return an image in [0, 1] as a batch of modalities has it."""
        pixels, several = self.pixel_values, self.pixel_values.dim() == 5
        tensors = {"pixel_values": denormalize_images(pixels[:, number] if several else pixels, config)}
        for name, mask in (("present", self.image_present), ("pixel_mask", self.pixel_mask)):
            if mask is not None:
                tensors[name] = mask[:, number] if several else mask
        return tensors

    def complete(self) -> Tensor:
        """Return which samples (B,) have both modalities."""
        return all_present(self.input_ids, self.image_present, self.text_present)


def image_text_batch(
    config: M3AEConfig,
    pixel_values: Tensor | None,
    input_ids: Tensor | None,
    attention_mask: Tensor | None,
    image_present: Tensor | None,
    text_present: Tensor | None,
    pixel_mask: Tensor | None = None,
) -> ImageTextBatch:
    """Return a batch; a modality that is left out is a blank that is absent from every sample.

    Raises:
        ValueError: Both modalities are left out.
    """
    if pixel_values is None and input_ids is None:
        raise ValueError("An M3AE model needs pixel_values, input_ids, or both; got neither.")
    if pixel_values is None and input_ids is not None:
        image = config.image_config
        assert isinstance(image, M3AEImageConfig)
        shape = (len(input_ids), image.num_channels, image.image_size, image.image_size)
        pixel_values = torch.zeros(shape, device=input_ids.device)
        image_present = torch.zeros(len(input_ids), dtype=torch.bool, device=input_ids.device)
    assert pixel_values is not None
    if input_ids is None:
        assert isinstance(config.text_config, PreTrainedConfig)
        device, pad = pixel_values.device, config.text_config.pad_token_id or 0
        input_ids, attention_mask = torch.full((len(pixel_values), 1), pad, device=device), None
        text_present = torch.zeros(len(pixel_values), dtype=torch.bool, device=device)
    return ImageTextBatch(pixel_values, input_ids, attention_mask, image_present, text_present, pixel_mask)


def sample_ids(batch: ImageTextBatch, image_ids: Tensor | None, text_ids: Tensor | None) -> tuple[Tensor, Tensor]:
    """Return the ids of the images and texts of a batch; where they are None, fingerprints and tokens."""
    images = image_fingerprint(batch.pixel_values) if image_ids is None else image_ids
    return images, batch.input_ids if text_ids is None else text_ids


def all_present(rows: Tensor, *masks: Tensor | None) -> Tensor:
    """Return in which of the rows (B, …) every modality is present, (B,) bool.

    Args:
        rows: Any tensor of the batch.
        masks: (B,) bool of each modality, or (B, V) of an image of several views, of which one is enough; None says
            that all are present.
    """
    present = torch.ones(rows.shape[0], dtype=torch.bool, device=rows.device)
    for mask in masks:
        present = present if mask is None else present & mask.view(mask.shape[0], -1).any(1)
    return present


def image_fingerprint(pixel_values: Tensor) -> Tensor:
    """Return mean and deviation (B, 2) of each image: equal for equal images, and for hardly any others."""
    flat = pixel_values.flatten(1)
    return torch.stack([flat.mean(1), flat.std(1)], dim=1)


class MatchingPairs(NamedTuple):
    """Pairs for image-text matching.

    Attributes:
        image_index: (B,) the image that each text is paired with.
        labels: (B,) 1 = the image of the text's sample, 0 = another one.
        valid: (B,) bool: the sample has both modalities.
    """

    image_index: Tensor
    labels: Tensor
    valid: Tensor


def match_pairs(image_ids: Tensor, text_ids: Tensor, present: Tensor, noise: Tensor) -> MatchingPairs:
    """Give half of the texts another sample's image: the next one in a random cyclic order that may serve.

    A negative never shares the image or the text of the sample that gets it. A text without any such partner in the
    batch keeps the image of its sample.

    Args:
        image_ids: (B,) or (B, F): equal entries are the same image.
        text_ids: (B,) or (B, F): equal entries are the same text.
        present: (B,) bool: the sample has both modalities.
        noise: (B, 2) uniform in [0, 1): the first channel decides who gets a negative, the second one which.
    """
    size = noise.shape[0]
    allowed = ~same_samples(image_ids, text_ids) & present[:, None] & present[None, :]
    ahead = (noise[None, :, 1] - noise[:, None, 1]) % 1.0
    partner = ahead.masked_fill(~allowed, 2.0).argmin(dim=1)
    candidate = allowed.any(1)
    rank = noise[:, 0].masked_fill(~candidate, 2.0).argsort().argsort()
    mismatched = candidate & (rank < (present.sum() + 1) // 2)
    image_index = torch.where(mismatched, partner, torch.arange(size, device=noise.device))
    return MatchingPairs(image_index, (~mismatched).long(), present)


def same_samples(image_ids: Tensor, text_ids: Tensor) -> Tensor:
    """Return which samples share the image or the text, (B, B) bool; the ids are those of `match_pairs`."""
    return _equal(image_ids) | _equal(text_ids)


def _equal(ids: Tensor) -> Tensor:
    ids = ids.reshape(ids.shape[0], -1)
    return (ids[:, None] == ids[None]).all(-1)


def all_gather_rows(rows: Tensor) -> Tensor:
    """Return the rows (B, …) of all P processes, (P·B, …), this one's first; gradients flow back to each process.

    A loss over all rows, in whatever order, is the same number in every process, and the mean over processes of its
    gradients, which every engine takes, is the gradient of one process with all the samples. The processes have to
    call this together, each with the same number of rows.
    """
    if not _is_distributed():
        return rows
    rank, gathered = torch.distributed.get_rank(), list(all_gather(rows))
    return torch.cat(gathered[rank:] + gathered[:rank])


class ContrastedPairs(NamedTuple):
    """Texts and images in the space of contrast, with what says which of them are no negatives of each other.

    Attributes:
        texts: (N, E) unit vectors.
        images: (N, E) unit vectors.
        image_ids: (N,) or (N, F): equal entries are the same image.
        text_ids: (N,) or (N, L): equal entries are the same text.
        valid: (N,) bool: the sample has both modalities.
    """

    texts: Tensor
    images: Tensor
    image_ids: Tensor
    text_ids: Tensor
    valid: Tensor

    def gather(self) -> ContrastedPairs:
        """Return the pairs of all processes, in the order of `all_gather_rows`.

        Raises:
            ValueError: The texts have no ids, and their tokens are of different lengths in each process.
        """
        if _is_distributed():
            self._check_ids("processes")
        return ContrastedPairs(*map(all_gather_rows, self))

    def beside(self, others: Sequence[ContrastedPairs]) -> ContrastedPairs:
        """Return these pairs and those of the other micro-batches of an optimiser step (Gao et al. 2021, GradCache).

        The vectors of the others are constants, and the gradient of these vectors is multiplied by the number of
        micro-batches. So the mean over the micro-batches, which training takes, is the gradient of one large batch.

        Raises:
            ValueError: The texts have no ids, and their tokens are of different lengths in each micro-batch.
        """
        if not others:
            return self
        self._check_ids("micro-batches")
        constant = self.detach()
        texts, images = (
            fixed + (1 + len(others)) * (vectors - fixed)
            for vectors, fixed in ((self.texts, constant.texts), (self.images, constant.images))
        )
        scaled = self._replace(texts=texts, images=images)
        return ContrastedPairs(*(torch.cat(rows) for rows in zip(scaled, *others, strict=True)))

    def detach(self) -> ContrastedPairs:
        """Return the pairs as constants."""
        return ContrastedPairs(*(tensor.detach() for tensor in self))

    def _check_ids(self, what: str) -> None:
        if self.text_ids.dim() > 1:
            raise ValueError(
                f"text_ids: got None, expected numbers (B,): contrast across {what} needs them in training"
            )

    def same(self) -> Tensor:
        """Return which samples share the image or the text, (N, N) bool."""
        return same_samples(self.image_ids, self.text_ids)


def _is_distributed() -> bool:
    return torch.distributed.is_available() and torch.distributed.is_initialized()


def matching_loss(logits: Tensor, labels: Tensor, valid: Tensor) -> Tensor:
    """Cross-entropy over the pairs that have both modalities; 0 if no pair has.

    Args:
        logits: (B, 2).
        labels: (B,) 1 = matched.
        valid: (B,) bool.
    """
    return masked_language_loss(logits, labels.masked_fill(~valid, -100))


def contrastive_loss(logits: Tensor, same: Tensor, valid: Tensor) -> Tensor:
    """Symmetric InfoNCE: each text finds its image among the batch's, and each image its text (Radford et al. 2021).

    Args:
        logits: (B, B) similarity of text i and image j over the temperature.
        same: (B, B) bool: i and j share the image or the text; such a pair is no negative.
        valid: (B,) bool: the sample has both modalities.
    """
    others = ~torch.eye(logits.shape[0], dtype=torch.bool, device=logits.device)
    masked = logits.float().masked_fill(others & (same | ~(valid[:, None] & valid[None])), -torch.inf)
    log_odds = masked.log_softmax(1).diagonal() + masked.log_softmax(0).diagonal()
    return -(log_odds * valid).sum() / (2 * valid.sum().clamp(min=1))


def sigmoid_loss(logits: Tensor, same: Tensor, valid: Tensor) -> Tensor:
    """SigLIP's loss, −1/B Σᵢⱼ log σ(±logitᵢⱼ): each pair is judged by itself (Zhai et al. 2023).

    Args:
        logits: (B, B) similarity of text i and image j over the temperature, plus the bias.
        same: (B, B) bool: i and j share the image or the text; such a pair is no negative.
        valid: (B,) bool: the sample has both modalities.
    """
    matched = torch.eye(logits.shape[0], dtype=torch.bool, device=logits.device)
    losses = -F.logsigmoid(torch.where(matched, logits, -logits).float())
    counted = (matched | ~same) & valid[:, None] & valid[None]
    return torch.where(counted, losses, 0).sum() / valid.sum().clamp(min=1)


CONTRASTIVE_LOSSES = {"infonce": contrastive_loss, "sigmoid": sigmoid_loss}


def ranking_loss(scores: Tensor, valid: Tensor) -> Tensor:
    """Cross-entropy of finding the first among the candidates; 0 if no row has a positive.

    Args:
        scores: (B, 1 + K), the positive in column 0, −∞ where a candidate does not count.
        valid: (B,) bool: the row has a positive.
    """
    loss = torch.where(valid, -scores.float().log_softmax(-1)[:, 0], 0)
    return loss.sum() / valid.sum().clamp(min=1)
