"""The kind `vector`."""

from __future__ import annotations

from typing import ClassVar

from m3ae.models.latent_networks import MLPDecoder, mlp_encoder
from m3ae.models.modalities.base import Modality


class Vector(Modality):
    """Numbers (F,)."""

    kind = "vector"
    dimensions: ClassVar[tuple[str, ...]] = ("F",)
    encoders: ClassVar = {"mlp": lambda modality: mlp_encoder(modality.shape, modality.config)}
    decoders: ClassVar = {
        "mlp": lambda modality, input_size: MLPDecoder(input_size, modality.config, modality.shape),
    }
