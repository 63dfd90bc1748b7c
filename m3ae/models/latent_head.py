"""The latent head: experts of any modalities, their joint posterior, and decoders that see only z.

Shapes: M experts, C mixture components, K samples, B batch, S tokens, D shared dimensions, P private ones of a
modality, Z = D + Σ P all of them, W width of an encoder.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from functools import partial
from typing import Any, NamedTuple, cast

import torch
from torch import Tensor, nn
from transformers import initialization as init

from m3ae.models import gaussians
from m3ae.models.configuration import M3AEConfig
from m3ae.models.fusion import Stream
from m3ae.models.gaussians import Gaussian, Mixture
from m3ae.models.latent_configuration import LatentConfig
from m3ae.models.latent_networks import (
    AttentionPool,
    DoublingConvolution,
    Expert,
    HalvingConvolution,
    Likelihood,
    PatchDecoder,
)
from m3ae.models.modalities import Modalities, build_modalities
from m3ae.models.priors import ConditionalPrior, HierarchicalPrior, LearnedPrior, ZeroLinear


class LatentPosterior(NamedTuple):
    """q(z, all private latents | the present modalities).

    A component is the product of its experts in the shared dimensions. The private dimensions of a modality have its
    own posterior, whatever the component; where it is absent they have N(0, I), the noise that its private latent is
    drawn with (`LatentHead.complete`).

    Attributes:
        mixture: Components (C, B, Z), the D shared dimensions first.
        own: Name → (B,) bool, whether the private latent is inferred; (C, B) where each subset explains itself, and
            infers its own ones only.
        size: D.
    """

    mixture: Mixture
    own: dict[str, Tensor]
    size: int

    @property
    def shared(self) -> Mixture:
        """The posterior of the shared latent alone, (C, B, D)."""
        mu, logvar = self.mixture.components
        return Mixture(Gaussian(mu[..., : self.size], logvar[..., : self.size]), self.mixture.weights)

    @property
    def mean(self) -> Tensor:
        """Mean of the shared latent, (B, D)."""
        return (self.mixture.weights[..., None] * self.shared.components.mu).sum(0)


class InferredExperts(NamedTuple):
    """What each modality infers on its own.

    Attributes:
        shared: (M, B, D) experts over z.
        given: (M, B) bool, which of them are there; what stands elsewhere is finite.
        private: Name → (B, P) posterior of the private latent.
    """

    shared: Gaussian
    given: Tensor
    private: dict[str, Gaussian]


class LatentHead(nn.Module):
    """Experts, decoders and likelihoods of all modalities."""

    def __init__(self, config: M3AEConfig) -> None:
        super().__init__()
        assert isinstance(config.latent, LatentConfig)
        self.config = config.latent
        self.modalities = build_modalities(config)
        options = {name: modality.config for name, modality in self.modalities.items()}
        self.experts = nn.ModuleDict(
            {name: Expert(self.modalities[name], self.config) for name in self.config.experts}
        )
        self.decoders = nn.ModuleDict(
            {
                name: modality.build_decoder(self.config.size + modality.config.private_size)
                for name, modality in self.modalities.items()
            }
        )
        likelihoods = {name: modality.build_likelihood() for name, modality in self.modalities.items()}
        self.likelihoods = nn.ModuleDict({name: own for name, own in likelihoods.items() if own is not None})
        count = self.config.learned_prior
        self.shared_prior = LearnedPrior(count, self.config.size) if count else None  # of z; None is N(0, I)
        self.private_priors = nn.ModuleDict(
            {
                name: ConditionalPrior(self.config.size, modality.private_size, modality.hidden_size // 2)
                for name, modality in options.items()
                if modality.private_size
            }
        )
        bounds = [self.config.size]
        for modality in options.values():
            bounds.append(bounds[-1] + modality.private_size)
        self.private_dimensions = {
            name: slice(start, end) for name, start, end in zip(self.modalities, bounds, bounds[1:], strict=False)
        }

    def posterior(
        self, inferred: InferredExperts, members: Tensor, *, each_explains_itself: bool = False
    ) -> LatentPosterior:
        """Return the posterior given any of the modalities.

        Args:
            inferred: From `infer_experts`.
            members: (C, M) bool, the components, over all experts.
            each_explains_itself: Whether a component infers the private latents of its own members only.
        """
        experts, given, private = inferred
        mixture = gaussians.posterior(experts, given, members, self.config.prior_expert)
        available = members.to(given.device)[..., None] & given if each_explains_itself else given  # (C, M, B), (M, B)
        own = {
            name: available[..., number, :] for number, name in enumerate(self.experts) if name in self.private_priors
        }
        parts = [mixture.components]
        for name in own:
            nothing = experts.mu.new_zeros(1, self.modalities[name].config.private_size)
            expert = private.get(name, Gaussian(nothing, nothing))
            filled = (torch.where(own[name][..., None], gaussians.upcast(part), 0) for part in expert)
            parts.append(Gaussian(*(part.expand(members.shape[0], experts.mu.shape[1], -1) for part in filled)))
        joined = Gaussian(*(torch.cat(values, -1) for values in zip(*parts, strict=True)))
        return LatentPosterior(Mixture(joined, mixture.weights), own, self.config.size)

    def precision_shares(self, inferred: InferredExperts) -> dict[str, Tensor]:
        """Return the share (B, D) of `prior` and of each expert in the precision of z given all that is there."""
        shares = gaussians.precision_shares(inferred.shared, inferred.given, self.config.prior_expert)
        return dict(zip(["prior", *self.experts], shares, strict=True))

    def infer_experts(self, inputs: Mapping[str, Stream | Tensor], present: Mapping[str, Tensor]) -> InferredExperts:
        """Infer what each modality says of z, and its private latent.

        Args:
            inputs: Name → tokens or values of some modalities; those of absent samples are finite.
            present: Name → (B,) bool, for the same modalities.
        """
        like = next(iter(present.values()))
        nowhere = torch.zeros_like(like)
        given = torch.stack([present.get(name, nowhere) for name in self.experts])  # (M, B)
        shared, private = {}, {}
        for name in self.experts:
            if name in inputs:
                shared[name], private[name] = self.experts[name](inputs[name])
        zeros = torch.zeros(like.shape[0], self.config.size, device=like.device)
        filled = [shared.get(name, Gaussian(zeros, zeros)) for name in self.experts]
        experts = Gaussian(
            torch.stack([e.mu.to(zeros) for e in filled]), torch.stack([e.logvar.to(zeros) for e in filled])
        )
        return InferredExperts(experts, given, private)

    def prior(self, own: Mapping[str, Tensor]) -> HierarchicalPrior | None:
        """Return the prior of all latents; None if it is N(0, I).

        Args:
            own: Of the posterior that it is for, see `LatentPosterior`.
        """
        if self.shared_prior is None and not self.private_priors:
            return None
        conditional = cast(Mapping[str, ConditionalPrior], self.private_priors)
        return HierarchicalPrior(self.config.size, self.shared_prior, conditional, self.private_dimensions, own)

    def complete(self, z: Tensor, own: Mapping[str, Tensor]) -> Tensor:
        """Put private latents in the place of the noise that they are drawn with, (…, Z).

        Args:
            z: (…, B, Z).
            own: Name → (…, B) bool, where the private latent is there already; nowhere if it is left out.
        """
        nowhere = torch.zeros(z.shape[-2], dtype=torch.bool, device=z.device)
        shared = z[..., : self.config.size]
        return torch.cat(
            [shared, *(self._private(name, z, own.get(name, nowhere)) for name in self.private_priors)], -1
        )

    def _private(self, name: str, z: Tensor, own: Tensor | None) -> Tensor:
        private = z[..., self.private_dimensions[name]]
        if own is None or name not in self.private_priors:
            return private
        prior = cast(ConditionalPrior, self.private_priors[name])
        drawn = prior.transform(private, z[..., : self.config.size])
        return torch.where(own[..., None], private, drawn)

    def decoder_input(self, name: str, z: Tensor, own: Tensor | None = None) -> Tensor:
        """Return what the decoder of a modality sees of points z (…, B, Z): the shared and its private part.

        Args:
            name: Of the modality.
            z: (…, B, Z).
            own: (…, B) bool, see `complete`; everywhere if None.

        Returns:
            (…, B, D + P).
        """
        latents = torch.cat([z[..., : self.config.size], self._private(name, z, own)], -1)
        return latents.to(gaussians.dtype_of(self.decoders[name]))

    def log_likelihoods(
        self,
        targets: Modalities,
        present: Mapping[str, Tensor],
        own: Mapping[str, Tensor] | None = None,
        text_noise: Mapping[str, Tensor] | None = None,
        generator: torch.Generator | None = None,
    ) -> dict[str, Callable[[Tensor], Tensor]]:
        """Return log p(x_m|z) of each modality as a function of points z (…, B, Z), for `m3ae.models.bounds`.

        It is 0 for samples that lack the modality, and for all samples if `targets` does.

        Args:
            targets: Name → tensors of a batch, finite.
            present: Name → (B,) bool.
            own: Name → (…, B) bool, see `complete`; everywhere if None.
            text_noise: Name → uniform noise (…, B, 1 + L), see `m3ae.models.text_decoders`.
            generator: Draws the noise that is not given.
        """
        found: dict[str, Callable[[Tensor], Tensor]] = {}
        for name in self.modalities:
            if name in targets:
                there = None if own is None else own.get(name)
                noise = None if text_noise is None else text_noise.get(name)
                found[name] = partial(
                    self._log_likelihood, name, targets[name], present[name], there, noise, generator
                )
            else:
                found[name] = _nothing
        return found

    def _log_likelihood(
        self,
        name: str,
        target: Mapping[str, Tensor],
        present: Tensor,
        own: Tensor | None,
        noise: Tensor | None,
        generator: torch.Generator | None,
        z: Tensor,
    ) -> Tensor:
        latents = self.decoder_input(name, z, own)
        value = self.modalities[name].log_likelihood(
            self.decoders[name], self._likelihood(name), latents, target, noise, generator
        )
        return torch.where(present, value, 0)

    @torch.no_grad()
    def decode(self, name: str, z: Tensor, text_options: Mapping[str, Any] | None = None) -> Tensor:
        """Return what is expected of a modality at z (…, Z): the mean of its likelihood, or its likeliest text.

        Args:
            name: Of the modality.
            z: Points.
            text_options: Of an autoregressive decoder, see `TextDecoder.generate`.

        Returns:
            (…, *shape) values, (…, A) probabilities of classes, or (…, L) token ids.
        """
        latents = self.decoder_input(name, z)
        rows = latents.flatten(0, -2)
        values = self.modalities[name].decode(self.decoders[name], self._likelihood(name), rows, text_options or {})
        decoded: Tensor = values.unflatten(0, latents.shape[:-1])
        return decoded

    def _likelihood(self, name: str) -> nn.Module | None:
        return dict(self.likelihoods.items()).get(name)


def _nothing(z: Tensor) -> Tensor:
    return z.new_zeros(z.shape[:-1])


def init_latent_weights(module: nn.Module, std: float) -> None:
    """Initialise what `PreTrainedModel._init_weights` does not know."""
    if isinstance(module, AttentionPool):
        init.normal_(module.queries, std=module.queries.shape[-1] ** -0.5)
    elif isinstance(module, nn.MultiheadAttention):
        assert module.in_proj_weight is not None and module.in_proj_bias is not None
        init.normal_(module.in_proj_weight, std=std)
        init.zeros_(module.in_proj_bias)
    elif isinstance(module, PatchDecoder):
        module.reset_queries()
    elif isinstance(module, HalvingConvolution | DoublingConvolution):
        # As He et al. (2015) do: `std` is meant for hundreds of inputs.
        init.normal_(module.weight, std=math.sqrt(2 / (module.inputs_per_channel * module.in_channels)))
    elif isinstance(module, Likelihood) and module.log_scale is not None:
        init.constant_(module.log_scale, math.log(module.initial_scale))
    elif isinstance(module, LearnedPrior):
        init.normal_(module.means)
        init.zeros_(module.logvars)
        init.zeros_(module.logits)
    elif isinstance(module, ZeroLinear):
        init.zeros_(module.weight)
        init.zeros_(module.bias)
