import math
from types import SimpleNamespace

import pytest
import torch
from torch import Tensor, distributions

from m3ae.models import gaussians
from m3ae.models.gaussians import Gaussian, Laplace
from tests.models.variational import Reference, read_reference

KINDS = ("poe", "moe", "mopoe")
SINGLES = torch.eye(3, dtype=torch.bool)


def close(actual: Tensor, expected: Tensor, tolerance: float = 1e-5) -> None:
    torch.testing.assert_close(actual, expected, atol=tolerance, rtol=0, check_dtype=False)


def draw(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed))


def some_experts(modalities: int = 3, batch: int = 5, size: int = 4) -> Gaussian:
    return Gaussian(draw(modalities, batch, size, seed=1), draw(modalities, batch, size, seed=2))


# three modalities, in every one of the eight patterns of presence
PATTERNS = torch.tensor([[bool(number >> modality & 1) for number in range(8)] for modality in range(3)])


@pytest.fixture(scope="module")
def reference(shared) -> Reference:
    return read_reference(shared)


@pytest.mark.real_data
@pytest.mark.parametrize(("library", "prior_expert"), [("mvae", "always"), ("mopoe", "full_only")])
def test_products_of_the_reference(reference, library: str, prior_expert: gaussians.PriorExpert) -> None:
    everything = torch.ones_like(reference.present)
    products = gaussians.posterior(reference.experts, everything, gaussians.subsets(3), prior_expert).components
    for actual, expected in zip(products, reference.gaussians(library), strict=True):
        close(actual, expected)


@pytest.mark.real_data
def test_missing_modalities_of_the_reference(reference) -> None:
    """Not matched: `mopoe/selected_*`, row b of product b, because its choice goes by the position in the batch."""
    joint = gaussians.posterior(reference.experts, reference.present, gaussians.components("poe", 3))
    close(joint.components.mu[0], reference.value("mvae/masked_joint/mu"))
    close(joint.components.logvar[0], reference.value("mvae/masked_joint/logvar"))
    mixture = gaussians.posterior(reference.experts, reference.present, gaussians.components("mopoe", 3))
    close(mixture.weights, reference.value("mopoe/masked_weights(7xB)"))


@pytest.mark.real_data
def test_divergences_of_the_reference(reference) -> None:
    everything = torch.ones_like(reference.present)
    joint = gaussians.posterior(reference.experts, everything, gaussians.components("poe", 3))
    close(gaussians.kl_divergence(joint.components).sum(-1).mean(), reference.value("mvae/joint_kl"))
    mixture = gaussians.posterior(reference.experts, everything, gaussians.components("mopoe", 3), "full_only")
    close(gaussians.mixture_kl_bound(mixture).sum(-1).mean(), reference.value("mopoe/kl(mean over 7 comps)"))


def test_subsets_are_all_and_in_order() -> None:
    members = gaussians.subsets(3)
    names = ["".join(str(int(member)) for member in row) for row in members]
    assert names == ["100", "010", "001", "110", "101", "011", "111"]
    assert gaussians.subsets(1).tolist() == [[True]]
    assert len(gaussians.subsets(5).unique(dim=0)) == 31


def test_components_of_each_kind() -> None:
    assert gaussians.components("poe", 3).tolist() == [[True] * 3]
    assert torch.equal(gaussians.components("moe", 3), SINGLES)
    assert torch.equal(gaussians.components("mopoe", 3), gaussians.subsets(3))
    with pytest.raises(ValueError, match=r"mopoe of 6 modalities has 63 components.*sample_subsets"):
        gaussians.components("mopoe", 6)
    with pytest.raises(ValueError, match="'pom'; expected one of poe, moe, mopoe"):
        gaussians.components("pom", 3)


def test_sampled_subsets_are_the_joint_the_single_ones_and_others_at_random() -> None:
    seen = set()
    for seed in range(200):
        members = gaussians.sample_subsets(6, 4, torch.Generator().manual_seed(seed))
        assert members.shape == (11, 6) and len(members.unique(dim=0)) == 11
        assert torch.equal(members[:6], torch.eye(6, dtype=torch.bool)) and members[-1].all()
        seen |= {tuple(row) for row in members[6:-1].tolist()}
    assert len(seen) == 2**6 - 1 - 6 - 1
    assert torch.equal(gaussians.sample_subsets(3, 99), gaussians.subsets(3))
    assert torch.equal(gaussians.sample_subsets(2, 1), gaussians.subsets(2))
    assert gaussians.sample_subsets(1, 1).tolist() == [[True]]


def test_product_is_the_normalised_product_of_densities() -> None:
    experts = Gaussian(torch.tensor([[[0.5]], [[-1.0]]]), torch.tensor([[[-0.7]], [[0.4]]]))
    grid = torch.linspace(-12, 12, 4001, dtype=torch.float64)[:, None, None]
    both = torch.ones(1, 2, 1, dtype=torch.bool)
    for prior_expert, with_prior in (("always", True), ("never", False), ("full_only", True)):
        log_product = sum(gaussians.log_density(grid, Gaussian(*(value[m] for value in experts))) for m in range(2))
        log_product = log_product + with_prior * gaussians.log_prior(grid)
        expected = log_product[:, 0].softmax(0) / 0.006
        product = gaussians.product_of_experts(experts, both, prior_expert)
        close(gaussians.log_density(grid, Gaussian(*(value[0] for value in product))).exp()[:, 0], expected)


def test_the_prior_is_in_the_products_that_were_asked_for() -> None:
    experts, present = some_experts(batch=8), PATTERNS
    variance = experts.logvar.exp()
    for prior_expert in ("always", "full_only", "never"):
        q = gaussians.posterior(experts, present, gaussians.components("poe", 3), prior_expert).components
        for number, there in enumerate(present.T):
            full = prior_expert == "full_only" and bool(there.all())
            precision = (1 / variance[there, number]).sum(0) + (prior_expert == "always" or full or not there.any())
            close(q.logvar[0, number], -precision.log())
            close(q.mu[0, number], (experts.mu / variance)[there, number].sum(0) / precision)
    with pytest.raises(ValueError, match="'full'; expected one of always, full_only, never"):
        gaussians.product_of_experts(experts, present[None], "full")


@pytest.mark.parametrize("kind", KINDS)
def test_weights_are_uniform_over_what_is_different_and_there(kind: gaussians.Kind) -> None:
    members = gaussians.components(kind, 3)
    weights = gaussians.component_weights(members[..., None] & PATTERNS)
    for there, weight in zip(PATTERNS.T, weights.T, strict=True):
        count = int(there.sum())
        components = 1 if count == 0 else {"poe": 1, "moe": count, "mopoe": 2**count - 1}[kind]
        sets = {tuple(row.tolist()) for row in (members & there)[weight > 0]}
        assert len(sets) == (weight > 0).sum() == components
        close(weight[weight > 0], torch.full((components,), 1 / components))


def test_weights_of_drawn_subsets_count_equal_products_once() -> None:
    members = torch.tensor([[1, 1, 0, 0], [1, 1, 1, 0], [0, 0, 1, 1], [1, 1, 1, 1]]).bool()
    present = torch.tensor([[1, 1, 0, 0], [1, 1, 1, 1], [0, 0, 1, 0]]).bool().T
    weights = gaussians.component_weights(members[..., None] & present)
    assert weights.T.tolist() == [[1, 0, 0, 0], [0.25] * 4, [0, 1, 0, 0]]


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("prior_expert", ["always", "full_only", "never"])
def test_absent_values_are_never_read_and_nothing_present_is_the_prior(kind, prior_expert) -> None:
    members, experts = gaussians.components(kind, 3), some_experts(batch=8)
    results = []
    for filler in (torch.nan, 0.0, torch.inf):
        leaves = [torch.where(PATTERNS[..., None], value, filler).requires_grad_() for value in experts]
        q = gaussians.posterior(Gaussian(*leaves), PATTERNS, members, prior_expert)
        z = gaussians.sample(q.components, 3, generator=torch.Generator().manual_seed(0))
        density = gaussians.mixture_log_density(z, q)
        (density.sum() + gaussians.mixture_kl_bound(q).sum()).backward()
        gradients = [leaf.grad for leaf in leaves]
        assert not any(gradient[~PATTERNS].any() for gradient in gradients)
        results.append([density, q.components.mu, q.components.logvar, *gradients])
    for other in results[1:]:
        assert all(map(torch.equal, results[0], other))
    close(density[:, :, 0], gaussians.log_prior(z)[:, :, 0])
    assert not gaussians.mixture_kl_bound(q)[0].any()


@pytest.mark.parametrize("kind", KINDS)
def test_samples_do_not_depend_on_each_other(kind: gaussians.Kind) -> None:
    experts, order = some_experts(batch=8), torch.randperm(8, generator=torch.Generator().manual_seed(0))
    members, z = gaussians.components(kind, 3), draw(2, 8, 4)
    q = gaussians.posterior(experts, PATTERNS, members)
    shuffled = gaussians.posterior(Gaussian(*(value[:, order] for value in experts)), PATTERNS[:, order], members)
    assert torch.equal(q.components.mu[:, order], shuffled.components.mu)
    assert torch.equal(q.components.logvar[:, order], shuffled.components.logvar)
    assert torch.equal(q.weights[:, order], shuffled.weights)
    close(gaussians.mixture_log_density(z, q)[:, order], gaussians.mixture_log_density(z[:, order], shuffled))


def test_the_order_of_modalities_does_not_matter() -> None:
    experts, order = some_experts(batch=8), [2, 0, 1]
    z = draw(8, 4)
    for kind in KINDS:
        members = gaussians.components(kind, 3)
        q = gaussians.posterior(experts, PATTERNS, members)
        turned = gaussians.posterior(Gaussian(*(value[order] for value in experts)), PATTERNS[order], members)
        close(gaussians.mixture_log_density(z, q), gaussians.mixture_log_density(z, turned))


def test_extreme_precisions_are_exact_and_have_finite_gradients() -> None:
    """e^±60 spans 52 decimal orders, where a sum of precisions would be lost beside any epsilon."""
    logvar = torch.tensor([[60.0, -60.0, 60.0, -60.0]]).T[:, None].repeat(1, 2, 1)  # (4, 2, 1)
    leaves = [draw(4, 2, 1).requires_grad_(), logvar.requires_grad_()]
    for prior_expert in ("always", "full_only", "never"):
        q = gaussians.posterior(Gaussian(*leaves), torch.ones(4, 2).bool(), gaussians.subsets(4), prior_expert)
        exact = gaussians.posterior(
            Gaussian(*(leaf.detach().double() for leaf in leaves)),
            torch.ones(4, 2).bool(),
            gaussians.subsets(4),
            prior_expert,
        )
        for actual, expected in zip(q.components, exact.components, strict=True):
            torch.testing.assert_close(actual.double(), expected, rtol=1e-6, atol=0)
        z = gaussians.sample(q.components, eps=draw(15, 2, 1))
        results = [*q.components, gaussians.kl_divergence(q.components), gaussians.mixture_log_density(z, q)]
        for result in results:
            assert result.isfinite().all()
            gradients = torch.autograd.grad(result.sum(), leaves, retain_graph=True, allow_unused=True)
            assert all(gradient is None or (gradient.isfinite().all() and gradient.any()) for gradient in gradients)
    joint = gaussians.posterior(Gaussian(*leaves), torch.ones(4, 2).bool(), gaussians.components("poe", 4), "never")
    close(joint.components.logvar, torch.full((1, 2, 1), -60 - math.log(2)))
    close(joint.components.mu[0], (leaves[0][1] + leaves[0][3]) / 2)


def test_gradients() -> None:
    members, present = gaussians.subsets(2), torch.tensor([[True, False], [True, True]])
    z = draw(3, 2, 1).double()

    def densities(mu: Tensor, logvar: Tensor) -> tuple[Tensor, ...]:
        q = gaussians.posterior(Gaussian(mu, logvar), present, members)
        shares = gaussians.precision_shares(Gaussian(mu, logvar), present)
        return (
            gaussians.mixture_log_density(z, q),
            gaussians.mixture_kl_bound(q),
            shares,
            gaussians.sample(q.components, eps=z),
        )

    leaves = [draw(2, 2, 1, seed=seed).double().requires_grad_() for seed in (1, 2)]
    assert torch.autograd.gradcheck(densities, leaves)


def test_autocast_and_half_precision_experts_do_not_degrade_the_algebra() -> None:
    halves = Gaussian(*(value.bfloat16() for value in some_experts(batch=8)))
    members, z = gaussians.components("mopoe", 3), draw(2, 8, 4)

    def results(experts: Gaussian) -> list[Tensor]:
        q = gaussians.posterior(experts, PATTERNS, members)
        sample = gaussians.sample(q.components, eps=draw(7, 8, 4))
        expert = gaussians.sample(experts, eps=draw(3, 8, 4))
        shares = gaussians.precision_shares(experts, PATTERNS)
        kl = gaussians.mixture_kl_bound(q)
        return [*q.components, q.weights, sample, expert, shares, kl, gaussians.mixture_log_density(z, q)]

    expected = results(Gaussian(*(value.float() for value in halves)))
    with torch.autocast("cpu", torch.bfloat16):
        actual = results(halves)
    assert all(value.dtype == torch.float32 for value in actual)
    assert all(map(torch.equal, actual, expected))


def test_shares_of_precision() -> None:
    experts = Gaussian(draw(3, 8, 2), torch.tensor([4.0, 2.0, 1.0]).log()[:, None, None].expand(3, 8, 2))
    shares = gaussians.precision_shares(experts, PATTERNS)
    close(shares.sum(0), torch.ones(8, 2))
    close(shares[:, 7, 0], torch.tensor([1, 0.25, 0.5, 1]) / 2.75)
    close(shares[:, 5, 0], torch.tensor([1, 0.25, 0, 1]) / 2.25)
    assert shares[:, 0, 0].tolist() == [1, 0, 0, 0]
    close(gaussians.precision_shares(experts, PATTERNS, "never")[:, 5, 0], torch.tensor([0, 0.2, 0, 0.8]))


def uniform(components: int, batch: int) -> Tensor:
    return torch.full((components, batch), 1 / components)


@pytest.mark.parametrize(("components", "batch"), [(7, 35), (7, 64), (7, 3), (3, 1), (1, 5)])
def test_balanced_choice_is_balanced(components: int, batch: int) -> None:
    for seed in range(20):
        noise = torch.rand(batch, generator=torch.Generator().manual_seed(seed))
        counts = gaussians.balanced_components(uniform(components, batch), noise).bincount(minlength=components)
        assert counts.sum() == batch and counts.max() - counts.min() <= 1


def test_balanced_choice_is_not_positional() -> None:
    """Every row gets every component equally often, in batches smaller than their number, too."""
    for batch in (3, 14):
        noise = torch.rand(4000, batch, generator=torch.Generator().manual_seed(0))
        choices = torch.stack([gaussians.balanced_components(uniform(7, batch), row) for row in noise])
        frequency = torch.nn.functional.one_hot(choices, 7).float().mean(0)  # (B, 7)
        close(frequency, uniform(batch, 7) * batch / 7, 0.025)  # 4.5 standard errors
        same = (choices[:, 0] == choices[:, 1]).float().mean()
        close(same, torch.tensor(1 / 13 if batch == 14 else 0.0), 0.02)
    order = torch.randperm(14, generator=torch.Generator().manual_seed(1))
    row = noise[0]
    assert torch.equal(gaussians.balanced_components(uniform(7, 14), row[order]), choices[0][order])


def test_balanced_choice_follows_the_weights_of_each_sample() -> None:
    weights = gaussians.component_weights(gaussians.subsets(3)[..., None] & PATTERNS)  # (7, 8)
    noise = torch.rand(4000, 8, generator=torch.Generator().manual_seed(0))
    choices = torch.stack([gaussians.balanced_components(weights, row) for row in noise])
    frequency = torch.nn.functional.one_hot(choices, 7).float().mean(0).T
    close(frequency, weights, 0.04)
    assert not frequency[weights == 0].any()


def test_no_component_of_weight_zero_is_chosen_at_the_edges() -> None:
    weights = torch.tensor([[0.0, 1 / 3, 1 / 3, 0, 1 / 3, 0, 0]]).T
    for noise, expected in ((0.0, 1), (1 - 2**-24, 4)):
        assert gaussians.balanced_components(weights, torch.tensor([noise])).item() == expected
        assert gaussians.stratified_components(weights, 1, torch.tensor([noise])).item() == expected
    assert gaussians.stratified_components(weights, 5000, torch.tensor([1 - 2**-24])).unique().tolist() == [1, 2, 4]


@pytest.mark.parametrize("samples", [1, 2, 5, 100])
def test_stratified_samples_are_shared_out_in_proportion(samples: int) -> None:
    weights = gaussians.component_weights(gaussians.subsets(3)[..., None] & PATTERNS)
    grid = (torch.arange(2100) + 0.5) / 2100
    counts = torch.stack(
        [
            torch.nn.functional.one_hot(gaussians.stratified_components(weights, samples, u.expand(8)), 7).sum(0).T
            for u in grid
        ]
    )  # (2100, 7, 8)
    assert (counts - samples * weights).abs().max() < 1
    close(counts.float().mean(0), samples * weights, 2e-3)


def test_choose_takes_each_sample_s_own_component() -> None:
    components = some_experts(3, 5, 4)
    choice = torch.tensor([[0, 1, 2, 2, 1], [1, 1, 0, 2, 0]])
    chosen = gaussians.choose(components, choice)
    assert chosen.mu.shape == (2, 5, 4)
    for k in range(2):
        for b in range(5):
            assert torch.equal(chosen.logvar[k, b], components.logvar[choice[k, b], b])
    assert torch.equal(gaussians.choose(components, choice[0]).mu, chosen.mu[0])


def test_samples_are_reproducible_and_have_the_right_moments() -> None:
    gaussian = Gaussian(torch.tensor([[1.0, -2.0]]), torch.tensor([[0.0, 2.0]]))
    close(gaussians.sample(gaussian, eps=torch.tensor([[3.0, -1.0]])), torch.tensor([[4.0, -2 - math.e]]))
    z = gaussians.sample(gaussian, 40_000, generator=torch.Generator().manual_seed(0))
    assert torch.equal(z, gaussians.sample(gaussian, 40_000, generator=torch.Generator().manual_seed(0)))
    close(z.mean(0), gaussian.mu, 0.05)
    close(z.var(0).log(), gaussian.logvar, 0.03)


def test_densities_and_divergences_are_those_of_torch() -> None:
    experts, z = some_experts(), draw(2, 5, 4)
    normal = torch.distributions.Normal(experts.mu, (experts.logvar / 2).exp())
    close(gaussians.log_density(z[:, None], experts), normal.log_prob(z[:, None]).sum(-1))
    standard = torch.distributions.Normal(torch.tensor(0.0), torch.tensor(1.0))
    close(gaussians.log_prior(z), standard.log_prob(z).sum(-1))
    close(gaussians.kl_divergence(experts), torch.distributions.kl_divergence(normal, standard))
    weights = torch.tensor([0.2, 0.5, 0.3])
    mixture = torch.distributions.MixtureSameFamily(
        torch.distributions.Categorical(weights.expand(5, 3)),
        torch.distributions.Independent(
            torch.distributions.Normal(experts.mu.transpose(0, 1), (experts.logvar / 2).exp().transpose(0, 1)), 1
        ),
    )
    ours = gaussians.mixture_log_density(z, gaussians.Mixture(experts, weights[:, None].expand(3, 5)))
    close(ours, mixture.log_prob(z))


def test_small_divergences_keep_their_digits() -> None:
    logvar = torch.tensor([1e-3])
    kl = gaussians.kl_divergence(Gaussian(torch.zeros(1), logvar))
    torch.testing.assert_close(kl, torch.tensor([0.5 * (1e-6 / 2 + 1e-9 / 6)]), rtol=1e-3, atol=0)


def test_the_bound_on_a_mixture_s_divergence() -> None:
    q = gaussians.posterior(some_experts(batch=8), PATTERNS, gaussians.components("mopoe", 3), "never")
    choice = gaussians.stratified_components(q.weights, 4000, torch.full((8,), 0.5))
    z = gaussians.sample(gaussians.choose(q.components, choice), generator=torch.Generator().manual_seed(0))
    estimate = (gaussians.mixture_log_density(z, q) - gaussians.log_prior(z)).mean(0)
    bound = gaussians.mixture_kl_bound(q).sum(-1)
    several = (q.weights > 0).sum(0) > 1
    assert (bound[several] > estimate[several] + 0.1).all()
    close(bound[~several], estimate[~several], 0.2)


def test_free_bits_are_of_the_batch_mean_and_stop_the_gradient_below() -> None:
    kl = torch.tensor([[0.0, 0.3, 2.0], [0.1, 0.3, 0.0]], requires_grad=True)
    close(gaussians.free_bits(kl, 0.0), torch.tensor(0.05 + 0.3 + 1))
    close(gaussians.free_bits(torch.tensor([[-0.4], [0.1]]), 0.0), torch.tensor(-0.15))  # an estimate
    loss = gaussians.free_bits(kl, 0.1)
    close(loss, torch.tensor(0.1 + 0.3 + 1))
    loss.backward()
    assert kl.grad.tolist() == [[0, 0.5, 0.5], [0, 0.5, 0.5]]


def test_beta_schedule() -> None:
    betas = [gaussians.beta_schedule(step, 100, 0.2, 0.5) for step in (0, 5, 10, 20, 21, 100)]
    assert betas == pytest.approx([0, 0.125, 0.25, 0.5, 0.5, 0.5])
    assert gaussians.beta_schedule(0, 100, 0.0) == 1


def test_active_units() -> None:
    scale = torch.tensor([0.05, 0.15, 1.0, 0.0])
    assert gaussians.active_units(3 + scale * draw(500, 4)).tolist() == [False, True, True, False]


def test_a_product_divided_by_the_prior_is_bayes_rule() -> None:
    """Posteriors of z ~ N(0, I) given x_m ~ N(z, 1/a_m): N(a_m x_m / (1 + a_m), 1 / (1 + a_m))."""
    a, x = torch.rand(3, 4, 2) * 3, torch.randn(3, 4, 2)
    experts = Gaussian(a * x / (1 + a), -(1 + a).log())
    members = torch.tensor([[1, 0, 0], [0, 1, 1], [1, 1, 1], [0, 0, 0]]).bool()
    q = gaussians.product_of_experts(experts, members[..., None].expand(-1, -1, 4), "divided")
    precision = 1 + torch.einsum("cm,mbd->cbd", members.float(), a)
    torch.testing.assert_close(q.logvar, -precision.log())
    torch.testing.assert_close(q.mu, torch.einsum("cm,mbd->cbd", members.float(), a * x) / precision)
    nothing = Gaussian(torch.zeros(2, 1, 3), torch.zeros(2, 1, 3))
    both = gaussians.product_of_experts(nothing, torch.ones(1, 2, 1, dtype=torch.bool), "divided")
    assert (both.mu == 0).all() and (both.logvar.abs() < 1e-6).all(), "two uninformative experts say nothing"


def test_a_divided_product_is_no_wider_than_its_narrowest_member() -> None:
    logvar = torch.tensor([[[2.0, 100.0, -100.0]], [[1.0, 90.0, -90.0]]])
    mu = torch.ones(2, 1, 3)
    q = gaussians.product_of_experts(Gaussian(mu, logvar), torch.ones(1, 2, 1, dtype=torch.bool), "divided")
    assert q.mu.isfinite().all() and (q.logvar[0] <= logvar.amin(0) + 1e-5).all()
    torch.testing.assert_close(q.logvar[0, 0, :2], torch.tensor([1.0, 90.0]))


def test_laplace_experts_have_the_noise_density_and_divergence_of_laplace_distributions() -> None:
    first, second = (Laplace(torch.randn(4, 3), torch.randn(4, 3)) for _ in range(2))
    normal = Gaussian(*second)
    reference = [distributions.Laplace(q.mu, (q.logvar / 2).exp() / math.sqrt(2)) for q in (first, second)]
    z = torch.randn(5, 4, 3) * 2
    torch.testing.assert_close(gaussians.log_density(z, first), reference[0].log_prob(z).sum(-1))
    torch.testing.assert_close(gaussians.kl_divergence(first, second), distributions.kl_divergence(*reference))
    to_normal = distributions.kl_divergence(reference[0], distributions.Normal(second.mu, (second.logvar / 2).exp()))
    torch.testing.assert_close(gaussians.kl_divergence(first, normal), to_normal)
    eps = torch.randn(1000, 4, 3).double()
    expected = reference[0].icdf(distributions.Normal(0.0, 1.0).cdf(eps)).float()
    torch.testing.assert_close(gaussians.sample(first, 1000, eps).float(), expected, rtol=1e-3, atol=1e-3)
    standard = gaussians.sampled_kl_divergence(first, z[0], gaussians_prior())
    torch.testing.assert_close(standard, -reference[0].entropy().sum(-1) - gaussians.log_prior(z[0]))
    kept = gaussians.choose(Laplace(first.mu[None], first.logvar[None]), torch.zeros(4, dtype=torch.long))
    assert isinstance(kept, Laplace) and isinstance(kept.columns(slice(1)), Laplace)


def gaussians_prior() -> SimpleNamespace:
    return SimpleNamespace(log_prob=gaussians.log_prior)


def test_laplace_noise_is_finite_odd_and_has_the_quantiles_of_a_laplace_distribution() -> None:
    eps = torch.tensor([-30.0, -2.0, -0.5, 0.0, 0.5, 2.0, 30.0], dtype=torch.float64)
    noise = gaussians.laplace_noise(eps)
    assert noise.isfinite().all() and torch.equal(noise, -noise.flip(0))
    laplace = torch.distributions.Laplace(eps.new_tensor(0.0), eps.new_tensor(0.5**0.5))  # of variance 1
    torch.testing.assert_close(laplace.cdf(noise[1:-1]), torch.special.ndtr(eps[1:-1]))
