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

from m3ae.models import latent as algebra
from m3ae.models import objectives
from m3ae.models.fusion import Stream
from m3ae.models.latent_configuration import LatentConfig
from m3ae.models.latent_head import LatentHead, LatentPosterior
from m3ae.models.latent_inputs import LatentInputs
from m3ae.models.objectives import Elbo


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
    """

    loss: Tensor | None = None
    losses: dict[str, Tensor] | None = None
    kl: Tensor | None = None
    log_likelihood: dict[str, Tensor] | None = None


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
        eps: Standard normal noise of the latents, as the objective takes it (`m3ae.models.objectives`).
        component_noise: (K·B,) uniform noise that draws the K components of each sample for the objective `elbo` with
            `num_samples`.
        text_noise: Name → uniform noise of the masked tokens, see `LatentHead.log_likelihoods`.
        generator: Draws the noise that is not given.
    """
    latent = head.config
    of_subsets = latent.objective == "subset_elbos"
    members = _subsets(latent, generator) if of_subsets else posterior_members(latent, generator)
    inferred = head.infer_experts(encoded, inputs.present)
    q = head.posterior(inferred, members, each_explains_itself=of_subsets)
    likelihoods = _weighted(
        head, head.log_likelihoods(inputs.targets, inputs.present, text_noise=text_noise, generator=generator)
    )
    options: dict[str, Any] = {"eps": eps, "generator": generator, "prior": head.prior(q.own)}
    options["beta"] = latent.beta if beta is None else beta
    if latent.objective == "elbo":
        choice = None
        if latent.num_samples is not None and len(members) > 1:
            choice = _draw_components(q.mixture.weights, latent.num_samples, component_noise, generator)
        elbo = objectives.elbo(q.mixture, likelihoods, choice, free_nats=latent.free_bits, **options)
    elif of_subsets:
        elbo = objectives.sum_of_subset_elbos(q.mixture, members, likelihoods, free_nats=latent.free_bits, **options)
    else:
        assert latent.num_samples is not None
        bound = getattr(objectives, latent.objective)(q.mixture, likelihoods, latent.num_samples, **options)
        kl, loss = _kl(head, q, generator), -bound.mean()
        return M3AEForGenerationOutput(loss, {latent.objective: loss, "kl": kl.sum(-1).mean()}, kl)
    return _output(head, elbo, inputs.present)


def posterior_members(latent: LatentConfig, generator: torch.Generator | None = None) -> Tensor:
    """Return the components (C, M) of the posterior; the product of all experts, if it is one, is the last."""
    if latent.kind == "mopoe":
        return _subsets(latent, generator)
    return algebra.components(latent.kind, len(latent.experts))


def _subsets(latent: LatentConfig, generator: torch.Generator | None) -> Tensor:
    """Return all subsets of the experts, or some of them where there are too many."""
    count = len(latent.experts)
    if latent.enumerates_subsets:
        return algebra.subsets(count)
    if generator is not None and generator.device.type != "cpu":  # subsets are drawn there
        seed = torch.randint(2**31, (), generator=generator, device=generator.device)
        generator = torch.Generator().manual_seed(int(seed))
    return algebra.sample_subsets(count, latent.num_subsets, generator)


def _kl(head: LatentHead, q: LatentPosterior, generator: torch.Generator | None) -> Tensor:
    prior = head.prior(q.own)
    z = None if prior is None else algebra.sample(q.mixture.components, generator=generator)
    return algebra.mixture_kl_bound(q.mixture, z, prior)


def _weighted(
    head: LatentHead, likelihoods: Mapping[str, Callable[[Tensor], Tensor]]
) -> dict[str, Callable[[Tensor], Tensor]]:
    return {name: partial(_scaled, head.modalities[name].weight, own) for name, own in likelihoods.items()}


def _scaled(weight: float, likelihood: Callable[[Tensor], Tensor], z: Tensor) -> Tensor:
    return weight * likelihood(z)


def _output(head: LatentHead, elbo: Elbo, present: Mapping[str, Tensor]) -> M3AEForGenerationOutput:
    unweighted = {
        name: elbo.log_likelihood[name] / modality.weight
        for name, modality in head.modalities.items()
        if name in present
    }
    losses = {"kl": elbo.kl.sum(-1).mean()}
    for name, value in unweighted.items():
        losses[f"nll_{name}"] = -value.sum() / present[name].sum().clamp(min=1)
    return M3AEForGenerationOutput(elbo.loss, losses, elbo.kl, unweighted)


def _draw_components(weights: Tensor, count: int, noise: Tensor | None, generator: torch.Generator | None) -> Tensor:
    """Draw components (K, B) of weights (C, B), in balance over all K·B."""
    size = weights.shape[1]
    if noise is None:
        noise = torch.rand(count * size, generator=generator, device=weights.device)
    return algebra.balanced_components(weights.repeat(1, count), noise).view(count, size)
