"""Priors that are normalising flows, of the library zuko: learned with the model, or fitted afterwards.

Shapes: D shared latent dimensions, N points.
"""

from __future__ import annotations

import copy
from collections.abc import Callable
from importlib.util import find_spec
from typing import Any, Literal

import torch
from torch import Tensor, nn
from transformers import initialization as init

from m3ae.models import gaussians

FlowKind = Literal["nice", "realnvp", "maf", "iaf", "nsf"]
FITTED: FlowKind = "maf"
TRANSFORMS = 6
BATCH_SIZE, LEARNING_RATE, MAX_STEPS, CHECK_EVERY, PATIENCE = 256, 2e-3, 3000, 50, 6


def _nice(zuko: Any, **options: Any) -> Any:
    return zuko.flows.NICE(univariate=zuko.transforms.AdditiveTransform, shapes=[()], **options)


# Noise as a function of points. One way is fast and the other takes D passes, but for couplings.
FLOWS: dict[FlowKind, Callable[..., Any]] = {
    "nice": lambda zuko, **options: _nice(zuko, **options).transform,  # additive couplings (Dinh et al. 2015)
    "realnvp": lambda zuko, **options: zuko.flows.NICE(**options).transform,  # affine couplings (Dinh et al. 2017)
    "maf": lambda zuko, **options: zuko.flows.MAF(**options).transform,  # fast density (Papamakarios et al. 2017)
    "iaf": lambda zuko, **options: zuko.flows.MAF(**options).transform.inv,  # fast samples (Kingma et al. 2016)
    "nsf": lambda zuko, **options: zuko.flows.NSF(**options).transform,  # splines within ±5 (Durkan et al. 2019)
}


class FlowPrior(nn.Module):
    """p(z) = N(f(z); 0, I)·|det ∂f/∂z|, f invertible; f starts as a permutation, and p(z) as N(0, I).

    Args:
        kind: Name in `FLOWS`.
        size: D.

    Raises:
        ValueError: zuko is not installed.
    """

    mean: Tensor
    deviation: Tensor

    def __init__(self, kind: FlowKind, size: int) -> None:
        super().__init__()
        if find_spec("zuko") is None:
            raise ValueError(
                f"a prior of the kind {kind}: needs zuko, which is not installed; pip install 'm3ae[flows]'"
            )
        import zuko

        self.size, width = size, max(64, 2 * size)
        self.register_buffer("mean", torch.zeros(size))
        self.register_buffer("deviation", torch.ones(size))
        with torch.device("cpu"):  # zuko reads the values of its masks, which a meta device does not have
            self.flow = FLOWS[kind](zuko, features=size, transforms=TRANSFORMS, hidden_features=(width, width))
        self.reset()

    def reset(self) -> None:
        """Let every transformation start as the identity."""
        import zuko  # its linear layer is not torch's, but its masked one is

        init.zeros_(self.mean)
        init.ones_(self.deviation)
        for module in self.flow.modules():
            if isinstance(module, nn.Sequential) and isinstance(last := module[-1], nn.Linear | zuko.nn.Linear):
                init.zeros_(last.weight)
                init.zeros_(last.bias)

    def log_prob(self, z: Tensor) -> Tensor:
        """Return log p(z) (…) of points (…, D)."""
        with torch.autocast(z.device.type, enabled=False):
            points = ((z - self.mean) / self.deviation).to(gaussians.dtype_of(self))
            noise, log_determinant = self.flow().call_and_ladj(points)
            constant = gaussians.upcast(self.deviation).log().sum()
            return gaussians.log_prior(noise) + gaussians.upcast(log_determinant) - constant

    def sample(self, count: int, generator: torch.Generator | None = None, temperature: float = 1.0) -> Tensor:
        """Draw points (count, D); `temperature` is a factor on the noise."""
        eps = torch.randn(count, self.size, generator=generator, device=self.mean.device) * temperature
        points: Tensor = self.flow().inv(eps.to(gaussians.dtype_of(self)))
        return gaussians.upcast(points) * gaussians.upcast(self.deviation) + gaussians.upcast(self.mean)

    @classmethod
    def fit(cls, points: Tensor, kind: FlowKind = FITTED, seed: int = 0) -> FlowPrior:
        """Fit a flow to points (N, D) by maximum likelihood; a tenth of them says when to stop.

        Raises:
            ValueError: There are fewer than 20 points.
        """
        if len(points) < 20:
            raise ValueError(f"A flow is fitted to 20 points or more, got {len(points)}.")
        prior, points = cls(kind, points.shape[1]), points.float()
        prior.mean.copy_(points.mean(0))
        prior.deviation.copy_(points.std(0).clamp(min=1e-3))
        draw = torch.Generator().manual_seed(seed)
        order = torch.randperm(len(points), generator=draw)
        held_out, learnt = points[order].split([len(points) // 10, len(points) - len(points) // 10])
        optimizer = torch.optim.Adam(prior.parameters(), LEARNING_RATE)
        best, best_state, since = -torch.inf, copy.deepcopy(prior.state_dict()), 0
        for step in range(MAX_STEPS):
            if step % CHECK_EVERY == 0:
                with torch.no_grad():
                    value = float(prior.log_prob(held_out).mean())
                since = 0 if value > best else since + 1
                if value > best:
                    best, best_state = value, copy.deepcopy(prior.state_dict())
                if since == PATIENCE:
                    break
            rows = torch.randint(len(learnt), (min(BATCH_SIZE, len(learnt)),), generator=draw)
            with torch.enable_grad():
                loss = -prior.log_prob(learnt[rows]).mean()
                optimizer.zero_grad()
                loss.backward()
            optimizer.step()
        prior.load_state_dict(best_state)
        return prior
