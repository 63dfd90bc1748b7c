"""Likelihoods p(x|z) of a decoder's output, summed over the elements of a sample.

Shapes: B batch, E the shape of an element, A classes; whatever precedes B is samples or components.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from m3ae.models.latent import upcast
from m3ae.models.latent_configuration import ModalityConfig


class Likelihood(nn.Module):
    """The density of a modality around what its decoder predicts.

    `normal`: N(x; μ, s²). `laplace`: exp(−|x − μ| / s) / 2s. `bernoulli`: x·log σ(a) + (1 − x)·log(1 − σ(a)) of logits
    a and values x in [0, 1]. `categorical`: log softmax of logits (A) at the class. s is one number, fixed or learned.
    """

    log_scale: nn.Parameter | None

    def __init__(self, config: ModalityConfig) -> None:
        super().__init__()
        self.kind, self.initial_scale = config.likelihood, config.scale
        self.log_scale = nn.Parameter(torch.tensor([math.log(config.scale)])) if config.learn_scale else None

    def forward(self, predicted: Tensor, target: Tensor) -> Tensor:
        """Return log p(x|z) in nats.

        Args:
            predicted: (…, B, *E) means or logits; (…, B, A) logits of classes.
            target: (B, *E), or (B,) classes.

        Returns:
            (…, B) float32.
        """
        predicted = upcast(predicted)
        if self.kind == "categorical":
            index = target.expand(predicted.shape[:-1])[..., None]
            return predicted.log_softmax(-1).gather(-1, index)[..., 0]
        dimensions = tuple(range(-(target.dim() - 1), 0))
        return self._elements(predicted, upcast(target)).sum(dimensions)

    def _elements(self, predicted: Tensor, target: Tensor) -> Tensor:
        if self.kind == "bernoulli":
            # x·a − log(1 + eᵃ), which is −binary_cross_entropy_with_logits, without expanding the target.
            return target * predicted - F.softplus(predicted)
        log_scale = self.scale_in_logs().to(predicted)
        error = (target - predicted) * (-log_scale).exp()
        if self.kind == "normal":
            return -0.5 * error.square() - log_scale - 0.5 * math.log(2 * math.pi)
        return -error.abs() - log_scale - math.log(2)

    def scale_in_logs(self) -> Tensor:
        """Return log s, (1,)."""
        return torch.tensor([math.log(self.initial_scale)]) if self.log_scale is None else self.log_scale

    def mean(self, predicted: Tensor) -> Tensor:
        """Return the mean of x: μ, σ(a), or the probabilities of the classes."""
        predicted = upcast(predicted)
        if self.kind == "categorical":
            return predicted.softmax(-1)
        return predicted.sigmoid() if self.kind == "bernoulli" else predicted
