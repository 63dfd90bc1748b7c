"""A prior fitted on the aggregated posterior.

Shapes: G Gaussians, Z latent dimensions.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

from m3ae.models.latent import upcast


class FittedPrior(nn.Module):
    """A mixture of Gaussians over all latent dimensions, fitted on the aggregated posterior."""

    weights: Tensor
    means: Tensor
    factors: Tensor

    def __init__(self, num_components: int, size: int) -> None:
        super().__init__()
        self.register_buffer("weights", torch.zeros(num_components))
        self.register_buffer("means", torch.zeros(num_components, size))
        self.register_buffer("factors", torch.zeros(num_components, size, size))  # Cholesky, lower

    def sample(self, count: int, generator: torch.Generator | None = None) -> Tensor:
        """Draw points (count, Z)."""
        means, factors = upcast(self.means), upcast(self.factors)
        chosen = torch.multinomial(upcast(self.weights), count, replacement=True, generator=generator)
        eps = torch.randn(count, means.shape[1], generator=generator, device=means.device)
        return means[chosen] + (factors[chosen] @ eps[..., None])[..., 0]

    @classmethod
    def fit(cls, points: Tensor, num_components: int, seed: int = 0) -> FittedPrior:
        """Fit a mixture with full covariances to points (N, Z), as scikit-learn does.

        Raises:
            ValueError: There are fewer points than Gaussians.
        """
        from sklearn.mixture import GaussianMixture

        if len(points) < num_components:
            raise ValueError(f"A prior of {num_components} Gaussians needs as many points, got {len(points)}.")
        fitted = GaussianMixture(num_components, random_state=seed).fit(points.double().numpy())
        prior = cls(num_components, points.shape[1])
        prior.weights.copy_(torch.from_numpy(fitted.weights_))
        prior.means.copy_(torch.from_numpy(fitted.means_))
        prior.factors.copy_(torch.linalg.cholesky(torch.from_numpy(fitted.covariances_)))
        return prior
