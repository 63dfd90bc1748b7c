"""A prior of the shared latent that is learned with the model.

Shapes: G Gaussians, D shared latent dimensions.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

from m3ae.models.latent import Gaussian, log_density, sample, upcast


class LearnedPrior(nn.Module):
    """p(z) = Σ_g π_g N(z; μ_g, σ²_g), diagonal Gaussians whose parameters follow the ELBO's gradient.

    Where classes make z fall apart into clusters, N(0, I) puts most of its mass between them; a mixture learns to be
    where the posteriors are (the mixture of Gaussians of Tomczak & Welling 2018, also Jiang et al. 2017).

    Args:
        num_components: G.
        size: D.
    """

    def __init__(self, num_components: int, size: int) -> None:
        super().__init__()
        self.size = size
        self.logits = nn.Parameter(torch.zeros(num_components))
        self.means = nn.Parameter(torch.randn(num_components, size))
        self.logvars = nn.Parameter(torch.zeros(num_components, size))

    def log_prob(self, z: Tensor) -> Tensor:
        """Return log p(z) (…) of points (…, D)."""
        densities = log_density(upcast(z)[..., None, :], Gaussian(self.means, self.logvars))  # (…, G)
        return (upcast(self.logits).log_softmax(-1) + densities).logsumexp(-1)

    def sample(self, count: int, generator: torch.Generator | None = None, temperature: float = 1.0) -> Tensor:
        """Draw points (count, D); `temperature` is a factor on the standard deviations within the Gaussians."""
        chosen = torch.multinomial(self.logits.softmax(-1), count, replacement=True, generator=generator)
        eps = torch.randn(count, self.size, generator=generator, device=self.means.device)
        return sample(Gaussian(self.means[chosen], self.logvars[chosen]), eps=eps * temperature)
