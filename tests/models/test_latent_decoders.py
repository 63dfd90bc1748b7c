"""The decoder of patches; the rest is tested with the whole model."""

import pytest
import torch

from m3ae.models.latent_configuration import ModalityConfig
from m3ae.models.latent_decoders import PatchDecoder
from tests.models.tiny_latent import TRANSFORMER


def test_patches_have_places() -> None:
    modality = ModalityConfig.of("image", {"kind": "image", **TRANSFORMER})
    decoder = PatchDecoder(5, modality, [3, 32, 32], 8, 2)
    image = decoder(torch.randn(2, 5))
    assert image.shape == (2, 3, 32, 32) and (image[:, :, :8, :8] - image[:, :, :8, 8:16]).abs().max() > 1e-3
    with pytest.raises(ValueError, match="32 px images in patches of 7 px"):
        PatchDecoder(5, modality, [3, 32, 32], 7, 2)
