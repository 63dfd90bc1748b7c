"""Autoregressive decoders of sequences and images: causal, exact, and drawn from what is kept of the steps before."""

import itertools
import math
from pathlib import Path
from typing import Any

import pytest
import torch

from m3ae import M3AEForGeneration
from m3ae.models.autoregressive import AutoregressiveDecoder
from m3ae.models.likelihoods import Likelihood
from m3ae.models.modalities import KINDS, configure
from tests.models.tiny import tiny_config
from tests.models.tiny_latent import DIGITS, digits_batch, latent_model, without

SMALL = {"decoder": "autoregressive", "hidden_size": 32, "num_layers": 2}
SEQUENCE = {**SMALL, "kind": "sequence", "shape": [11, 2]}
IMAGE = {**SMALL, "kind": "image", "encoder": "mlp", "shape": [2, 5, 7], "num_layers": 1}
KNOWN = {"sequence": SEQUENCE, "image": IMAGE}
LATENTS = torch.randn(4, 5, generator=torch.Generator().manual_seed(3))
MODEL: dict[str, dict[str, Any]] = {
    "glyph": {**DIGITS["glyph"], "decoder": "autoregressive", "likelihood": "bernoulli"},
    "speech": {**DIGITS["speech"], "decoder": "autoregressive", "likelihood": "mixture", "learn_scale": False},
}
BATCH = {name: digits_batch()[name] for name in MODEL}


def networks(options: dict[str, Any], **further: Any) -> tuple[AutoregressiveDecoder, Likelihood]:
    torch.manual_seed(0)
    modality = KINDS[options["kind"]]("x", configure("x", {**options, **further}), tiny_config())
    decoder, likelihood = modality.build_decoder(5), modality.build_likelihood()
    assert isinstance(decoder, AutoregressiveDecoder) and likelihood is not None
    return decoder.eval(), likelihood


def values_of(options: dict[str, Any], count: int = 4) -> torch.Tensor:
    return torch.rand(count, *options["shape"], generator=torch.Generator().manual_seed(0))


def in_order(options: dict[str, Any], values: torch.Tensor) -> torch.Tensor:
    """Lay out elements (R, *E) in the order in which they are read, (R, N, F)."""
    return values if options["kind"] == "sequence" else values.flatten(2).transpose(1, 2)


@pytest.mark.parametrize("kind", KNOWN)
def test_a_value_is_predicted_from_all_before_and_from_none_after(kind: str) -> None:
    decoder, _ = networks(KNOWN[kind])
    values = values_of(KNOWN[kind]).requires_grad_()
    predicted = in_order(KNOWN[kind], decoder(LATENTS, values))
    for number in range(predicted.shape[1]):
        (gradient,) = torch.autograd.grad(predicted[:, number].sum(), values, retain_graph=True)
        is_read = in_order(KNOWN[kind], gradient).abs().amax((0, 2)) > 0
        assert is_read[:number].all() and not is_read[number:].any()


@pytest.mark.parametrize(("shape", "levels"), [([4, 1], 3), ([2, 2], 3)])
def test_the_probabilities_of_all_sequences_sum_to_one(shape: list[int], levels: int) -> None:
    decoder, likelihood = networks(SEQUENCE, shape=shape, likelihood="categorical", levels=levels)
    size = math.prod(shape)
    whole = torch.tensor(list(itertools.product(range(levels), repeat=size))).view(-1, *shape) / (levels - 1)
    nats = likelihood(decoder(LATENTS[:1].expand(len(whole), -1), whole), whole)
    assert nats.exp().sum().item() == pytest.approx(1, abs=1e-5)


def test_the_probabilities_of_all_binary_images_sum_to_one() -> None:
    decoder, likelihood = networks(IMAGE, shape=[1, 3, 3], likelihood="bernoulli")
    whole = torch.tensor(list(itertools.product([0.0, 1.0], repeat=9))).view(-1, 1, 3, 3)
    nats = likelihood(decoder(LATENTS[:1].expand(512, -1), whole), whole)
    assert nats.exp().sum().item() == pytest.approx(1, abs=1e-5)


def test_a_mixture_of_normals_integrates_to_one() -> None:
    _, likelihood = networks(SEQUENCE, likelihood="mixture", scale=0.5)
    predicted = torch.randn(1, 1, 15, generator=torch.Generator().manual_seed(0)).expand(20_001, 1, 15)
    points = torch.linspace(-20, 20, 20_001).view(-1, 1)
    assert torch.trapezoid(likelihood(predicted, points).exp(), points[:, 0]).item() == pytest.approx(1, abs=1e-4)


@pytest.mark.parametrize("kind", KNOWN)
@pytest.mark.parametrize("name", ["normal", "laplace", "bernoulli", "categorical", "mixture"])
def test_a_draw_is_that_of_the_whole_network(kind: str, name: str) -> None:
    options = KNOWN[kind]
    decoder, likelihood = networks(options, likelihood=name, levels=4)
    drawn = decoder.draw(LATENTS, likelihood, torch.Generator().manual_seed(5))
    generator, expected = torch.Generator().manual_seed(5), torch.zeros(4, *options["shape"])
    count = in_order(options, expected).shape[1]
    with torch.no_grad():
        for number in range(count):
            predicted = decoder(LATENTS, expected)
            if kind == "sequence":
                piece = (slice(None), slice(number, number + 1))
            else:
                row, column = divmod(number, options["shape"][2])
                piece = (slice(None), slice(None), slice(row, row + 1), slice(column, column + 1))
            expected[piece] = likelihood.sample(predicted[piece], generator)
    torch.testing.assert_close(drawn, expected, rtol=0, atol=1e-5)
    assert drawn.std() > 0.1


@pytest.mark.parametrize("name", ["normal", "laplace", "bernoulli", "categorical", "mixture"])
def test_draws_have_the_likelihoods_mean_and_cost_its_entropy(name: str) -> None:
    """E[x] is as predicted, and the mean of log p of draws is that of draws of torch, within four standard errors."""
    _, likelihood = networks(SEQUENCE, likelihood=name, levels=4, scale=0.7)
    parameters = torch.randn(1, likelihood.num_parameters, generator=torch.Generator().manual_seed(1))
    predicted = parameters if likelihood.num_parameters > 1 else parameters[:, 0]
    drawn = likelihood.sample(predicted.expand(40_000, *predicted.shape[1:]), torch.Generator().manual_seed(0))
    grid = torch.arange(4) / 3 if name == "categorical" else torch.linspace(-20, 20, 200_001)
    grid = torch.tensor([0.0, 1.0]) if name == "bernoulli" else grid
    density = likelihood.elements(predicted.expand(len(grid), *predicted.shape[1:]), grid).exp()
    density = density / density.sum()
    mean = (density * grid).sum()
    error = ((density * grid**2).sum() - mean**2).sqrt() / 200
    assert abs(drawn.mean() - mean) < 4 * error
    nats = likelihood.elements(predicted.expand(40_000, *predicted.shape[1:]), drawn)
    on_grid = likelihood.elements(predicted.expand(len(grid), *predicted.shape[1:]), grid)
    expected = (density * on_grid.clamp(min=-100)).sum()
    assert abs(nats.mean() - expected) < 4 * nats.std() / 200 + 1e-4


def markov_chains(count: int, length: int, seed: int) -> tuple[torch.Tensor, torch.Tensor]:
    """Return binary chains (count, length, 1) that stay with probability 0.9, and what they cost in nats, (count,)."""
    draw = torch.Generator().manual_seed(seed)
    rates = torch.tensor([0.5] + [0.1] * (length - 1))
    changes = (torch.rand(count, length, generator=draw) < rates).float()
    return (changes.cumsum(1) % 2)[..., None], -torch.distributions.Bernoulli(rates).log_prob(changes).sum(1)


def test_the_entropy_of_a_markov_chain_is_reached() -> None:
    decoder, likelihood = networks(SEQUENCE, shape=[8, 1], likelihood="bernoulli", num_layers=1)
    optimizer = torch.optim.Adam(decoder.parameters(), 1e-2)
    for step in range(80):
        chains, _ = markov_chains(256, 8, seed=step)
        loss = -likelihood(decoder(torch.zeros(256, 5), chains), chains).mean()
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    chains, entropy = markov_chains(4000, 8, seed=1000)
    with torch.no_grad():
        nats = -likelihood(decoder(torch.zeros(4000, 5), chains), chains)
    assert (nats - entropy).mean().item() == pytest.approx(0.015, abs=0.015)  # never less but by chance


@pytest.mark.parametrize("kind", KNOWN)
def test_what_is_not_read_is_drawn_anew_at_every_step_of_training_alone(kind: str) -> None:
    decoder, _ = networks(KNOWN[kind], dropout=0.5)
    values = values_of(KNOWN[kind])
    assert torch.equal(decoder(LATENTS, values), decoder(LATENTS, values))
    decoder.train()
    assert not torch.equal(decoder(LATENTS, values), decoder(LATENTS, values))


def test_rows_that_lack_a_modality_add_nothing_and_change_nothing() -> None:
    model, present = latent_model(MODEL), torch.tensor([[True] * 6, [True, False] * 3])
    latents = torch.randn(6, model.latent.total_size)
    nats = {name: nats(latents) for name, nats in model.log_likelihoods(BATCH).items()}
    fewer = {name: nats(latents) for name, nats in model.log_likelihoods(without(BATCH, present)).items()}
    torch.testing.assert_close(fewer["glyph"], nats["glyph"])
    torch.testing.assert_close(fewer["speech"], nats["speech"].where(present[1], torch.zeros(())))


def test_the_evidence_of_decoders_that_ignore_z_is_their_likelihood() -> None:
    """The posterior is the prior here, so every importance weight is p(x)."""
    model = latent_model({name: {**options, "private_size": 0} for name, options in MODEL.items()})
    for name, expert in model.latent_head.experts.items():
        torch.nn.init.zeros_(expert.output.weight)
        expert.output.bias.data[:] = torch.tensor([0.0] * 5 + [60.0] * 5)  # log-variances
        torch.nn.init.zeros_(model.latent_head.decoders[name].latents[-1].weight)
    likelihoods = model.log_likelihoods(BATCH).values()
    with torch.no_grad():
        expected = sum(nats(torch.zeros(6, 5)) for nats in likelihoods)
    assert expected.std() > 0.1
    torch.testing.assert_close(model.log_evidence(BATCH, 7, chunk_size=3), expected, rtol=1e-4, atol=1e-3)


def test_a_saved_model_draws_the_same(tmp_path: Path) -> None:
    model = latent_model(MODEL)
    model.save_pretrained(tmp_path)
    loaded = M3AEForGeneration.from_pretrained(tmp_path)
    draws = [m.sample_prior(3, generator=torch.Generator().manual_seed(0)) for m in (model, loaded)]
    for name in MODEL:
        assert torch.equal(draws[0][name], draws[1][name])
    assert not torch.equal(draws[0]["glyph"], model.sample_prior(3)["glyph"])


def test_densities_of_several_parameters_need_an_autoregressive_decoder() -> None:
    with pytest.raises(ValueError, match="of several parameters a value, for the decoder mlp; expected"):
        configure("x", {**SEQUENCE, "decoder": "mlp", "likelihood": "mixture"})
