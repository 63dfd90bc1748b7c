import math

import pytest
import torch
from torch import Tensor

from m3ae.models import bounds, gaussians
from m3ae.models.gaussians import Gaussian, Mixture
from m3ae.models.priors import ExpertReference
from tests.models.variational import (
    LinearGaussian,
    Reference,
    fitting_experts,
    grid,
    log_likelihood,
    orthogonal_model,
    quadrature,
    read_reference,
    toy,
)

KINDS = ("poe", "moe", "mopoe")


def close(actual: Tensor, expected: Tensor | float, atol: float = 1e-5, rtol: float = 0.0) -> None:
    expected = torch.as_tensor(expected)
    torch.testing.assert_close(actual.double(), expected.double(), atol=atol, rtol=rtol)


def everything(batch: int) -> Tensor:
    return torch.ones(3, batch, dtype=torch.bool)


def draw(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed))


def seeded(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


# --- An independent library's numbers: means and sums of up to 220 nats in float32, hence to 1e-5 or 1e-6 of them ---


@pytest.fixture(scope="module")
def reference(shared) -> Reference:
    return read_reference(shared)


def subset_elbos(reference: Reference, present: Tensor) -> bounds.Elbo:
    q = gaussians.posterior(reference.experts, present, gaussians.subsets(3))
    eps = reference.eps.expand(7, *reference.eps.shape)
    return bounds.elbo(q, reference.model.log_likelihoods, gaussians.subsets(3), eps=eps)


@pytest.mark.real_data
def test_the_mvae_of_the_reference(reference) -> None:
    present = torch.ones_like(reference.present)
    result = subset_elbos(reference, present)
    close(7 * result.loss, reference.value("mvae/loss_sum_of_7_neg_elbos(k=3)"), rtol=1e-6)
    close(-7 * result.bound.mean(), reference.value("mvae/loss_sum_of_7_neg_elbos(k=3)"), rtol=1e-6)
    joint = gaussians.posterior(reference.experts, present, gaussians.components("poe", 3))
    result = bounds.elbo(joint, reference.model.log_likelihoods, eps=reference.eps[None])
    close(result.loss, reference.value("mvae/joint_neg_elbo"), rtol=1e-6)
    close(result.kl.sum(-1).mean(), reference.value("mvae/joint_kl"))


@pytest.mark.real_data
def test_the_mvae_with_missing_modalities_of_the_reference(reference) -> None:
    """It sums over subsets the mean over the samples that have any of its modalities, n of them, with the first n eps.

    A sample with one modality thus counts four times, in equal terms; ours counts once.
    """
    total = torch.zeros(())
    for members in gaussians.subsets(3):
        rows = (members[:, None] & reference.present).any(0)
        q = gaussians.posterior(
            Gaussian(*(value[:, rows] for value in reference.experts)), reference.present[:, rows], members[None]
        )
        there = reference.present[:, rows]
        likelihoods = {
            f"m{m}": lambda z, m=m, there=there, rows=rows: (
                log_likelihood(z, reference.model.weights[m], reference.model.data[m][rows]) * there[m]
            )
            for m in range(3)
        }
        eps = reference.eps[None, : int(rows.sum())]
        total = total + bounds.elbo(q, likelihoods, members[None], eps=eps).loss
    close(total, reference.value("mvae/masked_loss"), rtol=1e-6)


@pytest.mark.real_data
def test_the_mopoe_of_the_reference(reference) -> None:
    present = torch.ones_like(reference.present)
    q = gaussians.posterior(reference.experts, present, gaussians.components("mopoe", 3), "full_only")
    by_position = torch.arange(7)  # its choice, to get its number; never ours
    chosen = gaussians.choose(q.components, by_position)
    close(chosen.mu, reference.value("mopoe/selected_mu"))
    close(chosen.logvar, reference.value("mopoe/selected_logvar"))
    result = bounds.elbo(q, reference.model.log_likelihoods, choice=by_position, eps=reference.eps)
    close(result.loss, reference.value("mopoe/neg_elbo"), rtol=1e-6)


@pytest.mark.real_data
@pytest.mark.parametrize("bound", ["iwae", "dreg"])
def test_the_mmvae_of_the_reference(reference, bound: str) -> None:
    """Its DReG loss is Σ_i w̃_i log w_i, whose gradient `dreg` has, and not the value of a bound."""
    q = gaussians.posterior(
        reference.experts, torch.ones_like(reference.present), gaussians.components("moe", 3), "never"
    )
    z = torch.tensor(list(reference.values[f"mmvae/{bound}_looser/z"].values())).transpose(0, 1)  # (K, C, B, D)
    expected = reference.value(f"mmvae/{bound}_looser/loss(sum over batch)")
    if bound == "iwae":
        eps = (z - q.components.mu) * (-q.components.logvar / 2).exp()
        close(-bounds.iwae(q, reference.model.log_likelihoods, 5, eps=eps).sum(), expected, rtol=1e-6)
    else:
        log_w = bounds.log_weights(q, z, reference.model.log_likelihoods)
        close(-(log_w.softmax(0) * log_w).sum(0).mean(0).sum(), expected, rtol=1e-6)


@pytest.mark.real_data
def test_the_evidence_of_the_reference(reference) -> None:
    """Not matched: the four `*/nll_K2000`, seeds of a library's estimators; `mopoe/nll_K2000` is biased besides."""
    close(-reference.model.evidence().sum(), reference.value("exact_nll"))


@pytest.mark.real_data
@pytest.mark.parametrize("kind", KINDS)
def test_the_estimator_converges_to_the_evidence_of_the_reference(reference, kind: gaussians.Kind) -> None:
    """The sum over the batch, at K = 5,000, has a standard error below 0.035 nat."""
    q = gaussians.posterior(fitting_experts(reference.model), everything(7), gaussians.components(kind, 3))
    estimate = bounds.importance_log_likelihood(
        q, reference.model.log_likelihoods, 5000, chunk_size=1000, generator=seeded()
    )
    close(-estimate.sum(), reference.value("exact_nll"), atol=0.05)


@pytest.mark.real_data
@pytest.mark.parametrize("kind", ["moe", "mopoe"])
def test_the_estimator_converges_from_the_experts_of_the_reference_too(reference, kind: gaussians.Kind) -> None:
    """These are noise, so that it takes K = 50,000 for a standard error of 0.015 nat in the mean of the samples.

    Not from their product: it is narrower than the posterior so that the weights have no variance, whatever K.
    """
    present = torch.ones_like(reference.present)
    q = gaussians.posterior(reference.experts, present, gaussians.components(kind, 3))
    estimate = bounds.importance_log_likelihood(
        q, reference.model.log_likelihoods, 50_000, chunk_size=5000, generator=seeded()
    )
    close(-estimate.mean(), reference.value("exact_nll") / 7, atol=0.05)

    product = gaussians.posterior(reference.experts, present, gaussians.components("poe", 3)).components.logvar[0]
    _, precision = reference.model.posterior()
    excess = 2 * precision - torch.diag_embed((-product.double()).exp())  # p²/q is integrable where it is positive
    assert (torch.linalg.eigvalsh(excess)[:, 0] < 0).any()


# --- Closed forms ---


def test_elbo_is_the_evidence_less_the_divergence_from_the_posterior() -> None:
    """Of one Gaussian component, with the noise integrated by Gauss-Hermite quadrature."""
    model = LinearGaussian(
        [torch.tensor([[0.7]]).double(), torch.tensor([[-1.2]]).double()],
        [torch.tensor([[0.4]]).double(), torch.tensor([[1.5]]).double()],
    )
    nodes, shares = quadrature(20)
    model = LinearGaussian(model.weights, [x.expand(20, 1) for x in model.data])
    q = Mixture(Gaussian(torch.full((1, 20, 1), 0.3), torch.full((1, 20, 1), -0.5)), torch.ones(1, 20))
    result = bounds.elbo(q, model.log_likelihoods, eps=nodes[None, :, None])
    mean, precision = model.posterior()
    exact = torch.distributions.Normal(mean[0, 0], precision[0, 0] ** -0.5)
    gap = torch.distributions.kl_divergence(torch.distributions.Normal(0.3, math.exp(-0.25)), exact)
    close((result.bound * shares).sum(), model.evidence()[0] - gap)


def test_any_row_of_components_explains_and_references_is_what_its_formula_says() -> None:
    """One latent dimension, x_m ~ N(w_m z, 1): every expectation has a closed form, the noise is integrated."""
    nodes, shares = quadrature(20)
    w, x = torch.tensor([0.7, -1.2]).double(), torch.tensor([0.4, 1.5]).double()
    model = LinearGaussian([w[m].view(1, 1) for m in range(2)], [x[m].expand(20, 1) for m in range(2)])
    mu, logvar = torch.tensor([0.3, -0.8, 1.0]).double(), torch.tensor([-0.5, 0.1, -1.2]).double()  # of 3 components
    pi, a, b = draw(3).softmax(0).double(), draw(3, 2, seed=1).double(), draw(3, 2, seed=2).double()
    expert = Gaussian(torch.tensor([0.5]).double(), torch.tensor([0.2]).double())
    q = Mixture(Gaussian(*(v[:, None, None].expand(3, 20, 1) for v in (mu, logvar))), pi[:, None].expand(3, 20))
    references = [(None, b[:, :1, None]), (ExpertReference(expert, joined=False), b[:, 1:, None])]
    eps = nodes[None, :, None].expand(3, 20, 1)
    result = bounds.elbo(q, model.log_likelihoods, a[..., None], references, beta=0.7, eps=eps)
    explained = -0.5 * ((x - w * mu[:, None]) ** 2 + w**2 * logvar.exp()[:, None] + math.log(2 * math.pi))  # (C, M)
    kl = torch.stack([gaussians.kl_divergence(Gaussian(mu, logvar), r) for r in (None, expert)], 1)
    close((result.kl[:, 0] * shares).sum(), (pi[:, None] * b * kl).sum())
    close((result.bound * shares).sum(), (pi[:, None] * (a * explained - b * kl)).sum())
    only = bounds.elbo(q, model.log_likelihoods, torch.tensor([[True, False], [False, True], [False, False]]), eps=eps)
    close((only.log_likelihood["m0"] * shares).sum(), pi[0] * explained[0, 0])
    close((only.log_likelihood["m1"] * shares).sum(), pi[1] * explained[1, 1])


@pytest.mark.parametrize("kind", KINDS)
def test_bounds_are_the_evidence_when_q_is_the_posterior(kind: gaussians.Kind) -> None:
    """Orthogonal columns make the posterior diagonal, and it is the product of the prior and one expert."""
    model = orthogonal_model()
    mean, precision = model.posterior()
    own = precision.diagonal() - 1
    values = (mean * precision.diagonal() / own, -own.log())
    experts = Gaussian(*(value.float().expand(3, 6, 4) for value in values))
    one_present = torch.tensor([[False], [True], [False]]).expand(3, 6)
    q = gaussians.posterior(experts, one_present, gaussians.components(kind, 3))
    likelihoods, evidence = model.log_likelihoods, model.evidence()
    close(bounds.iwae(q, likelihoods, 2, generator=seeded()), evidence)
    close(bounds.dreg(q, likelihoods, 2, generator=seeded()), evidence)
    close(bounds.importance_log_likelihood(q, likelihoods, 3, generator=seeded()), evidence)


def mean_gradient(bound, experts: list[tuple[float, float]], samples: int, beta: float = 1.0) -> Tensor:
    """The exact mean gradient of a bound in μ_k and log σ²_k, for p(x|z) = N(z, 1), x = 1."""
    nodes, shares = grid(samples)
    leaves = torch.tensor(experts, dtype=torch.float64).T[..., None, None].requires_grad_()  # (2, C, 1, 1)
    components = Gaussian(*leaves.expand(-1, -1, len(shares), -1))
    q = Mixture(components, torch.full((len(experts), len(shares)), 1 / len(experts), dtype=torch.float64))
    model = LinearGaussian([torch.ones(1, 1).double()], [torch.ones(1, 1).double()])
    eps = nodes[:, None, :, None].expand(-1, len(experts), -1, -1)
    (bound(q, model.log_likelihoods, samples, beta=beta, eps=eps) * shares).sum().backward()
    return leaves.grad[:, :, 0, 0].T


def test_gradient_of_one_sample_is_the_elbo_s() -> None:
    """∂/∂μ [−½(x − μ)² − ½μ²] = x − 2μ, and ∂/∂log σ² [½ log σ² − σ²] = ½ − σ²."""
    mu, logvar = 0.3, -0.4
    for bound in (bounds.iwae, bounds.dreg):
        gradient = mean_gradient(bound, [(mu, logvar)], 1)
        close(gradient[0], torch.tensor([1 - 2 * mu, 0.5 - math.exp(logvar)]))


@pytest.mark.parametrize(("samples", "beta"), [(1, 1.0), (2, 1.0), (3, 1.0), (2, 0.3)])
def test_dreg_has_the_mean_gradient_of_iwae_for_a_product(samples: int, beta: float) -> None:
    expected = mean_gradient(bounds.iwae, [(0.3, -0.4)], samples, beta)
    close(mean_gradient(bounds.dreg, [(0.3, -0.4)], samples, beta), expected, atol=1e-7)
    assert expected.abs().min() > 0.01


def test_dreg_has_the_mean_gradient_of_iwae_for_one_sample_of_each_expert() -> None:
    experts = [(-1.0, 0.2), (1.5, -0.5)]
    expected = mean_gradient(bounds.iwae, experts, 1)
    close(mean_gradient(bounds.dreg, experts, 1), expected, atol=1e-5)
    several = [mean_gradient(bound, experts, 2) for bound in (bounds.iwae, bounds.dreg)]
    assert 0.005 < (several[0] - several[1]).abs().max() < 0.05  # as published


@pytest.mark.parametrize("kind", KINDS)
def test_dreg_has_iwae_s_value_and_decoder_gradient(kind: gaussians.Kind) -> None:
    model, experts = toy(), Gaussian(draw(3, 6, 4, seed=1), draw(3, 6, 4, seed=2))
    present = torch.rand(3, 6, generator=seeded()) < 0.7
    gradients, values = [], []
    for bound in (bounds.iwae, bounds.dreg):
        weights = [weight.clone().requires_grad_() for weight in model.weights]
        leaves = [value.clone().requires_grad_() for value in experts]
        q = gaussians.posterior(Gaussian(*leaves), present, gaussians.components(kind, 3))
        value = bound(q, LinearGaussian(weights, model.data).log_likelihoods, 5, generator=seeded())
        value.sum().backward()
        values.append(value.detach())
        gradients.append([[weight.grad for weight in weights], [leaf.grad for leaf in leaves]])
    close(values[0], values[1], atol=0)
    for iwae, dreg in zip(gradients[0][0], gradients[1][0], strict=True):
        close(iwae, dreg, atol=0)
    assert all((iwae - dreg).abs().max() > 1e-2 for iwae, dreg in zip(gradients[0][1], gradients[1][1], strict=True))
    with torch.no_grad():
        q = gaussians.posterior(experts, present, gaussians.components(kind, 3))
        close(bounds.dreg(q, model.log_likelihoods, 5, generator=seeded()), values[0], atol=0)


def test_dreg_s_gradient_vanishes_at_the_posterior_and_iwae_s_does_not() -> None:
    model = orthogonal_model()
    mean, precision = model.posterior()
    norms = []
    for bound in (bounds.dreg, bounds.iwae):
        leaves = [
            v.float()[None].clone().requires_grad_() for v in (mean, -precision.diagonal().log().expand_as(mean))
        ]
        bound(
            Mixture(Gaussian(*leaves), torch.ones(1, 6)), model.log_likelihoods, 4, generator=seeded()
        ).sum().backward()
        norms.append(max(leaf.grad.abs().max().item() for leaf in leaves))
    assert norms[0] < 1e-5 and norms[1] > 0.1


# --- Relations and invariances ---


def test_more_samples_tighten_the_bound() -> None:
    model = toy(batch=500)
    q = gaussians.posterior(fitting_experts(model), everything(500), gaussians.components("mopoe", 3))
    tighter = [bounds.iwae(q, model.log_likelihoods, k, generator=seeded()).mean() for k in (1, 5, 25)]
    elbo = bounds.elbo(q, model.log_likelihoods, generator=seeded()).bound.mean()
    assert elbo < tighter[0] < tighter[1] < tighter[2] < model.evidence().mean()


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("samples", [1, 3])
def test_the_mean_weight_is_the_evidence_for_any_number_of_samples(kind: gaussians.Kind, samples: int) -> None:
    """Even for fewer samples than components; log-means of few samples are only bounds of it."""
    one = toy(batch=1, seed=5)
    model = LinearGaussian(one.weights, [x.expand(20_000, -1) for x in one.data])
    present = torch.tensor([[True], [False], [True]]).expand(3, 20_000)
    q = gaussians.posterior(
        Gaussian(*(v[:, :1].expand(3, 20_000, 4) for v in fitting_experts(one))),
        present,
        gaussians.components(kind, 3),
    )
    estimate = bounds.importance_log_likelihood(q, model.log_likelihoods, samples, generator=seeded())
    ratio = (estimate - one.evidence()).exp()
    assert abs(ratio.mean() - 1) < 4 * ratio.std() / math.sqrt(20_000) < 0.1


def test_the_estimator_never_decodes_more_than_a_chunk_nor_mixes_samples() -> None:
    model = toy()
    q = gaussians.posterior(fitting_experts(model), everything(6), gaussians.components("mopoe", 3))
    seen: list[int] = []

    def watched(z: Tensor) -> Tensor:
        seen.append(len(z))
        return model.log_likelihoods["m0"](z)

    bounds.importance_log_likelihood(q, {"m0": watched}, 25, chunk_size=10)
    assert seen == [10, 10, 5]
    far = LinearGaussian(model.weights, [torch.cat([x[:5], x[5:] + 100]) for x in model.data])
    near, moved = (
        bounds.importance_log_likelihood(q, m.log_likelihoods, 25, chunk_size=10, generator=seeded())
        for m in (model, far)
    )
    close(near[:5], moved[:5], atol=0)
    assert moved[5] < near[5] - 1000


def test_all_components_or_a_choice_give_the_same_elbo_on_average() -> None:
    model, present = toy(), torch.rand(3, 6, generator=seeded()) < 0.7
    q = gaussians.posterior(fitting_experts(model), present, gaussians.components("mopoe", 3))
    exact = bounds.elbo(q, model.log_likelihoods, beta=0.5, eps=torch.zeros(7, 6, 4))
    noise = (torch.arange(2100) + 0.5) / 2100
    choice = torch.cat([gaussians.stratified_components(q.weights, 1, u.expand(6)) for u in noise])
    chosen = bounds.elbo(q, model.log_likelihoods, choice=choice, beta=0.5, eps=torch.zeros(2100, 6, 4))
    close(chosen.bound, exact.bound, atol=1e-2)
    close(chosen.kl, exact.kl, atol=0)
    close(exact.loss, -exact.bound.mean() - 0.5 * exact.kl.sum(-1).mean())
    one = bounds.elbo(q, model.log_likelihoods, choice=choice[0], eps=torch.zeros(6, 4))
    close(one.log_likelihood["m1"], model.log_likelihoods["m1"](gaussians.choose(q.components, choice[0]).mu))


def test_free_bits_and_beta_change_the_loss_and_not_the_bound() -> None:
    model = toy()
    q = gaussians.posterior(fitting_experts(model), everything(6), gaussians.components("poe", 3))
    eps = draw(1, 6, 4)
    plain = bounds.elbo(q, model.log_likelihoods, eps=eps)
    changed = bounds.elbo(q, model.log_likelihoods, beta=0.3, free_nats=5.0, eps=eps)
    close(changed.bound, plain.bound, atol=0)
    close(changed.loss, plain.loss - plain.kl.sum(-1).mean() + 0.3 * 4 * 5)
    for bound in (bounds.iwae, bounds.dreg):
        weights = bounds.log_weights(q, gaussians.sample(q.components, eps=eps[None]), model.log_likelihoods, 0.0)
        close(bound(q, model.log_likelihoods, 1, beta=0.0, eps=eps[None]), weights[0, 0])
        close(weights[0, 0], sum(plain.log_likelihood.values()))


def test_each_subset_explains_itself_once() -> None:
    """A sample with two of three modalities has three terms; with one, one; with none, nothing."""
    model = toy(batch=4)
    present = torch.tensor([[1, 1, 0, 0], [1, 0, 1, 0], [1, 1, 0, 0]]).bool()
    experts, members = fitting_experts(model), gaussians.subsets(3)
    likelihoods = {
        name: lambda z, f=f, there=there: f(z) * there
        for (name, f), there in zip(model.log_likelihoods.items(), present, strict=True)
    }
    q = gaussians.posterior(experts, present, members)
    result = bounds.elbo(q, likelihoods, members, eps=torch.zeros(7, 4, 4))
    for sample, sets in enumerate((range(7), (0, 2, 4), (1,), ())):
        terms = [
            sum(f(q.components.mu)[k, sample] for f, m in zip(likelihoods.values(), members[k], strict=True) if m)
            - gaussians.kl_divergence(q.components)[k, sample].sum()
            for k in sets
        ]
        close(result.bound[sample], sum(terms) / max(1, len(terms)))
    with pytest.raises(ValueError, match=r"2 likelihoods \(m0, m1\) for 3 experts"):
        bounds.elbo(q, {name: likelihoods[name] for name in ("m0", "m1")}, members)


@pytest.mark.parametrize("kind", KINDS)
def test_a_batch_s_order_changes_nothing(kind: gaussians.Kind) -> None:
    model, order = toy(), torch.tensor([3, 0, 5, 1, 4, 2])
    present = torch.rand(3, 6, generator=seeded()) < 0.7
    turned = LinearGaussian(model.weights, [x[order] for x in model.data])
    experts, members, eps = (
        fitting_experts(model),
        gaussians.components(kind, 3),
        draw(5, 7, 6, 4)[:, : len(gaussians.components(kind, 3))],
    )
    q = gaussians.posterior(experts, present, members)
    r = gaussians.posterior(Gaussian(*(v[:, order] for v in experts)), present[:, order], members)
    for bound in (bounds.iwae, bounds.dreg):
        close(
            bound(q, model.log_likelihoods, 5, eps=eps)[order],
            bound(r, turned.log_likelihoods, 5, eps=eps[:, :, order]),
        )
    ours = bounds.elbo(q, model.log_likelihoods, eps=eps[0])
    theirs = bounds.elbo(r, turned.log_likelihoods, eps=eps[0][:, order])
    close(ours.bound[order], theirs.bound)
    close(ours.loss, theirs.loss)


def test_samples_without_any_modality_add_nothing() -> None:
    present = torch.zeros(3, 6, dtype=torch.bool)
    experts = Gaussian(*(torch.full((3, 6, 4), torch.nan).requires_grad_() for _ in range(2)))
    q = gaussians.posterior(experts, present, gaussians.components("mopoe", 3))
    likelihoods = dict.fromkeys(("a", "b", "c"), lambda z: torch.zeros(z.shape[:-1]))
    losses = [
        bounds.elbo(q, likelihoods).loss,
        bounds.elbo(q, likelihoods, gaussians.subsets(3)).loss,
        bounds.iwae(q, likelihoods, 3).mean(),
        bounds.dreg(q, likelihoods, 3).mean(),
        bounds.importance_log_likelihood(q, likelihoods, 3).mean(),
    ]
    for loss in losses:
        close(loss, 0.0)
    sum(losses).backward()
    assert not any(value.grad.any() for value in experts)


def test_autocast_changes_nothing_and_half_precision_likelihoods_are_cast_up() -> None:
    q = gaussians.posterior(fitting_experts(toy()), everything(6), gaussians.components("mopoe", 3))
    halves = {"m0": lambda z: -z.square().sum(-1).bfloat16(), "m1": lambda z: z.sin().sum(-1).bfloat16()}

    def results() -> list[Tensor]:
        elbo = bounds.elbo(q, halves, generator=seeded())
        others = [bound(q, halves, 3, generator=seeded()) for bound in (bounds.iwae, bounds.dreg)]
        return [elbo.loss, elbo.bound, *others, bounds.importance_log_likelihood(q, halves, 9, generator=seeded())]

    plain = results()
    with torch.autocast("cpu", torch.bfloat16):
        cast = results()
    assert all(value.dtype == torch.float32 for value in cast)
    assert all(map(torch.equal, plain, cast))
