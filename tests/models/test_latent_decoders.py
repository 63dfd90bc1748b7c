"""Decoders of images; the rest is tested with the whole model."""

import pytest
import torch

from m3ae.models.latent_decoders import ConvolutionalDecoder, PatchDecoder
from m3ae.models.modalities import configure
from tests.models.tiny_latent import TRANSFORMER


def test_patches_have_places() -> None:
    modality = configure("image", {"kind": "image", **TRANSFORMER})
    decoder = PatchDecoder(5, modality, [3, 32, 32], 8, 2)
    image = decoder(torch.randn(2, 5))
    assert image.shape == (2, 3, 32, 32) and (image[:, :, :8, :8] - image[:, :, :8, 8:16]).abs().max() > 1e-3
    with pytest.raises(ValueError, match="32 px images in patches of 7 px"):
        PatchDecoder(5, modality, [3, 32, 32], 7, 2)


def test_transposed_convolutions_double_the_side_and_halve_the_width() -> None:
    options = {"kind": "image", "shape": [2, 16, 16], "encoder": "cnn", "decoder": "cnn"}
    decoder = ConvolutionalDecoder(5, configure("image", {**options, "hidden_size": 32}), [2, 16, 16])
    convolutions = [layer for layer in decoder.layers if isinstance(layer, torch.nn.ConvTranspose2d)]
    assert [layer.weight.shape[:2] for layer in convolutions] == [(4, 2), (2, 2)]
    assert decoder.layers[1].unflattened_size == (4, 4, 4)
    assert decoder(torch.randn(3, 5)).shape == (3, 2, 16, 16)
    with pytest.raises(ValueError, match=r"18 px images with 2 layers, .* multiples of 4, or fewer layers"):
        ConvolutionalDecoder(5, configure("image", options), [2, 18, 18])
