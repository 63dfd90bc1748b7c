"""The prior that is learned with a latent model."""

from itertools import product

import pytest
import torch
from torch.distributions import Categorical, Independent, MixtureSameFamily, Normal

from m3ae import M3AEForGeneration
from m3ae.models import latent, objectives
from m3ae.models.latent import Gaussian
from m3ae.models.learned_prior import LearnedPrior
from tests.models.tiny_latent import digits_batch, latent_model


def prior(seed: int = 0, size: int = 2) -> LearnedPrior:
    torch.manual_seed(seed)
    made = LearnedPrior(3, size)
    torch.nn.init.normal_(made.logits)
    torch.nn.init.normal_(made.logvars)
    return made


def standard(size: int) -> LearnedPrior:
    made = LearnedPrior(1, size)
    torch.nn.init.zeros_(made.means)
    return made


def test_density_and_samples_are_those_of_the_mixture() -> None:
    own = prior()
    components = Independent(Normal(own.means, (own.logvars / 2).exp()), 1)
    expected = MixtureSameFamily(Categorical(logits=own.logits), components)
    z = torch.randn(5, 4, 2)
    torch.testing.assert_close(own.log_prob(z), expected.log_prob(z))
    drawn = own.sample(20_000, torch.Generator().manual_seed(0))
    torch.testing.assert_close(drawn.mean(0), expected.mean, atol=0.05, rtol=0)
    torch.testing.assert_close(drawn.var(0), expected.variance, atol=0, rtol=0.05)
    centres = own.sample(50, temperature=0)
    assert (centres[:, None] == own.means).all(-1).any(1).all()


def test_the_sampled_divergence_is_exact_on_average() -> None:
    """At μ ± σ the cross-entropy to a single Gaussian has its mean; dimensions beyond the prior are exact."""
    gaussian = Gaussian(torch.randn(4, 3), torch.randn(4, 3))
    own = prior()
    with torch.no_grad():
        own.logits.copy_(torch.tensor([0.0, -1e9, -1e9]))
    signs = torch.tensor(list(product([-1.0, 1.0], repeat=2)))
    found = []
    for sign in signs:
        z = gaussian.mu + (gaussian.logvar / 2).exp() * torch.cat([sign, torch.zeros(1)])
        found.append(latent.sampled_kl_divergence(gaussian, z, own))
    target = Normal(own.means[0], (own.logvars[0] / 2).exp())
    q = Normal(gaussian.mu[:, :2], (gaussian.logvar[:, :2] / 2).exp())
    expected = torch.distributions.kl_divergence(q, target).sum(-1)
    torch.testing.assert_close(torch.stack(found).mean(0)[:, 0], expected)
    torch.testing.assert_close(found[0][:, 1:], latent.kl_divergence(gaussian)[:, 2:])


@pytest.mark.parametrize("kind", ["poe", "moe", "mopoe"])
def test_a_standard_prior_that_could_be_learned_changes_no_density(kind: str) -> None:
    model, batch = latent_model(kind=kind), digits_batch()
    q, likelihoods = model.infer_latent(batch).mixture, model.log_likelihoods(batch)
    z = torch.randn(4, 6, model.latent.total_size)
    weights = [objectives.log_weights(q, z, likelihoods, prior=own) for own in (None, standard(5))]
    torch.testing.assert_close(*weights)
    bounds = [
        objectives.elbo(q, likelihoods, generator=torch.Generator().manual_seed(0), prior=own)
        for own in (None, standard(5))
    ]
    assert bounds[1].kl.shape == (6, 1 + 5)
    for name, value in bounds[0].log_likelihood.items():
        torch.testing.assert_close(value, bounds[1].log_likelihood[name])


@pytest.mark.parametrize(
    "options",
    [
        {"num_samples": 2},
        {},
        {"objective": "subset_elbos", "kind": "poe"},
        {"objective": "dreg", "num_samples": 2, "kind": "moe"},
    ],
    ids=str,
)
def test_every_objective_moves_it(options: dict) -> None:
    model = latent_model(learned_prior=3, **options)
    output = model(digits_batch())
    output.loss.backward()
    for parameter in model.latent_head.prior.parameters():
        assert parameter.grad.isfinite().all() and parameter.grad.any()


def test_saved_it_gives_the_same_samples_and_clusters_the_latents(tmp_path) -> None:
    model = latent_model(learned_prior=3)
    with torch.no_grad():
        model.latent_head.prior.logvars.fill_(-20)
    model.save_pretrained(tmp_path)
    loaded = M3AEForGeneration.from_pretrained(tmp_path).eval()
    first, second = (
        m.sample_prior(9, targets=["label"], generator=torch.Generator().manual_seed(1)) for m in (model, loaded)
    )
    assert torch.equal(first["label"], second["label"])
    assert 1 < len({tuple(row) for row in first["label"].mul(1000).round().tolist()}) <= 3
