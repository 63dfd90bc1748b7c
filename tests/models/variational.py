"""A linear-Gaussian model, whose evidence has a closed form, and the reference values of the variational part."""

import json
import math
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor

from m3ae.models.bounds import LogLikelihoods
from m3ae.models.gaussians import Gaussian


class LinearGaussian(NamedTuple):
    """z ~ N(0, I), x_m ~ N(z Wᵀ_m, I): lists over modalities of W (E, D) and x (B, E)."""

    weights: list[Tensor]
    data: list[Tensor]

    @property
    def log_likelihoods(self) -> LogLikelihoods:
        pairs = zip(self.weights, self.data, strict=True)
        return {f"m{number}": partial(log_likelihood, weight=w, x=x) for number, (w, x) in enumerate(pairs)}

    def evidence(self) -> Tensor:
        """log p(x) (B,)."""
        w = torch.cat(self.weights).double()
        x = torch.cat(self.data, -1).double()
        covariance = torch.eye(len(w), dtype=torch.float64) + w @ w.T
        return torch.distributions.MultivariateNormal(torch.zeros_like(x), covariance).log_prob(x)

    def posterior(self) -> tuple[Tensor, Tensor]:
        """Mean (B, D) and precision (D, D) of p(z|x)."""
        w, x = torch.cat(self.weights).double(), torch.cat(self.data, -1).double()
        precision = torch.eye(w.shape[1], dtype=torch.float64) + w.T @ w
        return x @ w @ precision.inverse(), precision


def log_likelihood(z: Tensor, weight: Tensor, x: Tensor) -> Tensor:
    return -0.5 * ((x - z @ weight.T).square() + math.log(2 * math.pi)).sum(-1)


def toy(batch: int = 6, seed: int = 0) -> LinearGaussian:
    """Three modalities of 5 elements, 4 latent dimensions."""
    draw = partial(torch.randn, generator=torch.Generator().manual_seed(seed))
    weights = [draw(5, 4) * 0.4 for _ in range(3)]
    z = draw(batch, 4)
    return LinearGaussian(weights, [z @ w.T + draw(batch, 5) for w in weights])


def fitting_experts(model: LinearGaussian) -> Gaussian:
    """Three experts of which each, and each product, lies near the posterior p(z|x)."""
    mean, precision = model.posterior()
    own = 0.4 * (precision.diagonal() - 1)
    scale = (1 + 2.1 * own) / (2.1 * own)  # what the prior pulls back, between that of one expert and of three
    return Gaussian(*(value.float().expand(3, *mean.shape) for value in (mean * scale, -own.log())))


def orthogonal_model() -> LinearGaussian:
    """A toy whose posterior is diagonal."""
    draw = partial(torch.randn, generator=torch.Generator().manual_seed(3))
    basis = torch.linalg.qr(draw(15, 4)).Q * torch.tensor([0.5, 1.0, 1.5, 2.0])
    weights = list(basis.split(5))
    return LinearGaussian(weights, [draw(6, 5) for _ in range(3)])


def quadrature(count: int) -> tuple[Tensor, Tensor]:
    """Nodes and weights of the expectation over a standard normal number."""
    nodes, weights = np.polynomial.hermite_e.hermegauss(count)
    return torch.tensor(nodes), torch.tensor(weights / weights.sum())


def grid(samples: int, count: int = 40) -> tuple[Tensor, Tensor]:
    """Nodes (K, B) and weights (B,) of the expectation over K normal numbers."""
    nodes, weights = quadrature(count)
    at = torch.cartesian_prod(*[nodes] * samples).reshape(-1, samples)
    return at.T, torch.cartesian_prod(*[weights] * samples).reshape(-1, samples).prod(1)


class Reference(NamedTuple):
    """What an independent library gives for fixed experts."""

    model: LinearGaussian
    experts: Gaussian
    present: Tensor
    eps: Tensor
    values: dict[str, Any]

    def value(self, name: str) -> Tensor:
        return torch.tensor(self.values[name], dtype=torch.float64)

    def gaussians(self, prefix: str) -> Gaussian:
        """Of the seven subsets (7, B, D), in the order of `subsets`."""
        names = ("m0", "m1", "m2", "m0_m1", "m0_m2", "m1_m2", "m0_m1_m2")
        return Gaussian(*(torch.stack([self.value(f"{prefix}/{n}/{p}") for n in names]) for p in ("mu", "logvar")))


def read_reference(shared: Path) -> Reference:
    values = json.loads((shared / "golden" / "variational" / "reference.json").read_text())
    inputs = {
        name: torch.tensor(list(inner.values()) if isinstance(inner, dict) else inner)
        for name, inner in values["inputs"].items()
    }
    experts = Gaussian(inputs["mu"], inputs["logvar"])
    model = LinearGaussian(list(inputs["dec_w"]), list(torch.cat(experts, -1)))
    return Reference(model, experts, inputs["mask"].bool(), inputs["eps"], values)
