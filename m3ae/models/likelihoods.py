"""Likelihoods p(x|z) of a decoder's output, summed over the elements of a sample.

Shapes: B batch, E the shape of an element, A classes; whatever precedes B is samples or components.
"""

from __future__ import annotations

import math
from abc import abstractmethod
from typing import TYPE_CHECKING

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from m3ae.models.latent import upcast

if TYPE_CHECKING:
    from m3ae.models.modalities.base import ModalityConfig


class Likelihood(nn.Module):
    """The density of a modality around what its decoder predicts; a subclass gives that of an element.

    Its scale s is one number, fixed or learned.
    """

    log_scale: nn.Parameter | None

    def __init__(self, config: ModalityConfig) -> None:
        super().__init__()
        self.initial_scale = config.scale
        self.log_scale = nn.Parameter(torch.tensor([math.log(config.scale)])) if config.learn_scale else None

    def forward(self, predicted: Tensor, target: Tensor) -> Tensor:
        """Return log p(x|z) in nats.

        Args:
            predicted: (…, B, *E) means or logits; (…, B, A) logits of classes.
            target: (B, *E), or (B,) classes.

        Returns:
            (…, B) float32.
        """
        dimensions = tuple(range(-(target.dim() - 1), 0))
        return self.elements(upcast(predicted), upcast(target)).sum(dimensions)

    @abstractmethod
    def elements(self, predicted: Tensor, target: Tensor) -> Tensor:
        """Return log p of each element (…, B, *E), from float32 tensors."""

    def scale_in_logs(self) -> Tensor:
        """Return log s, (1,)."""
        return torch.tensor([math.log(self.initial_scale)]) if self.log_scale is None else self.log_scale

    def mean(self, predicted: Tensor) -> Tensor:
        """Return the mean of x in float32: what is predicted, σ(a), or the probabilities of the classes."""
        return upcast(predicted)


class Normal(Likelihood):
    """N(x; μ, s²)."""

    def elements(self, predicted: Tensor, target: Tensor) -> Tensor:
        """Return log p of each element."""
        log_scale = self.scale_in_logs().to(predicted)
        error = (target - predicted) * (-log_scale).exp()
        return -0.5 * error.square() - log_scale - 0.5 * math.log(2 * math.pi)


class Laplace(Likelihood):
    """exp(−|x − μ| / s) / 2s."""

    def elements(self, predicted: Tensor, target: Tensor) -> Tensor:
        """Return log p of each element."""
        log_scale = self.scale_in_logs().to(predicted)
        error = (target - predicted) * (-log_scale).exp()
        return -error.abs() - log_scale - math.log(2)


class Bernoulli(Likelihood):
    """x·log σ(a) + (1 − x)·log(1 − σ(a)) of logits a and values x in [0, 1]."""

    def elements(self, predicted: Tensor, target: Tensor) -> Tensor:
        """Return log p of each element."""
        # x·a − log(1 + eᵃ), which is −binary_cross_entropy_with_logits, without expanding the target.
        return target * predicted - F.softplus(predicted)

    def mean(self, predicted: Tensor) -> Tensor:
        """Return σ(a)."""
        return upcast(predicted).sigmoid()


class Categorical(Likelihood):
    """log softmax of logits (A) at the class."""

    def forward(self, predicted: Tensor, target: Tensor) -> Tensor:
        """Return log p(x|z) (…, B) of classes (B,)."""
        index = target.expand(predicted.shape[:-1])[..., None]
        return upcast(predicted).log_softmax(-1).gather(-1, index)[..., 0]

    def mean(self, predicted: Tensor) -> Tensor:
        """Return the probabilities of the classes."""
        return upcast(predicted).softmax(-1)
