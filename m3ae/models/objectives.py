"""The latent pass: what the experts of a sample's modalities infer, the decoders have to explain from z alone.

Shapes: B batch, K samples, C mixture components, Z shared and private latent dimensions together.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from torch import Tensor
from transformers.utils.generic import ModelOutput

from m3ae.models import bounds, gaussians
from m3ae.models.bounds import Elbo
from m3ae.models.fusion import Stream
from m3ae.models.latent_configuration import LatentConfig
from m3ae.models.latent_head import LatentHead, LatentPosterior
from m3ae.models.modalities import LatentInputs
from m3ae.models.option_checks import register_entry


@dataclass
class M3AEForGenerationOutput(ModelOutput):
    """The objective and its terms.

    Attributes:
        loss: () what is minimised.
        losses: Name → (): `kl`, the mean bound on KL(q‖p) in nats, and either `nll_<modality>`, −log p(x_m|z) in nats,
            averaged over the samples that have the modality, or `iwae` or `dreg`, minus that bound, as weighted.
        kl: (B, *) bound on the KL in nats, for each shared dimension, or for all together if their prior is learned;
            then for each private latent.
        log_likelihood: Name → (B,) log p(x_m|z) of the given modalities, 0 where absent; None for `iwae` and `dreg`.
        hidden_states: With `output_hidden_states`, see `m3ae.models.attention.recording`.
        attentions: With `output_attentions`, see there.
    """

    loss: Tensor | None = None
    losses: dict[str, Tensor] | None = None
    kl: Tensor | None = None
    log_likelihood: dict[str, Tensor] | None = None
    hidden_states: tuple[Tensor, ...] | None = None
    attentions: tuple[Tensor, ...] | None = None


def latent_pass(
    head: LatentHead,
    encoded: Mapping[str, Stream | Tensor],
    inputs: LatentInputs,
    *,
    beta: float | Tensor | None = None,
    eps: Tensor | None = None,
    component_noise: Tensor | None = None,
    text_noise: Mapping[str, Tensor] | None = None,
    generator: torch.Generator | None = None,
) -> M3AEForGenerationOutput:
    """Compute the training objective of `head.config`, each modality with its weight.

    Args:
        head: Experts, priors and decoders.
        encoded: Name → what the expert of each given modality reads, see `LatentHead.infer_experts`.
        inputs: What the decoders have to explain.
        beta: Weight of the KL; the config's, which holds after warm-up, if None.
        eps: Standard normal noise of the latents, as the objective takes it (`m3ae.models.bounds`).
        component_noise: (K·B,) uniform noise that draws the K components of each sample for the objective `elbo` with
            `num_samples`.
        text_noise: Name → uniform noise of the masked tokens, see `LatentHead.log_likelihoods`.
        generator: Draws the noise that is not given.
    """
    step = LatentStep(head, encoded, inputs, beta, eps, component_noise, text_noise, generator)
    return OBJECTIVES[head.config.objective](step)


@dataclass(frozen=True)
class LatentStep:
    """What an objective is computed from; the attributes are the arguments of `latent_pass`."""

    head: LatentHead
    encoded: Mapping[str, Stream | Tensor]
    inputs: LatentInputs
    beta: float | Tensor | None = None
    eps: Tensor | None = None
    component_noise: Tensor | None = None
    text_noise: Mapping[str, Tensor] | None = None
    generator: torch.Generator | None = None

    def posterior(self, members: Tensor, *, each_explains_itself: bool = False) -> LatentPosterior:
        """Return the posterior with components (C, M), see `LatentHead.posterior`."""
        inferred = self.head.infer_experts(self.encoded, self.inputs.present)
        return self.head.posterior(inferred, members, each_explains_itself=each_explains_itself)

    def likelihoods(self) -> dict[str, Callable[[Tensor], Tensor]]:
        """Return the weighted log p(x_m|z) of each modality as a function of z."""
        exact = self.head.log_likelihoods(
            self.inputs.targets, self.inputs.present, text_noise=self.text_noise, generator=self.generator
        )
        return {name: partial(_scaled, self.head.modalities[name].config.weight, own) for name, own in exact.items()}

    def options(self, q: LatentPosterior) -> dict[str, Any]:
        """Return the keyword arguments that the bounds of `m3ae.models.bounds` share."""
        beta = self.head.config.beta if self.beta is None else self.beta
        return {"beta": beta, "eps": self.eps, "generator": self.generator, "prior": self.head.prior(q.own)}

    def output(self, elbo: Elbo) -> M3AEForGenerationOutput:
        """Return the loss and its terms, each without its weight."""
        unweighted = {
            name: elbo.log_likelihood[name] / modality.config.weight
            for name, modality in self.head.modalities.items()
            if name in self.inputs.present
        }
        losses = {"kl": elbo.kl.sum(-1).mean()}
        for name, value in unweighted.items():
            losses[f"nll_{name}"] = -value.sum() / self.inputs.present[name].sum().clamp(min=1)
        return M3AEForGenerationOutput(elbo.loss, losses, elbo.kl, unweighted)


def _elbo(step: LatentStep) -> M3AEForGenerationOutput:
    latent, choice = step.head.config, None
    members = posterior_members(latent, step.generator)
    q = step.posterior(members)
    likelihoods, options = step.likelihoods(), step.options(q)
    if latent.num_samples is not None and len(members) > 1:
        choice = _draw_components(q.mixture.weights, latent.num_samples, step.component_noise, step.generator)
    return step.output(bounds.elbo(q.mixture, likelihoods, choice, free_nats=latent.free_bits, **options))


def _subset_elbos(step: LatentStep) -> M3AEForGenerationOutput:
    latent = step.head.config
    members = _subsets(latent, step.generator)
    q = step.posterior(members, each_explains_itself=True)
    likelihoods, options = step.likelihoods(), step.options(q)
    return step.output(
        bounds.sum_of_subset_elbos(q.mixture, members, likelihoods, free_nats=latent.free_bits, **options)
    )


def _importance_weighted(name: str, bound: Callable[..., Tensor], step: LatentStep) -> M3AEForGenerationOutput:
    latent = step.head.config
    q = step.posterior(posterior_members(latent, step.generator))
    likelihoods, options = step.likelihoods(), step.options(q)
    assert latent.num_samples is not None
    loss = -bound(q.mixture, likelihoods, latent.num_samples, **options).mean()
    kl = _kl(step.head, q, step.generator)
    return M3AEForGenerationOutput(loss, {name: loss, "kl": kl.sum(-1).mean()}, kl)


Objective = Callable[[LatentStep], M3AEForGenerationOutput]
OBJECTIVES: dict[str, Objective] = {
    "elbo": _elbo,
    "subset_elbos": _subset_elbos,
    "iwae": partial(_importance_weighted, "iwae", bounds.iwae),
    "dreg": partial(_importance_weighted, "dreg", bounds.dreg),
}


def register_objective(name: str) -> Callable[[Objective], Objective]:
    """Return a decorator that adds an objective of a user's own: `LatentStep` → loss and terms.

    Raises:
        ValueError: There is another objective of this name.
    """

    def register(objective: Objective) -> Objective:
        register_entry(OBJECTIVES, "objective", name, objective)
        return objective

    return register


def posterior_members(latent: LatentConfig, generator: torch.Generator | None = None) -> Tensor:
    """Return the components (C, M) of the posterior; the product of all experts, if it is one, is the last."""
    if latent.kind == "mopoe":
        return _subsets(latent, generator)
    return gaussians.components(latent.kind, len(latent.experts))


def _subsets(latent: LatentConfig, generator: torch.Generator | None) -> Tensor:
    """Return all subsets of the experts, or some of them where there are too many."""
    count = len(latent.experts)
    if latent.enumerates_subsets:
        return gaussians.subsets(count)
    if generator is not None and generator.device.type != "cpu":  # subsets are drawn there
        seed = torch.randint(2**31, (), generator=generator, device=generator.device)
        generator = torch.Generator().manual_seed(int(seed))
    return gaussians.sample_subsets(count, latent.num_subsets, generator)


def _kl(head: LatentHead, q: LatentPosterior, generator: torch.Generator | None) -> Tensor:
    prior = head.prior(q.own)
    z = None if prior is None else gaussians.sample(q.mixture.components, generator=generator)
    return gaussians.mixture_kl_bound(q.mixture, z, prior)


def _scaled(weight: float, likelihood: Callable[[Tensor], Tensor], z: Tensor) -> Tensor:
    return weight * likelihood(z)


def _draw_components(weights: Tensor, count: int, noise: Tensor | None, generator: torch.Generator | None) -> Tensor:
    """Draw components (K, B) of weights (C, B), in balance over all K·B."""
    size = weights.shape[1]
    if noise is None:
        noise = torch.rand(count * size, generator=generator, device=weights.device)
    return gaussians.balanced_components(weights.repeat(1, count), noise).view(count, size)
