"""The latent head: experts of any modalities, their joint posterior, and decoders that see only z.

Shapes: M experts, C mixture components, K samples, B batch, S tokens, D shared dimensions, P private ones of a
modality, Z = D + Σ P all of them, W width of an encoder.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import partial
from itertools import accumulate, pairwise
from typing import Any, NamedTuple, cast

import torch
from torch import Tensor, nn
from transformers import initialization as init

from m3ae.models import gaussians
from m3ae.models.adversarial import PatchDiscriminator
from m3ae.models.autoregressive import CausalConvolution, Pointwise
from m3ae.models.configuration import M3AEConfig
from m3ae.models.flows import FlowPrior
from m3ae.models.fusion import Stream
from m3ae.models.gaussians import Gaussian, Laplace, Mixture
from m3ae.models.holder import holder_pool
from m3ae.models.joint_expert import JointExpert
from m3ae.models.latent_configuration import LatentConfig
from m3ae.models.latent_networks import (
    CONVOLUTIONS,
    AttentionPool,
    Expert,
    PatchDecoder,
    Vectors,
)
from m3ae.models.likelihoods import Likelihood
from m3ae.models.modalities import Modalities, build_modalities
from m3ae.models.modalities.image import ImageModalityConfig
from m3ae.models.priors import ConditionalPrior, HierarchicalPrior, LearnedPrior, ZeroLinear

NARROW = -12.0  # log-variance of a posterior that is a point, almost
PSEUDO_INPUTS = 50


class LatentPosterior(NamedTuple):
    """q(z, all private latents | the present modalities).

    A component is the product of its experts in the shared dimensions. The private dimensions of a modality follow the
    posterior of that modality, whatever the component; where it is absent they follow N(0, I), the noise that the
    private latent is drawn with (`LatentHead.complete`).

    Attributes:
        mixture: Components (C, B, Z), the D shared dimensions first.
        inferred: Name → (B,) bool, whether the private latent is inferred; (C, B) where a component infers the private
            latents of its members only.
        size: D.
    """

    mixture: Mixture
    inferred: dict[str, Tensor]
    size: int

    @property
    def shared(self) -> Mixture:
        """The posterior of the shared latent alone, (C, B, D)."""
        return Mixture(self.mixture.components.columns(slice(0, self.size)), self.mixture.weights)

    @property
    def mean(self) -> Tensor:
        """Mean of the shared latent, (B, D)."""
        return (self.mixture.weights[..., None] * self.shared.components.mu).sum(0)


class InferredExperts(NamedTuple):
    """What each modality infers alone.

    Attributes:
        shared: (M, B, D) experts over z; finite where the modality is absent.
        present: (M, B) bool.
        private: Name → (B, P) posterior of the private latent.
        joint: Returns the joint expert (B, D) of the modalities that are present (M, B); None without one.
    """

    shared: Gaussian
    present: Tensor
    private: dict[str, Gaussian]
    joint: Callable[[Tensor], Gaussian] | None = None


class LatentHead(nn.Module):
    """Experts, decoders and likelihoods of all modalities."""

    def __init__(self, config: M3AEConfig) -> None:
        super().__init__()
        assert isinstance(config.latent, LatentConfig)
        self.config = latent = config.latent
        self.prior_expert = latent.prior_expert or "always"
        self.is_deterministic = latent.objective == "mfm"
        self.modalities = build_modalities(config)
        self.experts = nn.ModuleDict({name: self.modalities[name].build_expert(latent) for name in latent.experts})
        of_trunk = {name: str(m.stream) for name, m in self.modalities.items() if m.stream and name in latent.experts}
        fused = of_trunk if len(of_trunk) > 1 else {}
        experts = cast(Mapping[str, Expert], self.experts)
        self.joint_expert = JointExpert(experts, fused, latent) if latent.kind == "joint" else None
        options = {name: modality.config for name, modality in self.modalities.items()}
        self.decoders = nn.ModuleDict(
            {
                name: modality.build_decoder(latent.size + options[name].private_size)
                for name, modality in self.modalities.items()
            }
        )
        likelihoods = {name: modality.build_likelihood() for name, modality in self.modalities.items()}
        self.likelihoods = nn.ModuleDict({name: value for name, value in likelihoods.items() if value is not None})
        self.shared_prior: LearnedPrior | FlowPrior | None = None  # of z; None is N(0, I)
        if latent.learned_prior:
            self.shared_prior = LearnedPrior(latent.learned_prior, latent.size)
        elif latent.flow_prior:
            self.shared_prior = FlowPrior(latent.flow_prior, latent.size)
        has_pseudo = latent.objective == "meme"  # see `m3ae.models.meme`
        shapes = {name: [PSEUDO_INPUTS, expert.width] for name, expert in experts.items() if has_pseudo}
        self.pseudo_features = Vectors(shapes, std=1.0)
        self.private_priors = nn.ModuleDict(
            {
                name: ConditionalPrior(latent.size, modality.private_size, modality.hidden_size // 2)
                for name, modality in options.items()
                if modality.private_size
            }
        )
        deceives = [
            n for n, o in options.items() if isinstance(o, ImageModalityConfig) and (o.adversarial or {}).get("weight")
        ]
        channels = {name: self.modalities[name].shape[0] for name in deceives}
        self.discriminators = nn.ModuleDict({name: PatchDiscriminator(count) for name, count in channels.items()})
        ends = [*accumulate((modality.private_size for modality in options.values()), initial=latent.size)]
        self.private_dimensions = {name: slice(*pair) for name, pair in zip(options, pairwise(ends), strict=True)}

    def infer_experts(
        self, inputs: Mapping[str, Stream | Tensor], present: Mapping[str, Tensor], fusion: nn.Module | None = None
    ) -> InferredExperts:
        """Infer what each modality says of z, and its private latent.

        Args:
            inputs: Name → tokens or values of some modalities; those of absent samples are finite.
            present: Name → (B,) bool, for the same modalities.
            fusion: The trunk's fusion, which the joint expert needs if it reads several streams.
        """
        like = next(iter(present.values()))
        nowhere = torch.zeros_like(like)
        nothing = torch.zeros(like.shape[0], self.config.size, device=like.device)
        shared, private, features = [], {}, {}
        for name, expert in cast(Mapping[str, Expert], self.experts).items():
            gaussian = Gaussian(nothing, nothing)
            if name in inputs:
                features[name] = expert.read(inputs[name])
                gaussian, private[name] = expert(features[name])
                if self.is_deterministic:
                    mu, logvar = private[name]
                    private[name] = Gaussian(mu, torch.full_like(logvar, NARROW))
            shared.append(gaussian)
        family = Laplace if self.config.family == "laplace" else Gaussian
        stacked = family(
            *(torch.stack([value.to(nothing) for value in values]) for values in zip(*shared, strict=True))
        )
        joint = None if self.joint_expert is None else partial(self.joint_expert, inputs, features, fusion)
        everyone = torch.stack([present.get(name, nowhere) for name in self.experts])
        return InferredExperts(stacked, everyone, private, joint)

    @property
    def fuses(self) -> bool:
        """Whether the joint expert needs the trunk's fusion."""
        return self.joint_expert is not None and bool(self.joint_expert.streams)

    def covered(self, members: Tensor) -> Tensor:
        """Return the modalities (C, M) that components (C, M) or (C, M + 1) read."""
        count = len(self.experts)
        return members[:, :count] | members[:, count:].any(1, keepdim=True)

    def posterior(
        self, experts: InferredExperts, members: Tensor, *, each_explains_itself: bool = False
    ) -> LatentPosterior:
        """Return the posterior of the present modalities.

        Args:
            experts: What `infer_experts` returns.
            members: (C, M) bool, the components, over all experts; (C, M + 1) with the joint expert as the last one. A
                component of everything is the joint expert for the samples that have all modalities, and the product
                of the present experts for the others.
            each_explains_itself: Whether a component infers the private latents of its members only.
        """
        shared, present, private, joint = experts
        if self.config.kind == "holder":
            mixture = holder_pool(shared, present, members)
        elif members.shape[1] == len(present):
            mixture = gaussians.posterior(shared, present, members, self.prior_expert)
        else:
            assert joint is not None
            mixture = self._with_joint(experts, joint(present), members.to(present.device))
        if self.is_deterministic:
            narrow = torch.full_like(mixture.components.logvar, NARROW) * present.any(0)[:, None]
            mixture = mixture._replace(components=mixture.components._replace(logvar=narrow))
        if each_explains_itself:
            present = self.covered(members).to(present.device)[..., None] & present  # (C, M, B)
        inferred, joined = {}, [mixture.components]
        for number, name in enumerate(self.experts):
            if name in self.private_priors:
                inferred[name] = present[..., number, :]
                nothing = shared.mu.new_zeros(1, self.modalities[name].config.private_size)
                values = (
                    torch.where(inferred[name][..., None], gaussians.upcast(value), 0)
                    for value in private.get(name, Gaussian(nothing, nothing))
                )
                joined.append(Gaussian(*(value.expand(len(members), shared.mu.shape[1], -1) for value in values)))
        components = type(mixture.components)(*(torch.cat(values, -1) for values in zip(*joined, strict=True)))
        return LatentPosterior(Mixture(components, mixture.weights), inferred, self.config.size)

    def _with_joint(self, experts: InferredExperts, joint: Gaussian, members: Tensor) -> Mixture:
        present, rows = experts.present, experts.present.any(0)
        if members.all():
            rows = experts.present.all(0)
            present = present & ~rows
        available = members[..., None] & torch.cat([present, rows[None]])  # (C, M + 1, B)
        product = gaussians.product_of_experts(experts.shared, available[:, :-1], self.prior_expert)
        pairs = zip(joint, product, strict=True)
        components = (torch.where(available[:, -1, :, None], gaussians.upcast(one), other) for one, other in pairs)
        return Mixture(Gaussian(*components), gaussians.component_weights(available))

    def precision_shares(self, experts: InferredExperts) -> dict[str, Tensor]:
        """Return the share (B, D) of `prior` and of each expert in the precision of z given all present modalities."""
        shares = gaussians.precision_shares(experts.shared, experts.present, self.prior_expert)
        return dict(zip(["prior", *self.experts], shares, strict=True))

    def prior(self, inferred: Mapping[str, Tensor], condition: Gaussian | None = None) -> HierarchicalPrior | None:
        """Return the prior of the latents where some are `inferred`; z follows `condition` (B, D). None is N(0, I)."""
        shared = self.shared_prior if condition is None else condition
        if shared is None and not self.private_priors:
            return None
        conditional = cast(Mapping[str, ConditionalPrior], self.private_priors)
        return HierarchicalPrior(self.config.size, shared, conditional, self.private_dimensions, inferred)

    def complete(self, z: Tensor, inferred: Mapping[str, Tensor]) -> Tensor:
        """Draw the private latents that are not inferred from the noise that z (…, B, Z) has in their dimensions.

        Args:
            z: (…, B, Z).
            inferred: Name → (…, B) bool, where the private latent is inferred; nowhere if it is left out.

        Returns:
            (…, B, Z).
        """
        nowhere = torch.zeros(z.shape[-2], dtype=torch.bool, device=z.device)
        private = [self._private(name, z, inferred.get(name, nowhere)) for name in self.private_priors]
        return torch.cat([z[..., : self.config.size], *private], -1)

    def _private(self, name: str, z: Tensor, inferred: Tensor | None) -> Tensor:
        private = z[..., self.private_dimensions[name]]
        if inferred is None or name not in self.private_priors:
            return private
        prior = cast(ConditionalPrior, self.private_priors[name])
        return torch.where(inferred[..., None], private, prior.transform(private, z[..., : self.config.size]))

    def decoder_input(self, name: str, z: Tensor, inferred: Tensor | None = None) -> Tensor:
        """Return what the decoder of the modality `name` sees of points z (…, B, Z): (…, B, D + P).

        The private latent follows its prior where `inferred` (…, B) is False, as in `complete`; nowhere if it is None.
        """
        latents = torch.cat([z[..., : self.config.size], self._private(name, z, inferred)], -1)
        return latents.to(gaussians.dtype_of(self.decoders[name]))

    def log_likelihoods(
        self,
        targets: Modalities,
        present: Mapping[str, Tensor],
        inferred: Mapping[str, Tensor] | None = None,
        text_noise: Mapping[str, Tensor] | None = None,
        generator: torch.Generator | None = None,
        *,
        weighted: bool = False,
    ) -> dict[str, Callable[[Tensor], Tensor]]:
        """Return log p(x_m|z) of each modality as a function of points z (…, B, Z), for `m3ae.models.bounds`.

        The value is 0 for samples that lack the modality, and for all samples if `targets` does. The condition of
        `cvae` is left out: nothing teaches its decoders.

        Args:
            targets: Name → tensors of a batch, finite.
            present: Name → (B,) bool.
            inferred: Name → (…, B) bool, where the private latent is inferred; everywhere if None.
            text_noise: Name → uniform noise (…, B, 1 + L), see `m3ae.models.text_decoders`.
            generator: Source of the noise that is None.
            weighted: Whether each modality has its weight.
        """
        return {
            name: LogLikelihood(
                self,
                name,
                targets.get(name),
                present.get(name),
                (inferred or {}).get(name),
                (text_noise or {}).get(name),
                generator,
                modality.config.weight if weighted else 1.0,
            )
            for name, modality in self.modalities.items()
            if name in self.config.decoded
        }

    @torch.no_grad()
    def decode(
        self,
        name: str,
        z: Tensor,
        text_options: Mapping[str, Any] | None = None,
        generator: torch.Generator | None = None,
        query: Any = None,
    ) -> Tensor:
        """Return what is expected of a modality at z (…, Z): the mean of its likelihood, or its likeliest text.

        An autoregressive decoder of images or sequences draws from its likelihood.

        Args:
            name: Name of the modality.
            z: Points.
            text_options: Options of an autoregressive decoder of texts, see `TextDecoder.generate`.
            generator: Source of the noise of draws.
            query: Poses of slices, see `Slices.queried`.

        Returns:
            (…, *shape) values, (…, Q, *shape) slices, (…, A) probabilities of classes, or (…, L) token ids.
        """
        latents = self.modalities[name].queried(self.decoder_input(name, z), query)
        rows = latents.flatten(0, -2)
        networks = (self.decoders[name], self.likelihood(name))
        values = self.modalities[name].decode(*networks, rows, text_options or {}, generator)
        decoded: Tensor = values.unflatten(0, latents.shape[:-1])
        return decoded

    def likelihood(self, name: str) -> nn.Module | None:
        """Return the likelihood around what the decoder of a modality predicts; None if the decoder has one."""
        return dict(self.likelihoods.items()).get(name)


@dataclass(frozen=True, eq=False)
class LogLikelihood:
    """log p(x_m|z) of a modality as a function of z; the attributes are those of `LatentHead.log_likelihoods`."""

    head: LatentHead
    name: str
    target: Mapping[str, Tensor] | None
    present: Tensor | None
    inferred: Tensor | None
    noise: Tensor | None
    generator: torch.Generator | None
    weight: float

    def __call__(self, z: Tensor) -> Tensor:
        """Return the log-likelihood (…, B) at points (…, B, Z)."""
        if self.target is None or self.present is None:
            return z.new_zeros(z.shape[:-1])
        head, name = self.head, self.name
        latents = head.decoder_input(name, z, self.inferred)
        value = head.modalities[name].log_likelihood(
            head.decoders[name], head.likelihood(name), latents, self.target, self.noise, self.generator
        )
        return self.weight * torch.where(self.present, value, 0)


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
    elif isinstance(module, (*CONVOLUTIONS, CausalConvolution, Pointwise)):
        # As He et al. (2015) do: `std` is meant for hundreds of inputs.
        init.normal_(module.weight, std=math.sqrt(2 / (module.inputs_per_channel * module.in_channels)))
    elif isinstance(module, Likelihood) and module.log_scale is not None:
        init.constant_(module.log_scale, math.log(module.initial_scale))
    elif isinstance(module, LearnedPrior):
        init.normal_(module.means)
        init.zeros_(module.logvars)
        init.zeros_(module.logits)
    elif isinstance(module, (FlowPrior, Vectors)):
        module.reset()
    elif isinstance(module, ZeroLinear):
        init.zeros_(module.weight)
        init.zeros_(module.bias)
