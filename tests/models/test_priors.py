"""The prior that is learned with a latent model."""

from dataclasses import replace
from itertools import product

import pytest
import torch
from torch.distributions import Categorical, Independent, MixtureSameFamily, Normal

from m3ae import M3AEForGeneration
from m3ae.models import bounds, gaussians
from m3ae.models.gaussians import Gaussian
from m3ae.models.priors import ConditionalPrior, FittedPrior, HierarchicalPrior, LearnedPrior
from tests.models.tiny_latent import digits_batch, latent_model


def prior(seed: int = 0, size: int = 2) -> LearnedPrior:
    torch.manual_seed(seed)
    made = LearnedPrior(3, size)
    torch.nn.init.normal_(made.logits)
    torch.nn.init.normal_(made.logvars)
    return made


def conditional(size: int) -> ConditionalPrior:
    made = ConditionalPrior(3, size, 8)
    for parameter in made.parameters():
        torch.nn.init.normal_(parameter, std=0.5)
    return made


def standard(size: int) -> LearnedPrior:
    made = LearnedPrior(1, size)
    torch.nn.init.zeros_(made.means)
    return made


def test_a_condition_takes_the_place_of_the_prior_of_z() -> None:
    z, (q, given) = torch.randn(3, 4, 2), (Gaussian(torch.randn(4, 2), torch.randn(4, 2)) for _ in range(2))
    held = HierarchicalPrior(2, given, {}, {}, {})
    normal, other = (Normal(one.mu, (one.logvar / 2).exp()) for one in (q, given))
    torch.testing.assert_close(held.log_prob(z), other.log_prob(z).sum(-1))
    torch.testing.assert_close(held.kl_divergence(q, z), torch.distributions.kl_divergence(normal, other))


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
    """At μ ± σ the cross-entropy to a single Gaussian has its mean."""
    gaussian = Gaussian(torch.randn(4, 2), torch.randn(4, 2))
    own = prior()
    with torch.no_grad():
        own.logits.copy_(torch.tensor([0.0, -1e9, -1e9]))
    signs = torch.tensor(list(product([-1.0, 1.0], repeat=2)))
    found = []
    for sign in signs:
        z = gaussian.mu + (gaussian.logvar / 2).exp() * sign
        found.append(gaussians.sampled_kl_divergence(gaussian, z, own))
    target = Normal(own.means[0], (own.logvars[0] / 2).exp())
    q = Normal(gaussian.mu, (gaussian.logvar / 2).exp())
    expected = torch.distributions.kl_divergence(q, target)
    torch.testing.assert_close(torch.stack(found).mean(0), expected.sum(-1))
    torch.testing.assert_close(gaussians.kl_divergence(gaussian, Gaussian(own.means[0], own.logvars[0])), expected)


@pytest.mark.parametrize("kind", ["poe", "moe", "mopoe"])
def test_a_standard_prior_that_could_be_learned_changes_no_density(kind: str) -> None:
    model, batch = latent_model(kind=kind), digits_batch()
    q, own, _ = model.infer_latent(batch)
    likelihoods, z = model.log_likelihoods(batch, own), torch.randn(4, 6, model.latent.total_size)
    fixed = model.latent_head.prior(own)
    priors = [fixed, replace(fixed, shared=standard(5))]
    torch.testing.assert_close(*[bounds.log_weights(q, z, likelihoods, prior=prior) for prior in priors])
    values = [bounds.elbo(q, likelihoods, generator=torch.Generator().manual_seed(0), prior=prior) for prior in priors]
    assert values[0].kl.shape == (6, 5 + 2) and values[1].kl.shape == (6, 1 + 2)
    torch.testing.assert_close(values[0].kl[:, 5:], values[1].kl[:, 1:])
    for name, value in values[0].log_likelihood.items():
        torch.testing.assert_close(value, values[1].log_likelihood[name])


def test_private_latents_are_a_change_of_variables_given_z() -> None:
    """log p(w|z) = log N(ε) − log |∂w/∂ε|, and noise and points are one-to-one."""
    torch.manual_seed(0)
    for size in (1, 2, 5):
        own = conditional(size)
        z, noise = torch.randn(3), torch.randn(size)
        w = own.transform(noise, z)
        jacobian = torch.autograd.functional.jacobian(lambda eps, own=own, z=z: own.transform(eps, z), noise)
        expected = gaussians.log_prior(noise) - torch.linalg.slogdet(jacobian).logabsdet
        torch.testing.assert_close(own.log_prob(w, z), expected, rtol=1e-4, atol=1e-4)
        assert (own.transform(noise, z + 1) - w).abs().min() > 0.01, "it follows z"


def test_untrained_private_latents_are_standard_normal() -> None:
    torch.manual_seed(0)
    config = latent_model().config
    head, w, z = M3AEForGeneration(config).latent_head, torch.randn(4, 3), torch.randn(4, 5)
    torch.testing.assert_close(head.private_priors["speech"].log_prob(w, z), gaussians.log_prior(w))
    torch.testing.assert_close(head.private_priors["speech"].transform(w, z), w)


def test_the_divergence_of_private_latents_vanishes_where_they_follow_the_prior() -> None:
    """Absent ones cost nothing; for inferred ones the estimate is log q − log p at the point, on average."""
    model, batch = latent_model(), digits_batch()
    q, own, _ = model.infer_latent({"speech": batch["speech"]}, joint=True)
    prior, points = model.latent_head.prior(own), gaussians.sample(q.components, 4000)
    many = Gaussian(*(part.expand(4000, 6, 10) for part in q.components))
    kl = prior.kl_divergence(many, points[:, 0])  # (4000, 6, 5 + 2)
    assert (kl[..., 5] == 0).all()
    ratio = gaussians.mixture_log_density(points[:, 0], q) - prior.log_prob(points[:, 0])
    torch.testing.assert_close(kl.sum(-1).mean(0), ratio.mean(0), rtol=0.05, atol=0.2)


@pytest.mark.parametrize(
    "options",
    [
        {"num_samples": 2},
        {},
        {"objective": "subset_elbos", "kind": "poe"},
        {"objective": "dreg", "num_samples": 2, "kind": "moe"},
        {"objective": "jmvae", "kind": "joint"},
        {"flow_prior": "maf", "num_samples": 2},
        {"flow_prior": "realnvp", "objective": "telbo", "kind": "joint"},
    ],
    ids=str,
)
def test_every_objective_moves_it(options: dict) -> None:
    model = latent_model(learned_prior=0 if "flow_prior" in options else 3, **options)
    output = model(digits_batch())
    output.loss.backward()
    gradients = [parameter.grad for parameter in model.latent_head.shared_prior.parameters()]
    assert all(gradient.isfinite().all() for gradient in gradients)
    # The last layers of a flow are 0 at first, and nothing before them has a gradient then.
    assert any(gradient.any() for gradient in gradients) and (
        "flow_prior" in options or all(map(torch.any, gradients))
    )


def test_saved_it_gives_the_same_samples_and_clusters_the_latents(tmp_path) -> None:
    model = latent_model(learned_prior=3)
    with torch.no_grad():
        model.latent_head.shared_prior.logvars.fill_(-20)
    model.save_pretrained(tmp_path)
    loaded = M3AEForGeneration.from_pretrained(tmp_path).eval()
    first, second = (
        m.sample_prior(9, targets=["label"], generator=torch.Generator().manual_seed(1)) for m in (model, loaded)
    )
    assert torch.equal(first["label"], second["label"])
    assert 1 < len({tuple(row) for row in first["label"].mul(1000).round().tolist()}) <= 3


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_a_fitted_prior_in_half_precision_draws_what_it_was_fitted_on(dtype: torch.dtype) -> None:
    generator = torch.Generator().manual_seed(0)
    points = 3 + torch.randn(200, 2, generator=generator) * torch.tensor([0.5, 2.0])
    prior = FittedPrior.fit(points, 1).to(dtype)
    drawn = prior.sample(2000, torch.Generator().manual_seed(1))
    torch.testing.assert_close(drawn.mean(0), points.mean(0), atol=0.15, rtol=0)
    torch.testing.assert_close(drawn.std(0), points.std(0), atol=0.15, rtol=0)
