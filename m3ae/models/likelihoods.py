"""Densities of a modality around what its decoder predicts.

Shapes: B batch, E the shape of an element, A classes, L levels.
"""

from __future__ import annotations

import math
from abc import abstractmethod
from typing import TYPE_CHECKING

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from m3ae.models.gaussians import laplace_noise, upcast

if TYPE_CHECKING:
    from m3ae.models.modalities.options import ModalityConfig

NORMALS = 5
NARROWEST = -5.0  # log-scale of a normal: a value that repeats must not have an infinite density


class Likelihood(nn.Module):
    """The density of a modality around its decoder's prediction. A subclass defines `elements`.

    Its scale s is one number, fixed or learned.
    """

    log_scale: nn.Parameter | None
    num_parameters = 1  # that a decoder predicts for an element

    def __init__(self, config: ModalityConfig) -> None:
        super().__init__()
        self.initial_scale = config.scale
        self.log_scale = nn.Parameter(torch.tensor([math.log(config.scale)])) if config.learn_scale else None

    def forward(self, predicted: Tensor, target: Tensor, counted: Tensor | None = None) -> Tensor:
        """Return log p(x|z) in nats.

        Args:
            predicted: (…, B, *E) means or logits; (…, B, A) logits of classes.
            target: (B, *E), or (B,) classes.
            counted: 0 at elements that do not count, to be broadcast to (B, *E); all count if None.

        Returns:
            (…, B) float32.
        """
        dimensions = tuple(range(-(target.dim() - 1), 0))
        values = self.elements(upcast(predicted), upcast(target))
        return (values if counted is None else values * counted).sum(dimensions)

    @abstractmethod
    def elements(self, predicted: Tensor, target: Tensor) -> Tensor:
        """Return log p of each element (…, B, *E), from float32 tensors."""

    def scale_in_logs(self) -> Tensor:
        """Return log s (1,)."""
        return torch.tensor([math.log(self.initial_scale)]) if self.log_scale is None else self.log_scale

    def mean(self, predicted: Tensor) -> Tensor:
        """Return the mean of x in float32: what is predicted, σ(a), or the probabilities of the classes."""
        return upcast(predicted)

    def sample(self, predicted: Tensor, generator: torch.Generator | None = None) -> Tensor:
        """Draw x in float32."""
        raise ValueError(f"the likelihood {type(self).__name__} does not draw values; an autoregressive decoder does")


class Normal(Likelihood):
    """N(x; μ, s²)."""

    def elements(self, predicted: Tensor, target: Tensor) -> Tensor:
        """Return log p of each element."""
        log_scale = self.scale_in_logs().to(predicted)
        error = (target - predicted) * (-log_scale).exp()
        return -0.5 * error.square() - log_scale - 0.5 * math.log(2 * math.pi)

    def sample(self, predicted: Tensor, generator: torch.Generator | None = None) -> Tensor:
        """Draw x."""
        noise = torch.randn(predicted.shape, generator=generator, device=predicted.device)
        return upcast(predicted) + self.scale_in_logs().to(noise).exp() * noise


class Laplace(Likelihood):
    """exp(−|x − μ| / s) / 2s."""

    def elements(self, predicted: Tensor, target: Tensor) -> Tensor:
        """Return log p of each element."""
        log_scale = self.scale_in_logs().to(predicted)
        error = (target - predicted) * (-log_scale).exp()
        return -error.abs() - log_scale - math.log(2)

    def sample(self, predicted: Tensor, generator: torch.Generator | None = None) -> Tensor:
        """Draw x."""
        noise = laplace_noise(torch.randn(predicted.shape, generator=generator, device=predicted.device))
        return upcast(predicted) + self.scale_in_logs().to(noise).exp() * math.sqrt(2) * noise


class Bernoulli(Likelihood):
    """x·log σ(a) + (1 − x)·log(1 − σ(a)) of logits a and values x in [0, 1]."""

    def elements(self, predicted: Tensor, target: Tensor) -> Tensor:
        """Return log p of each element."""
        # x·a − log(1 + eᵃ), which is −binary_cross_entropy_with_logits, without expanding the target.
        return target * predicted - F.softplus(predicted)

    def mean(self, predicted: Tensor) -> Tensor:
        """Return σ(a)."""
        return upcast(predicted).sigmoid()

    def sample(self, predicted: Tensor, generator: torch.Generator | None = None) -> Tensor:
        """Draw x, 0 or 1."""
        noise = torch.rand(predicted.shape, generator=generator, device=predicted.device)
        return (noise < self.mean(predicted)).float()


class Categorical(Likelihood):
    """log softmax of logits (A) at the class."""

    def forward(self, predicted: Tensor, target: Tensor, counted: Tensor | None = None) -> Tensor:
        """Return log p(x|z) (…, B) of classes (B,)."""
        index = target.expand(predicted.shape[:-1])[..., None]
        return upcast(predicted).log_softmax(-1).gather(-1, index)[..., 0]

    def mean(self, predicted: Tensor) -> Tensor:
        """Return the probabilities of the classes."""
        return upcast(predicted).softmax(-1)


class Levels(Likelihood):
    """log softmax of L logits for each value in [0, 1], which is one of 0, 1 / (L − 1), …, 1."""

    def __init__(self, config: ModalityConfig) -> None:
        super().__init__(config)
        self.num_parameters = config.levels

    def elements(self, predicted: Tensor, target: Tensor) -> Tensor:
        """Return log p of each value's nearest level."""
        index = (target * (self.num_parameters - 1)).round().long().clamp(0, self.num_parameters - 1)
        index = index.expand(predicted.shape[:-1])[..., None]
        return predicted.log_softmax(-1).gather(-1, index)[..., 0]

    def sample(self, predicted: Tensor, generator: torch.Generator | None = None) -> Tensor:
        """Draw levels."""
        return _choose(predicted, generator) / (self.num_parameters - 1)


class NormalMixture(Likelihood):
    """log Σ_k π_k N(x; μ_k, s_k²) of `NORMALS` logits, means and log-scales for each value (Bishop 1994)."""

    num_parameters = 3 * NORMALS

    def elements(self, predicted: Tensor, target: Tensor) -> Tensor:
        """Return log p of each value."""
        logits, means, log_scales = self._split(predicted)
        error = (target[..., None] - means) * (-log_scales).exp()
        densities = -0.5 * error.square() - log_scales - 0.5 * math.log(2 * math.pi)
        return (logits.log_softmax(-1) + densities).logsumexp(-1)

    def sample(self, predicted: Tensor, generator: torch.Generator | None = None) -> Tensor:
        """Draw a normal, and a value of it."""
        logits, means, log_scales = self._split(predicted)
        chosen = _choose(logits, generator)[..., None]
        mean, log_scale = (values.gather(-1, chosen)[..., 0] for values in (means, log_scales))
        return mean + log_scale.exp() * torch.randn(mean.shape, generator=generator, device=mean.device)

    def _split(self, predicted: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        logits, means, log_scales = upcast(predicted).chunk(3, -1)
        return logits, means, (log_scales + self.scale_in_logs().to(log_scales)).clamp(min=NARROWEST)


def _choose(logits: Tensor, generator: torch.Generator | None) -> Tensor:
    """Draw classes (…) of logits (…, A)."""
    shares = upcast(logits).softmax(-1)
    return torch.multinomial(shares.flatten(0, -2), 1, generator=generator).view(shares.shape[:-1])
