"""What the passes of pre-training read and leave for the heads.

Shapes: B batch, V views.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

import torch
from torch import Tensor

from m3ae.models.configuration import M3AEConfig, M3AEImageConfig
from m3ae.models.encoders import denormalize_images
from m3ae.models.fusion import Stream
from m3ae.models.modalities import Modality
from m3ae.models.modeling import all_present


@dataclass
class MaskedInputs:
    """A batch of images and texts; the attributes are arguments of `M3AEForPreTraining.forward`."""

    pixel_values: Tensor
    input_ids: Tensor
    attention_mask: Tensor | None
    image_present: Tensor | None
    text_present: Tensor | None

    def pixels(self) -> Tensor:
        """Return the images, zero where absent, so that no NaN of an absent one reaches a loss."""
        if self.image_present is None:
            return self.pixel_values
        return torch.where(self.image_present[..., None, None, None], self.pixel_values, 0)

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
        pixels, present = self.pixel_values, self.image_present
        if pixels.dim() == 5:
            pixels, present = pixels[:, number], None if present is None else present[:, number]
        tensors = {"pixel_values": denormalize_images(pixels, config)}
        return tensors if present is None else tensors | {"present": present}

    def complete(self) -> Tensor:
        """Return which samples (B,) have both modalities."""
        return all_present(self.input_ids, self.image_present, self.text_present)


@dataclass
class FusedTokens:
    """What the heads read, and the streams of whole inputs that it has taken."""

    text: Tensor | None = None
    image: Tensor | None = None
    pair: dict[str, Tensor] | None = None
    pair_present: Tensor | None = None
    similarity: Tensor | None = None
    contrast: Tensor | None = None
    whole: dict[str, Stream] = field(default_factory=dict)


def check_modalities(config: M3AEConfig, modalities: Mapping[str, Modality]) -> None:
    """Raise ValueError unless each modality of the latent head is the trunk's text or one of its images."""
    texts = [name for name, modality in modalities.items() if modality.stream == "text"]
    images = [name for name, modality in modalities.items() if modality.stream == "image"]
    views = config.views or images[:1]
    if len(texts) > 1 or len(texts) + len(images) < len(modalities) or not set(images) <= set(views):
        kinds = {name: f"{modality.kind}, encoder {modality.config.encoder}" for name, modality in modalities.items()}
        raise ValueError(
            f"latent.modalities: M3AEForPreTraining has a text (encoder roberta) and the images "
            f"{config.views or 'of one view'} (encoder vit), got {kinds}; M3AEForGeneration trains any modalities"
        )
