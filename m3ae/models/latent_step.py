"""What an objective of the latent pass is computed from, and what it returns.

Shapes: B batch, M experts, K samples, C mixture components, G groups of experts, D shared latent dimensions.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import torch
from torch import Tensor, nn
from transformers.utils.generic import ModelOutput

from m3ae.models import gaussians
from m3ae.models.bounds import Elbo, References
from m3ae.models.fusion import Stream
from m3ae.models.latent_head import InferredExperts, LatentHead, LatentPosterior
from m3ae.models.modalities import LatentInputs
from m3ae.models.priors import ExpertReference


@dataclass
class M3AEForGenerationOutput(ModelOutput):
    """The objective and its terms.

    Attributes:
        loss: () what is minimised.
        losses: Name → (): `kl`, the mean of the sum of `kl`, and either `nll_<modality>`, −log p(x_m|z) in nats,
            averaged over the samples that have the modality, or `iwae` or `dreg`, minus that bound, as weighted. What
            is beside the objective has names of its own, see `m3ae.models.adversarial`.
        kl: (B, *) bound on the KL to the references in nats, for each shared dimension, or for all together if their
            prior is learned; then for each private latent.
        log_likelihood: Name → (B,) log p(x_m|z) of the modalities in the batch, 0 where absent; None for `iwae` and
            `dreg`.
        hidden_states: With `output_hidden_states`, what `m3ae.models.attention.recording` records.
        attentions: With `output_attentions`, what it records.
    """

    loss: Tensor | None = None
    losses: dict[str, Tensor] | None = None
    kl: Tensor | None = None
    log_likelihood: dict[str, Tensor] | None = None
    hidden_states: tuple[Tensor, ...] | None = None
    attentions: tuple[Tensor, ...] | None = None


@dataclass(frozen=True)
class LatentStep:
    """The inputs of an objective.

    Attributes:
        head: Experts, priors and decoders.
        encoded: Name → what the expert of each modality in the batch reads, as for `LatentHead.infer_experts`.
        inputs: What the decoders have to explain.
        fusion: The trunk's fusion, for a joint expert, see `LatentHead.infer_experts`.
        beta: Weight of the KL; the config's, which holds after warm-up, if None.
        eps: Standard normal noise of the latents, as the objective takes it (`m3ae.models.bounds`).
        component_noise: (K·B,) uniform noise that draws the K components of each sample, with `num_samples`.
        text_noise: Name → uniform noise of the masked tokens, as for `LatentHead.log_likelihoods`.
        generator: Source of the noise that is None.
        progress: Share of the training steps that are done; None is after training.
    """

    head: LatentHead
    encoded: Mapping[str, Stream | Tensor]
    inputs: LatentInputs
    fusion: nn.Module | None = None
    beta: float | Tensor | None = None
    eps: Tensor | None = None
    component_noise: Tensor | None = None
    text_noise: Mapping[str, Tensor] | None = None
    generator: torch.Generator | None = None
    progress: float | Tensor | None = None

    @cached_property
    def experts(self) -> InferredExperts:
        """The expert of each modality."""
        return self.head.infer_experts(self.encoded, self.inputs.present, self.fusion)

    def posterior(self, members: Tensor, *, each_explains_itself: bool = False) -> LatentPosterior:
        """Return the posterior with components (C, M) or (C, M + 1), as `LatentHead.posterior` does."""
        return self.head.posterior(self.experts, members, each_explains_itself=each_explains_itself)

    def posterior_of(self, experts: InferredExperts) -> LatentPosterior:
        """Return the posterior of other experts, or of fewer present ones, with the components of the kind."""
        return self.head.posterior(experts, gaussians.components(self.head.config.kind, len(experts.present)))

    def likelihoods(self, inferred: Mapping[str, Tensor] | None = None) -> dict[str, Callable[[Tensor], Tensor]]:
        """Return the weighted log p(x_m|z) of each modality as a function of z.

        Private latents that are not `inferred`, as `LatentPosterior` says, follow their priors given z.
        """
        return self.head.log_likelihoods(
            self.inputs.targets,
            self.inputs.present,
            inferred,
            text_noise=self.text_noise,
            generator=self.generator,
            weighted=True,
        )

    def options(self, q: LatentPosterior) -> dict[str, Any]:
        """Return the keyword arguments that the bounds of `m3ae.models.bounds` share."""
        beta = self.head.config.beta if self.beta is None else self.beta
        return {"beta": beta, "eps": self.eps, "generator": self.generator, "prior": self.head.prior(q.inferred)}

    def references(
        self, q: LatentPosterior, of_prior: Tensor, of_experts: Tensor, groups: Tensor | None = None
    ) -> References:
        """Return references of the shared latent; private latents are held to their priors with weight 1.

        Args:
            q: The posterior.
            of_prior: (C, B) weight of p(z); dimensions may be 1.
            of_experts: (C, G, B) weight of q(z | each of G groups); dimensions may be 1.
            groups: (G, M) bool, the modalities of each group; each alone if None. A group that a sample lacks is
                N(0, I).
        """
        prior, present = self.head.prior(q.inferred), self.experts.present
        learned = self.head.shared_prior is not None
        columns = 1 if learned else q.size
        is_shared = torch.arange(columns + len(q.inferred), device=present.device) < columns
        weight = torch.where(is_shared, of_prior[..., None], 1)
        groups = torch.eye(len(present), dtype=torch.bool) if groups is None else groups
        members = groups.to(present.device)[..., None] & present
        products = gaussians.product_of_experts(self.experts.shared, members, self.head.prior_expert)
        others = [
            (ExpertReference(type(self.experts.shared)(*product), learned), of_experts[:, number, :, None])
            for number, product in enumerate(zip(*products, strict=True))
        ]
        return [(prior, weight), *others]

    def output(self, elbo: Elbo) -> M3AEForGenerationOutput:
        """Return the loss and its terms, each without the modality's weight."""
        unweighted = {
            name: elbo.log_likelihood[name] / modality.config.weight
            for name, modality in self.head.modalities.items()
            if name in self.inputs.present and name in elbo.log_likelihood
        }
        losses = {"kl": elbo.kl.sum(-1).mean()}
        for name, value in unweighted.items():
            losses[f"nll_{name}"] = -value.sum() / self.inputs.present[name].sum().clamp(min=1)
        return M3AEForGenerationOutput(elbo.loss, losses, elbo.kl, unweighted)
