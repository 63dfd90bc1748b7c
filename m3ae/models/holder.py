"""Hölder pooling: the mixture of all experts and of the geometric mean of each pair.

Shapes: M experts, C mixture components, B batch, D latent dimensions.
"""

from __future__ import annotations

import torch
from torch import Tensor

from m3ae.models.gaussians import Gaussian, Mixture, component_weights, log_density, product_of_experts, upcast


def holder_pool(experts: Gaussian, present: Tensor, members: Tensor) -> Mixture:
    """Return q(z | the present modalities) ∝ (Σ_m √q_m)², Hölder pooling with α = ½, exactly (HELVAE, Hölder++, 2026).

    The square is Σ_m q_m + 2 Σ_{i<j} S_ij √(q_i q_j) / S_ij with S_ij = ∫ √(q_i q_j): a mixture of the experts and of
    the normalised geometric mean of each pair, whose precision is the mean of two. Experts that disagree overlap
    little, and leave the mixture to the singles: S falls as exp(−D g²/8) for means g deviations apart, so D should be
    at most 32. The weights have a gradient.

    Args:
        experts: (M, B, D), as for `posterior`.
        present: (M, B) bool.
        members: (C, M) bool, from `components("holder", M)`.
    """
    available = members.to(present.device)[..., None] & present  # (C, M, B)
    count = available.sum(1).clamp(min=1)
    product = product_of_experts(experts, available, "never")
    pooled = Gaussian(product.mu, product.logvar + count.log()[..., None])
    finite = Gaussian(*(torch.where(present[..., None], upcast(value), 0) for value in experts))
    # √(q_i q_j) = S_ij · pooled at any point, such as the mean.
    mean_log_density = (log_density(pooled.mu[:, None], finite) * available).sum(1) / count
    score = count.log() + mean_log_density - log_density(pooled.mu, pooled)
    return Mixture(pooled, score.masked_fill(component_weights(available) == 0, -torch.inf).softmax(0))
