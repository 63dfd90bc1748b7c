"""Priors of the shared latent, and of the private ones given z, learned with the model; and one fitted afterwards.

Shapes: G Gaussians, D shared latent dimensions, P private ones of a modality, Z all of them, B batch.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from m3ae.models import gaussians
from m3ae.models.gaussians import Density, Gaussian
from m3ae.models.latent_networks import mlp

COUPLINGS = 6


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

    def forward(self) -> tuple[Tensor, Gaussian]:
        """Return the logits (G,) of the Gaussians, and these (G, D)."""
        return self.logits, Gaussian(self.means, self.logvars)

    def log_prob(self, z: Tensor) -> Tensor:
        """Return log p(z) (…) of points (…, D)."""
        logits, components = self()
        densities = gaussians.log_density(gaussians.upcast(z)[..., None, :], components)  # (…, G)
        return (gaussians.upcast(logits).log_softmax(-1) + densities).logsumexp(-1)

    def sample(self, count: int, generator: torch.Generator | None = None, temperature: float = 1.0) -> Tensor:
        """Draw points (count, D); `temperature` is a factor on the standard deviations within the Gaussians."""
        logits, components = self()
        chosen = torch.multinomial(logits.softmax(-1), count, replacement=True, generator=generator)
        eps = torch.randn(count, self.size, generator=generator, device=logits.device)
        return gaussians.sample(Gaussian(*(values[chosen] for values in components)), eps=eps * temperature)


class ZeroLinear(nn.Linear):
    """A linear layer that starts as 0."""


class Coupling(nn.Module):
    """An invertible map given z: half of the dimensions scales and shifts the other (RealNVP, Dinh et al. 2017).

    Args:
        size: P.
        context_size: D.
        hidden_size: Width of two hidden layers.
    """

    def __init__(self, size: int, context_size: int, hidden_size: int) -> None:
        super().__init__()
        self.kept = size // 2
        self.hidden = mlp(self.kept + context_size, hidden_size, 2)
        self.output = ZeroLinear(hidden_size, 2 * (size - self.kept))

    def forward(self, points: Tensor, z: Tensor) -> tuple[Tensor, Tensor]:
        """Return the images (…, P) of points (…, P) given z (…, D), and the logarithm of the determinant (…)."""
        kept, changed = points.tensor_split([self.kept], -1)
        log_scale, shift = self._scale_and_shift(kept, z)
        return torch.cat([kept, (changed + shift) * log_scale.exp()], -1).flip(-1), log_scale.sum(-1)

    def inverse(self, images: Tensor, z: Tensor) -> Tensor:
        """Return the points (…, P) that have these images."""
        kept, changed = images.flip(-1).tensor_split([self.kept], -1)
        log_scale, shift = self._scale_and_shift(kept, z)
        return torch.cat([kept, changed * (-log_scale).exp() - shift], -1)

    def _scale_and_shift(self, kept: Tensor, z: Tensor) -> tuple[Tensor, Tensor]:
        inputs = torch.cat([kept, z], -1).to(gaussians.dtype_of(self))
        log_scale, shift = self.output(self.hidden(inputs)).to(kept).chunk(2, -1)
        return 2 * torch.tanh(log_scale / 2), shift  # a factor of 1/e² to e² for each coupling


class ConditionalPrior(nn.Module):
    """p(w | z): how a modality's private latent w is distributed given the shared one, a flow of couplings.

    With a prior N(0, I) that ignores z, a private latent that has learnt something of the class contradicts z as soon
    as it is drawn rather than inferred. Here w follows z, and only what z does not say costs nats. A Gaussian given z
    would put much of its mass between the posteriors, where decoders show nothing. The flow starts as N(0, I).

    Args:
        size: D.
        private_size: P.
        hidden_size: Width of the couplings' hidden layers.
    """

    def __init__(self, size: int, private_size: int, hidden_size: int) -> None:
        super().__init__()
        self.couplings = nn.ModuleList(Coupling(private_size, size, hidden_size) for _ in range(COUPLINGS))

    def log_prob(self, w: Tensor, z: Tensor) -> Tensor:
        """Return log p(w|z) (…) of points w (…, P) given z (…, D)."""
        with torch.autocast(z.device.type, enabled=False):
            points, z = gaussians.upcast(w), gaussians.upcast(z)
            total = torch.zeros_like(points[..., 0])
            for coupling in self.couplings:
                points, log_determinant = coupling(points, z)
                total = total + log_determinant
            return total + gaussians.log_prior(points)

    def transform(self, noise: Tensor, z: Tensor) -> Tensor:
        """Return points (…, P) given z (…, D), which follow p(w|z) if the noise (…, P) is standard normal."""
        with torch.autocast(z.device.type, enabled=False):
            points, z = gaussians.upcast(noise), gaussians.upcast(z)
            for coupling in reversed(self.couplings):
                assert isinstance(coupling, Coupling)
                points = coupling.inverse(points, z)
            return points


@dataclass(frozen=True)
class HierarchicalPrior:
    """p(z) Π_m p(w_m | z) of points (…, Z), z first: a `m3ae.models.gaussians.Prior`.

    Attributes:
        size: D.
        shared: p(z): a density, or the Gaussians (B, D) of a condition; N(0, I) if None.
        conditional: Name → p(w_m | z) of the modalities with a private latent.
        private: Name → the dimensions of w_m.
        inferred: Name → (…, B) bool, where w_m has been inferred from its modality. Elsewhere these dimensions are the
            standard normal noise that w_m would be drawn with, and cost nothing.
    """

    size: int
    shared: Density | Gaussian | None
    conditional: Mapping[str, ConditionalPrior]
    private: Mapping[str, slice]
    inferred: Mapping[str, Tensor]

    def log_prob(self, z: Tensor) -> Tensor:
        """Return the log-density (…) of points (…, Z)."""
        shared = z[..., : self.size]
        if isinstance(self.shared, Gaussian):
            total = gaussians.log_density(shared, self.shared)
        else:
            total = gaussians.log_prior(shared, self.shared)
        for name, inferred in self.inferred.items():
            private = z[..., self.private[name]]
            density = self.conditional[name].log_prob(private, shared)
            total = total + torch.where(inferred, density, gaussians.log_prior(private))
        return total

    def kl_divergence(self, gaussian: Gaussian, z: Tensor) -> Tensor:
        """Return KL(q‖p) of Gaussians (…, Z) in nats, estimated at points z drawn from them.

        Returns:
            A column for each shared dimension, exact, or one for all if p(z) is a density; then one for each private
            latent.
        """
        shared, z_shared = gaussian.columns(slice(0, self.size)), z[..., : self.size]
        if self.shared is None or isinstance(self.shared, Gaussian):
            columns = [gaussians.kl_divergence(shared, self.shared)]
        else:
            columns = [gaussians.sampled_kl_divergence(shared, z_shared, self.shared)[..., None]]
        for name, inferred in self.inferred.items():
            dimensions = self.private[name]
            density = _ConditionalDensity(self.conditional[name], z_shared)
            kl = gaussians.sampled_kl_divergence(gaussian.columns(dimensions), z[..., dimensions], density)
            columns.append(torch.where(inferred, kl, 0)[..., None])
        return torch.cat(columns, -1)


@dataclass(frozen=True)
class _ConditionalDensity:
    """p(w | z) at some z, as a density of w."""

    conditional: ConditionalPrior
    z: Tensor

    def log_prob(self, w: Tensor) -> Tensor:
        return self.conditional.log_prob(w, self.z)


@dataclass(frozen=True)
class ExpertReference:
    """q(z | one modality), which the shared latent of a posterior is held to: a `m3ae.models.gaussians.Reference`.

    Attributes:
        expert: (B, D).
        joined: Whether all dimensions are one column, as with a learned p(z).
    """

    expert: Gaussian
    joined: bool

    def kl_divergence(self, gaussian: Gaussian, z: Tensor) -> Tensor:
        """Return the exact KL of the shared dimensions of Gaussians (…, Z), in columns (…, D) or (…, 1)."""
        shared = gaussian.columns(slice(0, self.expert.mu.shape[-1]))
        kl = gaussians.kl_divergence(shared, self.expert)
        return kl.sum(-1, keepdim=True) if self.joined else kl


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
        means, factors = gaussians.upcast(self.means), gaussians.upcast(self.factors)
        chosen = torch.multinomial(gaussians.upcast(self.weights), count, replacement=True, generator=generator)
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
