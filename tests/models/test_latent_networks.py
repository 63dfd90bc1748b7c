import pytest
import torch
from torch import distributions

from m3ae import M3AEConfig
from m3ae.models.latent_networks import ConvolutionalDecoder, PatchDecoder, cnn_encoder, mlp_encoder
from m3ae.models.likelihoods import Likelihood
from m3ae.models.modalities import KINDS, configure
from tests.models.tiny_latent import DIGITS, IMAGE, TRANSFORMER, digits_batch, latent_model

PREDICTED, TARGET = torch.randn(2, 5, 4, 3), torch.rand(5, 4, 3)
REFERENCE = {
    "normal": lambda predicted: distributions.Normal(predicted, 0.3),
    "laplace": lambda predicted: distributions.Laplace(predicted, 0.3),
    "bernoulli": lambda predicted: distributions.Bernoulli(logits=predicted, validate_args=False),
}


def likelihood_of(options: dict) -> Likelihood:
    likelihood = KINDS[options["kind"]]("x", configure("x", options), M3AEConfig.named("tiny")).build_likelihood()
    assert likelihood is not None
    return likelihood


@pytest.mark.parametrize("kind", REFERENCE)
@pytest.mark.parametrize("learn_scale", [False, True])
def test_densities_are_torchs(kind: str, learn_scale: bool) -> None:
    options = {"kind": "sequence", "shape": [4, 3], "likelihood": kind, "scale": 0.3, "learn_scale": learn_scale}
    likelihood = likelihood_of(options)
    assert len(list(likelihood.parameters())) == learn_scale
    reference = REFERENCE[kind](PREDICTED)
    torch.testing.assert_close(likelihood(PREDICTED, TARGET), reference.log_prob(TARGET).sum((-1, -2)))
    torch.testing.assert_close(likelihood.mean(PREDICTED), reference.mean)


def test_categorical() -> None:
    likelihood = likelihood_of({"kind": "label", "labels": ["a", "b", "c"]})
    logits, classes = torch.randn(2, 5, 3), torch.tensor([0, 2, 1, 1, 0])
    expected = distributions.Categorical(logits=logits).log_prob(classes)
    torch.testing.assert_close(likelihood(logits, classes), expected)
    torch.testing.assert_close(likelihood.mean(logits), logits.softmax(-1))


def test_the_best_learned_scale_is_the_root_mean_square_error() -> None:
    options = {"kind": "sequence", "shape": [4, 3], "learn_scale": True}
    likelihood = likelihood_of(options)
    error = (PREDICTED - TARGET).square().mean().sqrt()
    likelihood.log_scale.data.fill_(error.log())
    likelihood(PREDICTED, TARGET).sum().backward()
    assert likelihood.log_scale.grad.abs() < 1e-3


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
