"""MEME: of two modalities, the expert of one is the prior of the other (Joy et al. 2022).

Shapes: K samples, B batch, D latent dimensions, N pseudo-inputs, W width of an expert's features.
"""

from __future__ import annotations

import math
from typing import cast

import torch
from torch import Tensor

from m3ae.models import gaussians
from m3ae.models.gaussians import Gaussian, Mixture
from m3ae.models.latent_networks import Expert
from m3ae.models.latent_step import LatentStep, M3AEForGenerationOutput


def meme_bound(
    q: Gaussian, z: Tensor, of_source: Tensor, of_target: Tensor, log_prior: Tensor, beta: float | Tensor = 1.0
) -> Tensor:
    """Return the bound on log p(s, t) − log p(t) (B,) of a source s and a target t; on log p(s) where t is missing.

    E_{q(z|s)} [q(t|z)/q(t|s) · log (p(s|z) p(z|t) / (q(z|s) q(t|z)))] + log q(t|s), where q(t|s) is the mean of q(t|z)
    over the same K samples, and the ratio has no gradient. It is exact where q(z|s) and p(z|t) are the posteriors.

    Args:
        q: q(z|s), (B, D).
        z: Samples of q (K, B, D).
        of_source: log p(s|z) (K, B).
        of_target: log q(t|z) (K, B), which the decoder of t gives; 0 where t is missing.
        log_prior: log p(z|t) (K, B), which the expert of t gives; log p(z) where t is missing.
        beta: Factor on log p(z|t) − log q(z|s).
    """
    ratio = len(z) * of_target.softmax(0).detach()
    inside = of_source - of_target + beta * (log_prior - gaussians.log_density(z, q))
    return (ratio * inside).mean(0) + of_target.logsumexp(0) - math.log(len(z))


def meme(step: LatentStep) -> M3AEForGenerationOutput:
    """Average the bounds of both directions; a sample with one modality has one.

    Where the target is missing, p(z) is the mixture of what its expert makes of learned features, in place of those of
    pseudo-inputs, which a text does not have.
    """
    experts, head = step.experts, step.head
    names, latent = list(head.experts), head.config
    single = [Gaussian(*values) for values in zip(*experts.shared, strict=True)]
    likelihoods, beta = step.likelihoods(), latent.beta if step.beta is None else step.beta
    bounds, divergences = [], []
    for source, target in ((0, 1), (1, 0)):
        q, eps = single[source], None if step.eps is None else step.eps[source]
        z = gaussians.sample(q, latent.num_samples, eps, step.generator)
        pseudo, _ = cast(Expert, head.experts[names[target]])(head.pseudo_features[names[target]])
        weights = z.new_full((len(pseudo.mu), 1), 1 / len(pseudo.mu))
        anyone = Mixture(Gaussian(*(value[:, None] for value in pseudo)), weights)
        log_prior = torch.where(
            experts.present[target],
            gaussians.log_density(z, single[target]),
            gaussians.mixture_log_density(z, anyone),
        )
        of_source, of_target = (gaussians.upcast(likelihoods[names[number]](z)) for number in (source, target))
        value = meme_bound(q, z, of_source, of_target, log_prior, beta)
        bounds.append(torch.where(experts.present[source], value, 0))
        divergence = (gaussians.log_density(z, q) - log_prior).mean(0)
        divergences.append(torch.where(experts.present[source], divergence, 0))
    count = experts.present.sum(0).clamp(min=1)
    loss, kl = -(sum(bounds) / count).mean(), sum(divergences) / count
    return M3AEForGenerationOutput(loss, {"meme": loss, "kl": kl.mean()}, kl[:, None])
