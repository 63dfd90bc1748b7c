import pytest
import torch

from m3ae.models.latent_encoders import cnn_encoder, mlp_encoder
from m3ae.models.modalities import configure
from tests.models.tiny_latent import DIGITS, IMAGE, digits_batch, latent_model

OPTIONS = {"kind": "image", "shape": [2, 7, 7], "hidden_size": 32, "num_layers": 2, "dropout": 0.5}


@pytest.mark.parametrize(("build", "encoder"), [(mlp_encoder, "mlp"), (cnn_encoder, "cnn")])
def test_encoders_drop_in_training_alone(build, encoder: str) -> None:
    network = build([2, 7, 7], configure("x", {**OPTIONS, "encoder": encoder}))
    images = torch.randn(3, 2, 7, 7)
    assert network(images).shape == (3, 32) and not torch.equal(network(images), network(images))
    assert torch.equal(network.eval()(images), network(images))


def test_convolutions_halve_the_side_and_double_the_width() -> None:
    network = cnn_encoder([2, 7, 7], configure("x", {**OPTIONS, "encoder": "cnn"}))
    shapes = [tuple(layer.weight.shape) for layer in network if isinstance(layer, torch.nn.Conv2d)]
    assert shapes == [(2, 2, 3, 3), (4, 2, 3, 3)]
    assert network[-1][1].in_features == 4 * 2 * 2


def test_convolutions_start_with_the_variance_of_their_inputs() -> None:
    image = {**IMAGE, "encoder": "cnn", "decoder": "cnn", "shape": [1, 8, 8], "hidden_size": 1024, "num_layers": 2}
    model = latent_model({"glyph": image})
    first, second = (layer for layer in model.modules() if isinstance(layer, torch.nn.Conv2d))
    assert first.weight.std().item() == pytest.approx((2 / 9) ** 0.5, rel=0.1)
    assert second.weight.std().item() == pytest.approx((2 / (9 * 64)) ** 0.5, rel=0.1)
    first, second = (layer for layer in model.modules() if isinstance(layer, torch.nn.ConvTranspose2d))
    assert first.weight.std().item() == pytest.approx((2 / (4 * 128)) ** 0.5, rel=0.1)
    assert second.weight.std().item() == pytest.approx((2 / (4 * 64)) ** 0.5, rel=0.1)


def test_a_convolutional_expert_is_decoded_by_an_mlp() -> None:
    model = latent_model({**DIGITS, "glyph": {**IMAGE, "encoder": "cnn"}})
    assert model.latent.typed_modalities["glyph"].decoder == "mlp"
    assert model(digits_batch()).loss.isfinite()
    with pytest.raises(ValueError, match=r"speech.encoder is 'cnn'; expected one of 'mlp', 'none'"):
        latent_model({**DIGITS, "speech": {**DIGITS["speech"], "encoder": "cnn"}})
