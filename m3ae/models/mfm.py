"""MFM: deterministic encoders whose latents follow N(0, I) by maximum mean discrepancy (Tsai et al. 2019).

Shapes: B batch, M experts, D dimensions of a latent, Z all latent dimensions.
"""

from __future__ import annotations

import torch
from torch import Tensor

from m3ae.models import gaussians
from m3ae.models.latent_step import LatentStep, M3AEForGenerationOutput
from m3ae.models.priors import ConditionalPrior

BANDWIDTHS = (0.25, 0.5, 1.0, 2.0, 4.0)  # squared, in units of D


def squared_mmd(points: Tensor, present: Tensor) -> Tensor:
    """Return an unbiased estimate, which may be negative, of the squared maximum mean discrepancy to N(0, I), ().

    The mean over h of E k(x, x') − 2 E k(x, y) + E k(y, y'), k(x, y) = exp(−|x − y|²/2h) (Gretton et al. 2012). Pairs
    of different points estimate the first term, y ~ N(0, I) is integrated: E_y k(x, y) = (h/(h + 1))^{D/2}
    exp(−|x|²/2(h + 1)) and E k(y, y') = (h/(h + 2))^{D/2}. The bandwidths grow with D, or the kernel would fade.

    Args:
        points: (B, D).
        present: (B,) bool, which points count; 0 for fewer than two.
    """
    points, size = gaussians.upcast(points), points.shape[-1]
    count = present.sum()
    pairs = present[:, None] & present[None] & ~torch.eye(len(points), dtype=torch.bool, device=points.device)
    distances, norms = (points[:, None] - points[None]).square().sum(-1), points.square().sum(-1)
    terms = []
    for h in (factor * size for factor in BANDWIDTHS):
        among = ((-distances / (2 * h)).exp() * pairs).sum() / pairs.sum().clamp(min=1)
        across = ((-norms / (2 * (h + 1))).exp() * present).sum() / count.clamp(min=1) * (h / (h + 1)) ** (size / 2)
        terms.append(among - 2 * across + (h / (h + 2)) ** (size / 2))
    return torch.where(count > 1, torch.stack(terms).mean(), 0.0)


def mfm(step: LatentStep) -> M3AEForGenerationOutput:
    """Explain all modalities from deterministic latents; β weighs the discrepancies of z and of each private latent.

    Surrogates learn to stand in for what is missing, and leave what they imitate alone: each modality alone predicts
    z, ½|z_m − z|², and the prior of a private latent, which draws it where its modality is missing, is fitted to it.
    """
    head, experts = step.head, step.experts
    latent, present = head.config, step.experts.present
    q = step.posterior_of(experts)
    z = q.mixture.components.mu
    terms = {name: likelihood(z)[0] for name, likelihood in step.likelihoods().items()}
    shared, private = z[0, :, : q.size], {name: z[0][:, head.private_dimensions[name]] for name in q.inferred}
    mmd = squared_mmd(shared, present.any(0))
    surrogate = torch.zeros_like(mmd)
    for number in range(len(present)):
        alone = present & (torch.arange(len(present), device=z.device) == number)[:, None]
        predicted = step.posterior_of(experts._replace(present=alone))
        error = 0.5 * (predicted.shared.components.mu[0] - shared.detach()).square().sum(-1)
        surrogate = surrogate + (error * present[number]).mean()
    for name, w in private.items():
        prior, inferred = head.private_priors[name], q.inferred[name]
        assert isinstance(prior, ConditionalPrior)
        mmd = mmd + squared_mmd(w, inferred)
        surrogate = surrogate - torch.where(inferred, prior.log_prob(w.detach(), shared.detach()), 0).mean()
    beta = latent.beta if step.beta is None else step.beta
    loss = beta * mmd + surrogate - sum(terms.values(), torch.zeros_like(shared[:, 0])).mean()
    losses = {"mmd": mmd, "surrogate": surrogate}
    unweighted = {name: terms[name] / head.modalities[name].config.weight for name in step.inputs.present}
    for name, value in unweighted.items():
        losses[f"nll_{name}"] = -value.sum() / step.inputs.present[name].sum().clamp(min=1)
    return M3AEForGenerationOutput(loss, losses, log_likelihood=unweighted)
