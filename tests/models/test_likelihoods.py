import pytest
import torch
from torch import distributions

from m3ae import M3AEConfig
from m3ae.models.likelihoods import Likelihood
from m3ae.models.modalities import KINDS, configure

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
