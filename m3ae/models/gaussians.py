"""Gaussian experts, their products and mixtures: the algebra of the latent head as pure functions.

Shapes: M modalities (one expert each), C mixture components, K samples, B batch, D latent dimensions. Everything is
computed in float32 or better, whatever autocast or the encoders say.
"""

from __future__ import annotations

import math
from itertools import combinations
from typing import Literal, NamedTuple, Protocol

import torch
from torch import Tensor, nn

Kind = Literal["poe", "moe", "mopoe", "joint", "holder"]
PriorExpert = Literal["always", "full_only", "never", "divided"]

MAX_ENUMERATED = 5  # modalities whose 2^M − 1 subsets are all components of a MoPoE


class Gaussian(NamedTuple):
    """Diagonal Gaussians: mean and log-variance, (…, D) each."""

    mu: Tensor
    logvar: Tensor

    def columns(self, dimensions: slice) -> Gaussian:
        """Return the Gaussians of some dimensions."""
        return type(self)(self.mu[..., dimensions], self.logvar[..., dimensions])


class Laplace(Gaussian):
    """Diagonal Laplace distributions of mean μ and variance σ² = 2b², which take the place of single Gaussians.

    Published with mixtures of experts (Shi et al. 2019). A product of two is no Laplace distribution. The prior stays
    N(0, I), so that a sample without any modality costs `EXCESS` nats for each dimension.
    """


def laplace_noise(eps: Tensor) -> Tensor:
    """Turn standard normal noise into finite noise of variance 1 that follows a Laplace distribution."""
    exponential: Tensor = -math.log(2) - torch.special.log_ndtr(-eps.abs())
    return eps.sign() * exponential / math.sqrt(2)


EXCESS = 0.5 * math.log(math.pi * math.e) - 1  # entropy of a Gaussian minus that of a Laplace distribution, in nats


class Mixture(NamedTuple):
    """A mixture of diagonal Gaussians for each sample.

    Attributes:
        components: (C, B, D).
        weights: (C, B), summing to 1 over the components; 0 for a component that a sample does not have.
    """

    components: Gaussian
    weights: Tensor


class Density(Protocol):
    """A density of points."""

    def log_prob(self, z: Tensor) -> Tensor:
        """Return log p(z) (…) of points (…, D)."""


class Reference(Protocol):
    """What a posterior is held to."""

    def kl_divergence(self, gaussian: Gaussian, z: Tensor) -> Tensor:
        """Return KL(q‖r) of Gaussians q (…, D) in nats, in columns (…, *), perhaps estimated at points z of q."""


class Prior(Density, Reference, Protocol):
    """A prior other than N(0, I)."""


def upcast(tensor: Tensor) -> Tensor:
    """Return the tensor in float32, or as it is if it is finer."""
    return tensor.to(torch.promote_types(tensor.dtype, torch.float32))


def dtype_of(module: nn.Module) -> torch.dtype:
    """Return the dtype that the layers of a module take."""
    dtypes = (parameter.dtype for parameter in module.parameters() if parameter.is_floating_point())
    return next(dtypes, torch.get_default_dtype())


def subsets(num_modalities: int) -> Tensor:
    """Return the 2^M − 1 non-empty subsets as a bool matrix (2^M − 1, M): single ones first, the full set last."""
    sizes = range(1, num_modalities + 1)
    chosen = [members for size in sizes for members in combinations(range(num_modalities), size)]
    return torch.tensor([[modality in members for modality in range(num_modalities)] for members in chosen])


def sample_subsets(num_modalities: int, count: int, generator: torch.Generator | None = None) -> Tensor:
    """Return the single modalities, `count` different other subsets, or all if they are fewer, and the full set.

    For the sum of subset ELBOs (Wu & Goodman 2018), and for a MoPoE of more than five modalities, anew at each step.

    Args:
        num_modalities: M, up to about 16, since all subsets are listed first.
        count: Number of subsets of 2 to M − 1 modalities.
        generator: Source of the choice, on the CPU.
    """
    every = subsets(num_modalities)
    others = torch.randperm(max(0, len(every) - num_modalities - 1), generator=generator)[:count] + num_modalities
    return every[torch.cat([torch.arange(num_modalities), others, torch.tensor([len(every) - 1])]).unique()]


def components(kind: Kind, num_modalities: int) -> Tensor:
    """Return the members of each mixture component, bool (C, M).

    "poe": one component, the product of all experts (Wu & Goodman 2018). "moe": each expert alone (Shi et al. 2019).
    "mopoe": the products of all 2^M − 1 subsets (Sutter et al. 2021). "joint": (1, M + 1), whose last column is an
    expert of all modalities at once (Suzuki et al. 2017). "holder": each expert alone, and each pair.

    Raises:
        ValueError: For another kind, or a MoPoE of more than five modalities.
    """
    if kind == "mopoe" and num_modalities > MAX_ENUMERATED:
        raise ValueError(
            f"a mopoe of {num_modalities} modalities has {2**num_modalities - 1} components, and those of at most "
            f"{MAX_ENUMERATED} modalities are enumerated; draw some with sample_subsets at each step"
        )
    every = subsets(num_modalities)
    joint = torch.arange(num_modalities + 1)[None] == num_modalities
    members = {"poe": every[-1:], "moe": every[:num_modalities], "mopoe": every, "joint": joint}
    members["holder"] = every[: num_modalities * (num_modalities + 1) // 2]
    if kind not in members:
        raise ValueError(f"the kind of posterior is {kind!r}; expected one of {', '.join(members)}")
    return members[kind]


def posterior(experts: Gaussian, present: Tensor, members: Tensor, prior_expert: PriorExpert = "always") -> Mixture:
    """Return q(z | the present modalities): a uniform mixture of products of experts.

    Each component is the product of those of its members that are present. Where this makes components equal, a sample
    keeps the first; empty ones it does not keep. Where nothing is present, q is the prior.

    Args:
        experts: (M, B, D); those of absent modalities may hold anything, NaN too.
        present: (M, B) bool.
        members: (C, M) bool, from `components`, `subsets` or `sample_subsets`.
        prior_expert: Which products contain the prior, as in `product_of_experts`.
    """
    available = members.to(present.device)[..., None] & present  # (C, M, B)
    products = type(experts)(*product_of_experts(experts, available, prior_expert))
    return Mixture(products, component_weights(available))


def product_of_experts(experts: Gaussian, members: Tensor, prior_expert: PriorExpert = "always") -> Gaussian:
    """Multiply Gaussian densities (Hinton 2002): precisions 1/σ² add up, and weight the means.

    log σ²_S = −logsumexp_m(−log σ²_m + log a_m) and μ_S = Σ_m softmax_m(−log σ²_m + log a_m)·μ_m, where the prior
    N(0, I) is a further expert. A product of nobody is the prior. "divided" is ∏_m q_m / p^{k−1} for k members, which
    is Bayes' rule if each q_m is a posterior, but divides less where the product would be wider than a member.

    Args:
        experts: (M, B, D); the values of experts that are in no product are never read.
        members: (C, M, B) bool, a_m of each product.
        prior_expert: Which products contain the prior: "always" all of them (Wu & Goodman 2018), "full_only" those of
            all M experts (Sutter et al. 2021), "never" or "divided" none.

    Returns:
        The products (C, B, D).

    Raises:
        ValueError: For another `prior_expert`.
    """
    log_precision = _log_precisions(experts.logvar, members, prior_expert)
    mu = torch.where(members.any(0)[..., None], upcast(experts.mu), 0)  # 0 · NaN is NaN
    mean, total = (log_precision.softmax(1)[:, 1:] * mu).sum(1), log_precision.logsumexp(1)
    if prior_expert == "divided":
        count = members.sum(1).clamp(min=1)[..., None]
        share = torch.minimum((count - 1) * (-total).exp(), 1 - (log_precision.amax(1) - total).exp())  # of precision
        mean, total = mean / (1 - share), total + (-share).log1p()
    return Gaussian(mean, -total)


def precision_shares(experts: Gaussian, present: Tensor, prior_expert: PriorExpert = "always") -> Tensor:
    """Return the share of each present expert (M, B, D) in the precision of their product, softmax_m(−log σ²_m).

    Returns:
        (1 + M, B, D), the prior's share first; they sum to 1.
    """
    return _log_precisions(experts.logvar, present[None], prior_expert)[0].softmax(0)


def _log_precisions(logvar: Tensor, members: Tensor, prior_expert: PriorExpert) -> Tensor:
    """Return −log σ²_m + log a_m, (C, 1 + M, B, D), the prior first."""
    nobody = ~members.any(1)  # (C, B)
    uses_prior = {"always": torch.ones_like(nobody), "full_only": members.all(1) | nobody}
    uses_prior |= {"never": nobody, "divided": nobody}
    if prior_expert not in uses_prior:
        raise ValueError(f"prior_expert is {prior_expert!r}; expected one of {', '.join(uses_prior)}")
    log_precision = torch.where(members[..., None], -upcast(logvar), -torch.inf)  # (C, M, B, D)
    prior = torch.where(uses_prior[prior_expert][:, None, :, None], torch.zeros_like(log_precision[:, :1]), -torch.inf)
    return torch.cat([prior, log_precision], 1)


def component_weights(available: Tensor) -> Tensor:
    """Weigh a sample's components: equally those that differ from all before and are not empty, the rest not at all.

    With k of M modalities present, these are the k experts of a MoE, or the 2^k − 1 products of a MoPoE. With none
    present, all products are the prior, and the first one stands for them.

    Args:
        available: (C, M, B) bool: members of each component that the sample has.

    Returns:
        (C, B), summing to 1 over the components.
    """
    number = torch.arange(available.shape[0], device=available.device)
    bits = 2 ** torch.arange(available.shape[1], device=available.device)
    code = (available * bits[:, None]).sum(1)  # (C, B), equal for equal sets
    repeats = ((code[:, None] == code) & (number[:, None] > number)[..., None]).any(1)
    active = (code > 0) & ~repeats
    active[0] |= ~active.any(0)
    return active / active.sum(0)


def balanced_components(weights: Tensor, noise: Tensor) -> Tensor:
    """Choose one component for each sample of a training batch, with probability π, in balance over the batch.

    The inverse distribution function at the points (r_b + u) / B, where r is a random permutation of 0 … B − 1: with
    equal weights each component serves ⌊B/C⌋ or ⌈B/C⌉ samples, whichever these are.

    Args:
        weights: (C, B).
        noise: (B,) uniform in [0, 1): its ranks are r, its sum modulo 1 is u.

    Returns:
        (B,) indices of components.
    """
    points = (noise.argsort().argsort() + noise.sum() % 1) / noise.shape[0]
    return _inverse_distribution(weights, points[None])[0]


def stratified_components(weights: Tensor, num_samples: int, noise: Tensor) -> Tensor:
    """Share K samples among the components: component k of a sample gets ⌊K·π_k⌋ or ⌈K·π_k⌉, K·π_k on average.

    The inverse distribution function at the points (0 … K − 1 + noise) / K. The average over such samples is unbiased
    for the mixture.

    Args:
        weights: (C, B).
        num_samples: K.
        noise: (B,) uniform in [0, 1).

    Returns:
        (K, B) indices of components, ascending.
    """
    strata = torch.arange(num_samples, device=noise.device)[:, None]
    return _inverse_distribution(weights, (strata + noise) / num_samples)


def _inverse_distribution(weights: Tensor, points: Tensor) -> Tensor:
    """Return the components (K, B) at points (K, B) in [0, 1) of the distributions `weights` (C, B)."""
    upper = weights.cumsum(0)
    points = points.clamp(max=1 - 2**-24)  # below 1, whatever rounding says: beyond lie components of weight 0
    return torch.searchsorted((upper / upper[-1]).T.contiguous(), points.T.contiguous(), right=True).T


def choose(gaussians: Gaussian, choice: Tensor) -> Gaussian:
    """Return each sample's chosen components, (…, B, D), of (C, B, D) by indices (…, B)."""
    column = torch.arange(choice.shape[-1], device=choice.device)
    return type(gaussians)(gaussians.mu[choice, column], gaussians.logvar[choice, column])


def sample(
    gaussian: Gaussian,
    num_samples: int | None = None,
    eps: Tensor | None = None,
    generator: torch.Generator | None = None,
) -> Tensor:
    """Return μ + σ·ε, differentiable in μ and log σ² (Kingma & Welling 2014).

    Args:
        gaussian: (…, D).
        num_samples: K, for samples (K, …, D); one sample (…, D) if None.
        eps: Standard normal noise of the samples' shape.
        generator: Source of the noise if `eps` is None.
    """
    mu, logvar = upcast(gaussian.mu), upcast(gaussian.logvar)
    if eps is None:
        shape = mu.shape if num_samples is None else (num_samples, *mu.shape)
        eps = torch.randn(shape, generator=generator, device=mu.device, dtype=mu.dtype)
    return mu + (logvar / 2).exp() * (laplace_noise(eps) if isinstance(gaussian, Laplace) else eps)


def log_density(z: Tensor, gaussian: Gaussian) -> Tensor:
    """Return log N(z; μ, σ²) = −½ Σ_d [(z − μ)²/σ² + log σ² + log 2π] of points (…, D).

    Of a Laplace distribution −Σ_d [√2 |z − μ|/σ + ½ log 2σ²].
    """
    z, mu, logvar = map(upcast, (z, *gaussian))
    if isinstance(gaussian, Laplace):
        return -(math.sqrt(2) * (z - mu).abs() * (-logvar / 2).exp() + 0.5 * (logvar + math.log(2))).sum(-1)
    return -0.5 * (((z - mu) * (-logvar / 2).exp()).square() + logvar + math.log(2 * math.pi)).sum(-1)


def log_prior(z: Tensor, prior: Density | None = None) -> Tensor:
    """Return log p(z) of points (…, D): log N(z; 0, I) if `prior` is None."""
    if prior is not None:
        return prior.log_prob(z)
    return -0.5 * (upcast(z).square() + math.log(2 * math.pi)).sum(-1)


def mixture_log_density(z: Tensor, mixture: Mixture) -> Tensor:
    """Return log Σ_k π_k N(z; μ_k, σ²_k) (…, B) of points (…, B, D)."""
    return (mixture.weights.log() + log_density(z[..., None, :, :], mixture.components)).logsumexp(-2)


def kl_divergence(gaussian: Gaussian, other: Gaussian | None = None) -> Tensor:
    """Return KL(N(μ, σ²) ‖ N(ν, τ²)) = ½ ((μ − ν)²/τ² + σ²/τ² − 1 − log σ²/τ²) in nats for each dimension, (…, D).

    Args:
        gaussian: N(μ, σ²), or a Laplace distribution of these moments.
        other: N(ν, τ²), of a shape that it can be broadcast with; N(0, 1) if None. Of the kind of `gaussian`.
    """
    mu, logvar = upcast(gaussian.mu), upcast(gaussian.logvar)
    if other is not None:
        mu, logvar = (mu - other.mu) * (-other.logvar / 2).exp(), logvar - other.logvar
    if isinstance(other, Laplace):
        distance, scale = math.sqrt(2) * mu.abs(), (logvar / 2).exp()
        return distance + scale * (-distance / scale).exp() - 1 - logvar / 2
    return 0.5 * (mu.square() + logvar.expm1() - logvar) + (EXCESS if isinstance(gaussian, Laplace) else 0)


def sampled_kl_divergence(gaussian: Gaussian, z: Tensor, density: Density) -> Tensor:
    """Return KL(N(μ, σ²) ‖ p) (…) in nats, its cross-entropy estimated at points z (…, D) drawn from the Gaussian.

    −½ Σ_d (log 2πe + log σ²_d) − log p(z).
    """
    excess = EXCESS if isinstance(gaussian, Laplace) else 0
    entropy = (0.5 * (upcast(gaussian.logvar) + math.log(2 * math.pi) + 1) - excess).sum(-1)
    return -entropy - density.log_prob(z)


def mixture_kl_bound(
    mixture: Mixture, z: Tensor | None = None, reference: Reference | None = None, share: Tensor | float = 1.0
) -> Tensor:
    """Return Σ_k π_k b_k KL(q_k ‖ r) for each dimension, (B, D): for b = 1 no less than the KL of the mixture.

    Args:
        mixture: The posterior.
        z: Points (C, B, D) drawn from its components; needed for a reference that is not N(0, I).
        reference: r; N(0, I) if None, otherwise the columns are those of its `kl_divergence`.
        share: b, which (C, B, D) can be multiplied with.
    """
    if reference is None:
        kl = kl_divergence(mixture.components)
    else:
        assert z is not None
        kl = reference.kl_divergence(mixture.components, z)
    return (mixture.weights[..., None] * (share * kl)).sum(0)


def free_bits(kl: Tensor, nats: float) -> Tensor:
    """Return Σ_d max(λ, mean_b KL_bd): below λ nats on average, a dimension is left alone (Kingma et al. 2016).

    Args:
        kl: (B, D).
        nats: λ of each dimension; 0 gives the mean KL, even where an estimate of it is negative.
    """
    means = kl.mean(0)
    return (means.clamp(min=nats) if nats else means).sum()


def beta_schedule(step: int, total_steps: int, warmup_share: float = 0.25, beta: float = 1.0) -> float:
    """Return β at a step (from 0): linear from 0 to `beta` over the first share of the steps, then `beta`."""
    warmup_steps = warmup_share * total_steps
    return beta * min(1.0, step / warmup_steps) if warmup_steps else beta


def active_units(means: Tensor, threshold: float = 0.01) -> Tensor:
    """Return which dimensions (D,) of posterior means (N, D) have a variance above 0.01 (Burda et al. 2016)."""
    return upcast(means).var(0) > threshold
