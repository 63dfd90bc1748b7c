"""Objectives and estimators of a multimodal VAE, as pure functions of q(z|x) and of the decoders.

Shapes: C mixture components, K samples, B batch, D latent dimensions. A decoder is known here only as a function of
points z (…, B, D) that returns log p(x_m|z) (…, B) in nats, summed over the observed elements of modality m: 0 for a
sample that does not have it. A sample without any modality adds 0 to every objective.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from typing import NamedTuple

import torch
from torch import Tensor

from m3ae.models.gaussians import (
    Gaussian,
    Mixture,
    Prior,
    choose,
    free_bits,
    log_prior,
    mixture_kl_bound,
    mixture_log_density,
    sample,
    stratified_components,
    upcast,
)

LogLikelihoods = Mapping[str, Callable[[Tensor], Tensor]]


class Elbo(NamedTuple):
    """An evidence lower bound and its terms.

    Attributes:
        loss: What to minimise: −mean_b Σ_m log p(x_m|z) + β·(the mean KL, with free bits).
        log_likelihood: (B,) of each modality.
        kl: (B, D), before β and free bits; for a prior that is not standard, in its columns.
    """

    loss: Tensor
    log_likelihood: dict[str, Tensor]
    kl: Tensor

    @property
    def bound(self) -> Tensor:
        """The bound itself (B,): β = 1, no free bits."""
        return sum(self.log_likelihood.values(), -self.kl.sum(-1))


def elbo(
    q: Mixture,
    log_likelihoods: LogLikelihoods,
    choice: Tensor | None = None,
    *,
    beta: float = 1.0,
    free_nats: float = 0.0,
    eps: Tensor | None = None,
    generator: torch.Generator | None = None,
    prior: Prior | None = None,
) -> Elbo:
    """Return Σ_k π_k [Σ_m E_{q_k} log p(x_m|z) − β·KL(q_k‖p)]: every component explains every modality.

    With one component it is the ELBO of a product of experts, with more the bound of Sutter et al. (2021).

    Args:
        q: The posterior.
        log_likelihoods: log p(x_m|z) of each modality.
        choice: (B,) from `balanced_components`, or (K, B): decode these components only, for an unbiased estimate. The
            KL to the standard prior is exact all the same. All components, each with its weight, if None.
        beta: Weight of the KL.
        free_nats: λ of `free_bits`, for each dimension.
        eps: Standard normal noise, (C, B, D), or (B, D) or (K, B, D) for a choice.
        generator: Draws the noise that is not given.
        prior: p(z); N(0, I) if None.
    """
    decoded = q
    if choice is not None:
        rows = (len(choice), -1) if choice.dim() == 2 else (1, -1)
        chosen = choose(q.components, choice.view(rows))
        decoded = Mixture(chosen, chosen.mu.new_full(chosen.mu.shape[:2], 1 / len(chosen.mu)))
        eps = eps if eps is None else eps.view(chosen.mu.shape)
    z, weights = sample(decoded.components, eps=eps, generator=generator), decoded.weights
    terms = {name: (weights * upcast(likelihood(z))).sum(0) for name, likelihood in log_likelihoods.items()}
    kl = mixture_kl_bound(q) if prior is None else mixture_kl_bound(decoded, z, prior)
    return _elbo(terms, kl, beta, free_nats)


def sum_of_subset_elbos(
    q: Mixture,
    members: Tensor,
    log_likelihoods: LogLikelihoods,
    *,
    beta: float = 1.0,
    free_nats: float = 0.0,
    eps: Tensor | None = None,
    generator: torch.Generator | None = None,
    prior: Prior | None = None,
) -> Elbo:
    """Return (1/n) Σ_S [Σ_{m∈S} E_{q_S} log p(x_m|z) − β·KL(q_S‖p)]: each subset explains itself.

    The MVAE's objective (Wu & Goodman 2018) over n, the number of subsets that differ given what a sample has: each of
    these counts once.

    Args:
        q: `posterior` with the same members, from `subsets` or `sample_subsets` (joint, single, and some others).
        members: (C, M) bool.
        log_likelihoods: log p(x_m|z) of the M modalities, in the order of their experts.
        beta: Weight of the KL.
        free_nats: λ of `free_bits`, for each dimension.
        eps: Standard normal noise (C, B, D).
        generator: Draws the noise that is not given.
        prior: p(z); N(0, I) if None.

    Raises:
        ValueError: If there are not as many likelihoods as experts.
    """
    if len(log_likelihoods) != members.shape[1]:
        raise ValueError(
            f"{len(log_likelihoods)} likelihoods ({', '.join(log_likelihoods)}) for {members.shape[1]} experts; a "
            "subset explains its own modalities, so each expert needs one, in the same order"
        )
    z = sample(q.components, eps=eps, generator=generator)
    terms = {
        name: (q.weights[own] * upcast(likelihood(z[own]))).sum(0)
        for own, (name, likelihood) in zip(members.T, log_likelihoods.items(), strict=True)
    }
    return _elbo(terms, mixture_kl_bound(q, z, prior), beta, free_nats)


def _elbo(log_likelihood: dict[str, Tensor], kl: Tensor, beta: float, free_nats: float) -> Elbo:
    loss = beta * free_bits(kl, free_nats) - sum(log_likelihood.values(), kl.new_zeros(())).mean()
    return Elbo(loss, log_likelihood, kl)


def log_weights(
    q: Mixture, z: Tensor, log_likelihoods: LogLikelihoods, beta: float = 1.0, prior: Prior | None = None
) -> Tensor:
    """Return log w(z) = Σ_m log p(x_m|z) + β·[log p(z) − log Σ_k π_k q_k(z)], (…, B), of points (…, B, D)."""
    log_ratio = beta * (log_prior(z, prior) - mixture_log_density(z, q))
    return sum((upcast(likelihood(z)) for likelihood in log_likelihoods.values()), log_ratio)


def iwae(
    q: Mixture,
    log_likelihoods: LogLikelihoods,
    num_samples: int,
    *,
    beta: float = 1.0,
    eps: Tensor | None = None,
    generator: torch.Generator | None = None,
    prior: Prior | None = None,
) -> Tensor:
    """Return Σ_k π_k log (1/K) Σ_i w(z_ki), z_ki ~ q_k, with the mixture's density in w.

    The importance-weighted bound (Burda et al. 2016) with K samples of every component (MMVAE, Shi et al. 2019). With
    K = 1 it is the ELBO with a Monte Carlo estimate of the mixture's own KL.

    Args:
        q: The posterior.
        log_likelihoods: log p(x_m|z) of each modality.
        num_samples: K.
        beta: Weight of log p(z) − log q(z).
        eps: Standard normal noise (K, C, B, D).
        generator: Draws the noise if it is not given.
        prior: p(z); N(0, I) if None.

    Returns:
        The bound (B,); the loss is −mean_b.
    """
    z = sample(q.components, num_samples, eps, generator)
    return _mean_of_bounds(q, log_weights(q, z, log_likelihoods, beta, prior))


def dreg(
    q: Mixture,
    log_likelihoods: LogLikelihoods,
    num_samples: int,
    *,
    beta: float = 1.0,
    eps: Tensor | None = None,
    generator: torch.Generator | None = None,
    prior: Prior | None = None,
) -> Tensor:
    """Return the value of `iwae` with the doubly reparameterised gradient (DReG, Tucker et al. 2019).

    The decoders' gradient is the same. The experts' is Σ_i [(1 − β)·w̃_i + β·w̃_i²]·∂log w_i/∂z_i·∂z_i/∂φ, where w̃ is
    softmax_i(log w_i): of less variance, above all for large K. For one component, or K = 1, its mean is that of
    `iwae`; for a mixture and K > 1 it is biased, as published (Shi et al. 2019). Works without gradients, too.

    Args:
        q: The posterior.
        log_likelihoods: log p(x_m|z) of each modality.
        num_samples: K.
        beta: Weight of log p(z) − log q(z).
        eps: Standard normal noise (K, C, B, D).
        generator: Draws the noise if it is not given.
        prior: p(z); N(0, I) if None.

    Returns:
        The bound (B,); the loss is −mean_b.
    """
    z = sample(q.components, num_samples, eps, generator)
    frozen = Mixture(Gaussian(q.components.mu.detach(), q.components.logvar.detach()), q.weights)
    log_w = log_weights(frozen, z, log_likelihoods, beta, prior)
    if z.requires_grad:  # the bound's gradient brings w̃ once, this the second time
        share = 1 - beta + beta * log_w.detach().softmax(0)[..., None]
        z.register_hook(lambda gradient: share * gradient)
    return _mean_of_bounds(q, log_w)


def _mean_of_bounds(q: Mixture, log_w: Tensor) -> Tensor:
    return (q.weights * (log_w.logsumexp(0) - math.log(len(log_w)))).sum(0)


@torch.no_grad()
def importance_log_likelihood(
    q: Mixture,
    log_likelihoods: LogLikelihoods,
    num_samples: int,
    *,
    chunk_size: int = 100,
    generator: torch.Generator | None = None,
    prior: Prior | None = None,
) -> Tensor:
    """Return log (1/K) Σ_i w(z_i), z_i ~ q stratified over the mixture: on average a bound that rises to log p(x).

    The mean of w is unbiased, and each sample has its own, whatever else is in the batch.

    Args:
        q: The posterior.
        log_likelihoods: log p(x_m|z) of each modality.
        num_samples: K.
        chunk_size: How many samples to decode at once.
        generator: Draws the noise.
        prior: p(z); N(0, I) if None.

    Returns:
        (B,) in nats.
    """
    weights = q.weights
    noise = torch.rand(weights.shape[1], generator=generator, device=weights.device)
    total = weights.new_full(noise.shape, -torch.inf)
    for choice in stratified_components(weights, num_samples, noise).split(chunk_size):
        z = sample(choose(q.components, choice), generator=generator)
        total = total.logaddexp(log_weights(q, z, log_likelihoods, prior=prior).logsumexp(0))
    return total - math.log(num_samples)
