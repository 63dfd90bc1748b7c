"""Priors that are normalising flows."""

from pathlib import Path

import pytest
import torch
from sklearn.datasets import make_moons

from m3ae import M3AEForGeneration
from m3ae.models import gaussians
from m3ae.models.flows import FLOWS, FlowPrior
from tests.models.tiny_latent import digits_batch, latent_model


def flow(kind: str, size: int = 2) -> FlowPrior:
    torch.manual_seed(0)
    prior = FlowPrior(kind, size)
    for parameter in prior.flow.parameters():
        torch.nn.init.normal_(parameter, std=0.08)
    prior.mean.copy_(torch.linspace(-0.5, 0.5, size))
    prior.deviation.copy_(torch.linspace(0.8, 1.2, size))
    return prior


@pytest.mark.parametrize("kind", FLOWS)
def test_density_and_samples_belong_together(kind: str) -> None:
    """The density integrates to 1, and is log N(ε) − log |∂z/∂ε| where noise ε becomes z."""
    prior = flow(kind)
    axis = torch.linspace(-9, 9, 181)
    with torch.no_grad():
        density = prior.log_prob(torch.cartesian_prod(axis, axis)).exp().view(181, 181)
    total = torch.trapezoid(torch.trapezoid(density, axis), axis)
    torch.testing.assert_close(total, torch.tensor(1.0), atol=3e-3, rtol=0)
    z = prior.sample(1, torch.Generator().manual_seed(1))[0]
    eps = torch.randn(1, 2, generator=torch.Generator().manual_seed(1))[0]

    def decoded(noise: torch.Tensor) -> torch.Tensor:
        return prior.flow().inv(noise) * prior.deviation + prior.mean

    torch.testing.assert_close(decoded(eps), z)
    jacobian = torch.autograd.functional.jacobian(decoded, eps)
    expected = gaussians.log_prior(eps) - torch.linalg.slogdet(jacobian).logabsdet
    torch.testing.assert_close(prior.log_prob(z), expected, atol=1e-4, rtol=1e-4)
    determinant = prior.flow().call_and_ladj(torch.randn(4, 2))[1]
    assert (determinant.abs().max() < 1e-6) == (kind == "nice"), "NICE keeps the volume"
    centre = prior.sample(3, temperature=0)
    torch.testing.assert_close(centre, centre[:1].expand(3, -1))


@pytest.mark.parametrize("kind", FLOWS)
@pytest.mark.parametrize("size", [1, 5])
def test_a_model_starts_with_a_standard_normal_prior_and_keeps_its_own(kind: str, size: int, tmp_path: Path) -> None:
    torch.manual_seed(0)
    model = M3AEForGeneration(latent_model(size=size, flow_prior=kind).config).eval()
    prior, z = model.latent_head.shared_prior, torch.randn(4, 3, size)
    if size > 1:  # one dimension has nothing to depend on, and its scale is a parameter of its own
        torch.testing.assert_close(prior.log_prob(z), gaussians.log_prior(z))
    for parameter in prior.parameters():
        torch.nn.init.normal_(parameter, std=0.2)
    model.save_pretrained(tmp_path)
    again = M3AEForGeneration.from_pretrained(tmp_path).eval()
    torch.testing.assert_close(again.latent_head.shared_prior.log_prob(z), prior.log_prob(z))
    first, second = (m.sample_latent_prior(5, generator=torch.Generator().manual_seed(0)) for m in (model, again))
    torch.testing.assert_close(first, second)


def test_a_fitted_flow_beats_the_best_gaussian_and_is_saved(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("m3ae.models.flows.MAX_STEPS", 300)
    points, held_out = (torch.from_numpy(make_moons(n, noise=0.1, random_state=n)[0]).float() for n in (1200, 500))
    prior = FlowPrior.fit(points)
    with torch.no_grad():
        gained = prior.log_prob(held_out).mean()
    best = torch.distributions.MultivariateNormal(points.mean(0), points.T.cov()).log_prob(held_out).mean()
    assert gained > best + 0.5
    moved = prior.sample(2000, torch.Generator().manual_seed(0))
    torch.testing.assert_close(moved.mean(0), points.mean(0), atol=0.1, rtol=0)
    model = latent_model()
    model.fit_prior([digits_batch(30)], 2, torch.Generator().manual_seed(0), kind="flow")
    model.save_pretrained(tmp_path)
    again = M3AEForGeneration.from_pretrained(tmp_path).eval()
    assert again.latent.prior_flow == "maf" and again.latent.prior_components == 0
    first, second = (
        m.sample_latent_prior(5, "fitted", generator=torch.Generator().manual_seed(0)) for m in (model, again)
    )
    torch.testing.assert_close(first, second)
    model.fit_prior([digits_batch(30)], 2)
    assert model.latent.prior_flow is None and model.latent.prior_components == 2


def test_bad_options_are_explained(monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(ValueError, match="kind of a fitted prior is 'gmm'; expected one of 'mixture', 'flow'"):
        latent_model().fit_prior([digits_batch(30)], kind="gmm")
    with pytest.raises(ValueError, match="20 points or more, got 6"):
        latent_model().fit_prior([digits_batch(6)], kind="flow")
    with pytest.raises(ValueError, match="got 3 beside flow_prior; expected one of the two"):
        latent_model(flow_prior="maf", learned_prior=3)
    with pytest.raises(ValueError, match=r"latent\.flow_prior is 'glow'; expected one of 'nice', 'realnvp', 'maf'"):
        latent_model(flow_prior="glow")
    monkeypatch.setattr("m3ae.models.flows.find_spec", lambda name: None)
    with pytest.raises(ValueError, match=r"needs zuko, which is not installed; pip install 'm3ae\[flows\]'"):
        FlowPrior("maf", 2)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float64])
def test_other_precisions(dtype: torch.dtype) -> None:
    prior = flow("realnvp").to(dtype)
    z = prior.sample(4, torch.Generator().manual_seed(0)).float()
    assert prior.log_prob(z).dtype != torch.bfloat16 and prior.log_prob(z).isfinite().all()
