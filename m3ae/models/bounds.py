"""Bounds on the evidence of a multimodal VAE, as pure functions of q(z|x) and of the decoders.

Shapes: C mixture components, K samples, B batch, M modalities, D latent dimensions. A decoder is known here only as a
function of points z (…, B, D) that returns log p(x_m|z) (…, B) in nats, summed over the observed elements of modality
m: 0 for a sample that does not have the modality. A sample without any modality adds 0 to every bound.

The bounds share these arguments: `q`, the posterior; `log_likelihoods`, log p(x_m|z) of each modality; `beta`, the
weight of the KL; `eps`, standard normal noise; `generator`, the source of the noise if `eps` is None; and `prior`,
which is N(0, I) if None.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from typing import NamedTuple

import torch
from torch import Tensor
from torch.nn import functional as F

from m3ae.models.gaussians import (
    Mixture,
    Prior,
    Reference,
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
References = Sequence[tuple[Reference | None, Tensor | float]]


class Elbo(NamedTuple):
    """An evidence lower bound and its terms.

    Attributes:
        loss: What to minimise: −mean_b Σ_m log p(x_m|z) + β·(the mean KL, with free bits).
        log_likelihood: (B,) of each modality, weighted by what explains the modality.
        kl: (B, *) weighted KL to the references before β and free bits: (B, D), or the columns of the references.
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
    explains: Tensor | None = None,
    references: References | None = None,
    choice: Tensor | None = None,
    *,
    beta: float = 1.0,
    free_nats: float = 0.0,
    eps: Tensor | None = None,
    generator: torch.Generator | None = None,
    prior: Prior | None = None,
) -> Elbo:
    """Return Σ_c π_c [Σ_m a_cm E_{q_c} log p(x_m|z) − β·Σ_r b_cr KL(q_c‖r)].

    With a = b = 1 and the prior as the only reference, this is the ELBO of a product of experts for one component, and
    the bound of Sutter et al. (2021) for more. `m3ae.models.objectives` has the table of further ones.

    Args:
        q: The posterior.
        log_likelihoods: log p(x_m|z) of each modality.
        explains: a: (C, M) bool on the CPU, where a component is decoded for the modalities that it explains only; or
            (C, M, B) numbers, whose dimensions may be 1. All ones if None.
        references: Each r with its b_r, a number or (C, B, *), where * is the number of its columns or 1. The columns
            of several references are added up, beginning with the first. The prior with weight 1 if None.
        choice: (B,) from `balanced_components`, or (K, B): decode these components only, each of which explains all,
            for an unbiased estimate. The KL to the standard prior is exact all the same.
        beta: Weight of the KL.
        free_nats: λ of `free_bits`, for each dimension.
        eps: Noise (C, B, D), or (B, D) or (K, B, D) for a choice.
        generator: Source of the noise.
        prior: The prior of z.

    Raises:
        ValueError: `explains` has neither one column nor one for each likelihood.
    """
    decoded = q if choice is None else _chosen(q, choice)
    eps = None if eps is None else eps.view(decoded.components.mu.shape)
    z, weights = sample(decoded.components, eps=eps, generator=generator), decoded.weights
    if explains is not None and explains.shape[1] not in (1, len(log_likelihoods)):
        raise ValueError(
            f"{len(log_likelihoods)} likelihoods ({', '.join(log_likelihoods)}) for {explains.shape[1]} experts; a "
            "component explains modalities, so each expert needs a likelihood, in the same order"
        )
    terms = {}
    for number, (name, likelihood) in enumerate(log_likelihoods.items()):
        share = None if explains is None else explains[:, number % explains.shape[1]]
        rows = slice(None) if share is None or share.dtype != torch.bool else share
        factors = weights[rows] if share is None or share.dtype == torch.bool else weights * share
        terms[name] = (factors * upcast(likelihood(z[rows]))).sum(0)
    columns = [
        mixture_kl_bound(q if reference is None else decoded, z, reference, share)  # exact for N(0, I)
        for reference, share in references or [(prior, 1.0)]
    ]
    width = max(kl.shape[-1] for kl in columns)
    total = torch.stack([F.pad(kl, (0, width - kl.shape[-1])) for kl in columns]).sum(0)
    loss = beta * free_bits(total, free_nats) - sum(terms.values(), total.new_zeros(())).mean()
    return Elbo(loss, terms, total)


def _chosen(q: Mixture, choice: Tensor) -> Mixture:
    """Return the mixture of the chosen components (B,) or (K, B), with equal weights."""
    components = choose(q.components, choice.view(-1, choice.shape[-1]))
    return Mixture(components, components.mu.new_full(components.mu.shape[:2], 1 / len(components.mu)))


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
    doubly: bool = False,
    beta: float = 1.0,
    eps: Tensor | None = None,
    generator: torch.Generator | None = None,
    prior: Prior | None = None,
) -> Tensor:
    """Return Σ_k π_k log (1/K) Σ_i w(z_ki), z_ki ~ q_k, with the mixture's density in w; the loss is −mean_b.

    The importance-weighted bound (Burda et al. 2016) with K = `num_samples` samples of every component (MMVAE, Shi et
    al. 2019). With K = 1 it is the ELBO with a Monte Carlo estimate of the KL of the mixture.

    `doubly` leaves the value and the decoders' gradient, and makes that of the experts doubly reparameterised (DReG,
    Tucker et al. 2019): Σ_i [(1 − β)·w̃_i + β·w̃_i²]·∂log w_i/∂z_i·∂z_i/∂φ, where w̃ is softmax_i(log w_i). It has less
    variance, above all for large K. For one component, or K = 1, its mean is the same; for a mixture and K > 1 it is
    biased, as published (Shi et al. 2019).

    Returns:
        The bound (B,), from noise (K, C, B, D).
    """
    z = sample(q.components, num_samples, eps, generator)
    density = Mixture(type(q.components)(*(value.detach() for value in q.components)), q.weights) if doubly else q
    log_w = log_weights(density, z, log_likelihoods, beta, prior)
    if doubly and z.requires_grad:  # the bound's gradient brings w̃ once, this the second time
        share = 1 - beta + beta * log_w.detach().softmax(0)[..., None]
        z.register_hook(lambda gradient: share * gradient)
    return (q.weights * (log_w.logsumexp(0) - math.log(len(log_w)))).sum(0)


dreg = partial(iwae, doubly=True)


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

    K = `num_samples` samples are decoded `chunk_size` at once. The mean of w is unbiased, and each sample of the batch
    has samples of z to itself, whatever else is in the batch.

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
