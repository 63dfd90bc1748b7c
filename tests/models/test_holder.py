"""Hölder pooling with α = ½."""

import math

import pytest
import torch

from m3ae.models import bounds, gaussians
from m3ae.models.gaussians import Gaussian
from m3ae.models.holder import holder_pool
from tests.models.tiny_latent import digits_batch, latent_model, rows, without
from tests.models.variational import fitting_experts, toy


def pool(experts: Gaussian, present: torch.Tensor | None = None) -> gaussians.Mixture:
    count, size = experts.mu.shape[:2]
    present = torch.ones(count, size, dtype=torch.bool) if present is None else present
    return holder_pool(experts, present, gaussians.components("holder", count))


def test_it_is_the_squared_sum_of_the_roots() -> None:
    """On a grid of one dimension, for all four experts and for two of them."""
    draw = torch.Generator().manual_seed(0)
    experts = Gaussian(*torch.randn(2, 4, 2, 1, generator=draw, dtype=torch.float64))
    present = torch.tensor([[1, 1], [1, 0], [1, 0], [1, 1]]).bool()
    q = pool(experts, present)
    z = torch.linspace(-25, 25, 20_001, dtype=torch.float64)[:, None, None].expand(-1, 2, 1)
    density = gaussians.mixture_log_density(z, q).exp()
    torch.testing.assert_close(torch.trapezoid(density, z[:, 0, 0], dim=0), torch.ones(2).double())
    roots = (gaussians.log_density(z[:, None], experts) / 2).exp() * present
    square = roots.sum(1) ** 2
    torch.testing.assert_close(density, square / torch.trapezoid(square, z[:, 0, 0], dim=0))


def test_limits() -> None:
    one = Gaussian(torch.randn(1, 3, 4), torch.randn(1, 3, 4))
    torch.testing.assert_close(tuple(pool(one).components), tuple(one))
    same = pool(Gaussian(*(value.expand(5, -1, -1) for value in one)))
    torch.testing.assert_close(tuple(same.components), tuple(value.expand(15, -1, -1) for value in one))
    torch.testing.assert_close(same.weights[5:].sum(0), torch.full((3,), 4 / 5))  # pairs have (M − 1)/M of the mass
    apart = pool(Gaussian(torch.tensor([-20.0, 20.0]).view(2, 1, 1), torch.zeros(2, 1, 1)))
    torch.testing.assert_close(apart.weights[:, 0], torch.tensor([0.5, 0.5, 0.0]))
    absent = pool(Gaussian(torch.full((2, 1, 1), math.nan), torch.zeros(2, 1, 1)), torch.zeros(2, 1, dtype=torch.bool))
    assert absent.weights[:, 0].tolist() == [1, 0, 0] and absent.components.mu[0, 0] == 0


def test_the_weights_have_a_gradient_in_the_bound() -> None:
    model = toy()
    leaves = [value.clone().requires_grad_() for value in fitting_experts(model)]
    leaves[0].data += torch.randn(3, 6, 4, generator=torch.Generator().manual_seed(1))
    gradients = []
    for detached in (False, True):
        q = pool(Gaussian(*leaves))
        q = q._replace(weights=q.weights.detach()) if detached else q
        loss = bounds.elbo(q, model.log_likelihoods, generator=torch.Generator().manual_seed(0)).loss
        gradients.append(torch.autograd.grad(loss, leaves[0])[0])
    assert (gradients[0] - gradients[1]).abs().max() > 1e-3 and gradients[0].isfinite().all()


def test_a_model_infers_incomplete_rows_as_alone_and_learns() -> None:
    model = latent_model(kind="holder")
    present = torch.tensor([[1, 1, 0, 1, 0, 0], [1, 1, 1, 0, 1, 0], [1, 0, 1, 0, 0, 0]]).bool()
    batch = without({name: digits_batch()[name] for name in ("glyph", "label", "speech")}, present)
    together = model.infer_latent(batch, joint=True)
    assert together.mixture.weights.shape == (6, 6)
    for row in range(6):
        alone = model.infer_latent(rows(batch, [row]), joint=True)
        torch.testing.assert_close(alone.mixture.weights[:, 0], together.mixture.weights[:, row])
        torch.testing.assert_close(alone.mean[0], together.mean[row])
    output = model(batch, eps=torch.randn(6, 6, model.latent.total_size))
    output.loss.backward()
    assert all(p.grad.isfinite().all() for p in model.latent_head.experts.parameters())
    assert model.log_evidence(batch, 5).isfinite().all()
    assert model.generate_modalities({"label": digits_batch()["label"]}, num_samples=2)["glyph"].shape[:2] == (2, 6)


@pytest.mark.parametrize("options", [{"num_samples": 2}, {"objective": "crmvae"}, {"prior_expert": "always"}])
def test_what_loses_the_gradient_of_the_weights_is_refused(options: dict) -> None:
    with pytest.raises(ValueError, match="expected elbo, None and never"):
        latent_model(kind="holder", **options)
