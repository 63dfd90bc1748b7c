"""M3AE for generation: a multimodal VAE whose experts are the trunk's encoders, and small ones of further modalities.

Shapes: B batch, K samples, C mixture components, M experts, D shared latent dimensions, Z those and all private ones.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from typing import Any, Literal, cast

import torch
from torch import Tensor, nn

from m3ae.models import bounds, gaussians
from m3ae.models.bounds import Elbo
from m3ae.models.configuration import M3AEConfig
from m3ae.models.flows import FITTED, FlowPrior
from m3ae.models.fusion import Fusion, Stream
from m3ae.models.gaussians import Prior
from m3ae.models.latent_configuration import LatentConfig
from m3ae.models.latent_head import (
    InferredExperts,
    LatentHead,
    LatentPosterior,
    init_latent_weights,
)
from m3ae.models.latent_step import M3AEForGenerationOutput
from m3ae.models.modalities import LatentInputs, Modalities, build_modalities, check_names, only, read_inputs
from m3ae.models.modeling import OTHER_HEADS, STREAMS, M3AEEncoders, M3AEPreTrainedModel
from m3ae.models.objectives import latent_pass, posterior_members
from m3ae.models.option_checks import check_choice, checked_arguments
from m3ae.models.priors import FittedPrior


class M3AEForGeneration(M3AEPreTrainedModel):
    """A multimodal VAE over any modalities (`config.latent`). A sample may lack any of them.

    The parameters of the trunk's encoders have the names of a pre-trained M3AE, whose encoders therefore load; an
    encoder that no modality uses is not built.

    The methods take modalities as a collator returns them: name → `pixel_values` (B, C, S, S) in [0, 1], with the
    `pixel_mask` (B, S, S) of padded ones, `input_ids` and `attention_mask` (B, L), `values` (B, …) or `labels` (B,),
    and `present` (B,) bool, True for all if left out. Rows of absent samples are never read; a modality that is left
    out is absent from every sample. The methods raise ValueError if a modality is unknown or lacks a tensor, or if
    there is none. `generator` is the source of all noise that is None.
    """

    main_input_name = "modalities"
    _keys_to_ignore_on_load_unexpected = [  # noqa: RUF012 (a list in the base class)
        *OTHER_HEADS,
        r"^m3ae\.(fusion|poolers|image_encoder|text_encoder|projections|modality_types)\.",
    ]

    def __init__(self, config: M3AEConfig) -> None:
        super().__init__(config)
        if not isinstance(config.latent, LatentConfig):
            raise ValueError("M3AEForGeneration needs config.latent, the options of the latent head; got None.")
        streams = {modality.stream for modality in build_modalities(config).values()}
        self.main_input_name = "input_ids"  # Trainer counts the elements of this tensor, if the batch has it
        self.m3ae = M3AEEncoders(config, [name for name in STREAMS if name in streams])
        self.latent_head = LatentHead(config)
        if self.latent_head.fuses:
            self.m3ae.fusion = Fusion(config, tuple(self.m3ae.projections))
        self.fitted_prior: FittedPrior | FlowPrior | None = None
        if config.latent.prior_components:
            self.fitted_prior = FittedPrior(config.latent.prior_components, config.latent.size)
        elif config.latent.prior_flow:
            self.fitted_prior = FlowPrior(config.latent.prior_flow, config.latent.size)
        self.post_init()

    @torch.no_grad()
    def _init_weights(self, module: nn.Module) -> None:
        super()._init_weights(module)
        init_latent_weights(module, self.config.initializer_range)

    @property
    def latent(self) -> LatentConfig:
        """Options of the latent head."""
        assert isinstance(self.config.latent, LatentConfig)
        return self.config.latent

    @checked_arguments
    def forward(
        self,
        modalities: Modalities,
        beta: float | Tensor | None = None,
        eps: Tensor | None = None,
        component_noise: Tensor | None = None,
        text_noise: Mapping[str, Tensor] | None = None,
        generator: torch.Generator | None = None,
        progress: float | Tensor | None = None,
        return_loss: bool = True,
    ) -> M3AEForGenerationOutput:
        """Compute the training objective, each modality with its weight.

        Args:
            modalities: Name → tensors of the modality.
            beta: Weight of the KL; the config's if None.
            eps: Standard normal noise of the latents, as `m3ae.models.latent_step.LatentStep` takes it.
            component_noise: Uniform noise that draws components.
            text_noise: Name → uniform noise that masks tokens.
            generator: Source of the noise that is None.
            progress: Share of the training steps that are done, for images with `adversarial`; 1 if None.
            return_loss: Not used; tells Trainer that a loss needs no labels.
        """
        inputs = self._read(modalities)
        noise = {"eps": eps, "component_noise": component_noise, "text_noise": text_noise, "generator": generator}
        return latent_pass(
            self.latent_head, self._encode(inputs), inputs, beta=beta, fusion=self._fusion, progress=progress, **noise
        )

    def elbo(
        self,
        modalities: Modalities,
        given: Iterable[str] | None = None,
        *,
        joint: bool = False,
        eps: Tensor | None = None,
        text_noise: Mapping[str, Tensor] | None = None,
        generator: torch.Generator | None = None,
    ) -> Elbo:
        """Compute the bound on log p(the present modalities) with β = 1, no weights, and every component.

        That of `cvae` is on log p(the others | the condition), and its KL is to the latents of the condition.

        Args:
            modalities: Name → tensors of the modality.
            given: Names of the modalities that the posterior is inferred from; all if None.
            joint: Whether the posterior is the product of all modalities alone, as for `infer_latent`.
            eps: Standard normal noise (C, B, Z).
            text_noise: Name → uniform noise of the masked tokens, (C, B, 1 + L).
            generator: Source of the noise.

        Returns:
            `.bound` (B,) in nats, and its terms.
        """
        q = self.infer_latent(only(modalities, given), joint=joint, generator=generator)
        likelihoods = self.log_likelihoods(modalities, q.inferred, text_noise=text_noise, generator=generator)
        return bounds.elbo(q.mixture, likelihoods, eps=eps, generator=generator, prior=self._prior(modalities, q))

    @torch.no_grad()
    def log_evidence(
        self,
        modalities: Modalities,
        num_samples: int,
        given: Iterable[str] | None = None,
        *,
        chunk_size: int = 100,
        generator: torch.Generator | None = None,
    ) -> Tensor:
        """Estimate log p(the present modalities) in nats, (B,), by importance samples; `cvae` is given its condition.

        Args:
            modalities: Name → tensors of the modality.
            num_samples: Number of importance samples K.
            given: Names of the modalities that the proposal, the model's posterior, is inferred from; all if None.
            chunk_size: Number of samples to decode at once.
            generator: Source of the noise.
        """
        q = self.infer_latent(only(modalities, given), generator=generator)
        return bounds.importance_log_likelihood(
            q.mixture,
            self.log_likelihoods(modalities, q.inferred, generator=generator),
            num_samples,
            chunk_size=chunk_size,
            generator=generator,
            prior=self._prior(modalities, q),
        )

    def log_likelihoods(
        self,
        modalities: Modalities,
        inferred: Mapping[str, Tensor] | None = None,
        *,
        text_noise: Mapping[str, Tensor] | None = None,
        generator: torch.Generator | None = None,
    ) -> dict[str, Callable[[Tensor], Tensor]]:
        """Return log p(x_m|z) (…, B) of each modality as a function of z (…, B, Z), in nats and unweighted.

        Args:
            modalities: Name → tensors of the modality.
            inferred: `LatentPosterior.inferred` of the posterior that z is drawn from: other private latents follow
                their priors given z. If None, z is complete.
            text_noise: Name → uniform noise of the masked tokens, as for `LatentHead.log_likelihoods`.
            generator: Source of the noise.
        """
        inputs = self._read(modalities)
        return self.latent_head.log_likelihoods(inputs.targets, inputs.present, inferred, text_noise, generator)

    def infer_latent(
        self, available: Modalities, *, joint: bool = False, generator: torch.Generator | None = None
    ) -> LatentPosterior:
        """Return the posterior given any of the modalities.

        Args:
            available: Name → tensors of some modalities.
            joint: For a `mopoe`, whether to return only the product of all available modalities, rather than the
                mixture over their subsets. A `moe` and a `holder` have no such component.
            generator: Source of the subsets of a `mopoe` of more than five modalities.
        """
        return self.latent_head.posterior(self._infer_experts(available), self._members(joint, generator))

    def infer_subsets(
        self, available: Modalities, subsets: Iterable[Collection[str]], generator: torch.Generator | None = None
    ) -> list[LatentPosterior]:
        """Return the posterior given each of several subsets, as `infer_latent` does with `joint`.

        Every modality is encoded once.

        Args:
            available: Name → tensors of the modalities of all subsets.
            subsets: Names of the modalities of each subset.
            generator: Source of the noise.
        """
        experts, members = self._infer_experts(available), self._members(True, generator)
        posteriors = []
        for names in subsets:
            included = torch.tensor([name in names for name in self.latent.experts], device=self.device)
            of_subset = experts._replace(present=experts.present & included[:, None])
            posteriors.append(self.latent_head.posterior(of_subset, members))
        return posteriors

    def sample_latent(
        self,
        available: Modalities,
        num_samples: int = 1,
        temperature: float = 1.0,
        generator: torch.Generator | None = None,
    ) -> Tensor:
        """Draw z and all private latents (K, B, Z) given any of the modalities, as `generate_modalities` does."""
        q, inferred, _ = self.infer_latent(available, joint=True, generator=generator)
        noise = torch.rand(q.weights.shape[1], generator=generator, device=q.weights.device)
        chosen = gaussians.choose(q.components, gaussians.stratified_components(q.weights, num_samples, noise))
        eps = torch.randn(chosen.mu.shape, generator=generator, device=noise.device)
        return self.latent_head.complete(gaussians.sample(chosen, eps=eps * temperature), inferred)

    def precision_shares(self, available: Modalities) -> dict[str, Tensor]:
        """Return the share (B, D) of `prior` and of each expert in the precision of the product of all of them."""
        return self.latent_head.precision_shares(self._infer_experts(available))

    @torch.no_grad()
    def generate_modalities(
        self,
        given: Modalities,
        targets: Sequence[str] | Mapping[str, Any] | None = None,
        num_samples: int = 1,
        temperature: float = 1.0,
        generator: torch.Generator | None = None,
        text_options: Mapping[str, Any] | None = None,
    ) -> dict[str, Tensor]:
        """Generate modalities from others: draw z from the joint posterior, and decode it.

        The private latents of the modalities in `given` follow their posteriors, the others their priors given z.

        Args:
            given: Name → tensors of some modalities of B samples.
            targets: Names of the modalities to generate; all if None. A mapping also says what to ask for: the poses
                (Q, P), or (B, Q, P), of slices, None for other kinds.
            num_samples: Number of samples K.
            temperature: Factor on the standard deviation of all latents; 0 for the means.
            generator: Source of the noise.
            text_options: Options of transformers' `generate` for autoregressive text decoders, such as `{"num_beams":
                4}` or `{"do_sample": True, "top_p": 0.9}`, which draws from the global random state.

        Returns:
            Name → (K, B, C, S, S) means of pixels, (K, B, Q, C, H, W) of slices, (K, B, …) means of values, (K, B, A)
            probabilities of classes, or (K, B, L) token ids of the likeliest text.
        """
        z = self.sample_latent(given, num_samples, temperature, generator)
        return self.decode(z, targets, text_options, generator)

    @torch.no_grad()
    def sample_prior(
        self,
        num_samples: int,
        density: Literal["own", "fitted"] = "own",
        targets: Sequence[str] | Mapping[str, Any] | None = None,
        temperature: float = 1.0,
        generator: torch.Generator | None = None,
        text_options: Mapping[str, Any] | None = None,
    ) -> dict[str, Tensor]:
        """Draw z from the prior, and decode all modalities from it.

        Args:
            num_samples: Number of samples n.
            density: "own" for the model's prior of z, N(0, I) or the learned one; "fitted" for `fit_prior`'s.
            targets: As for `generate_modalities`.
            temperature: Factor on the standard deviation of the model's prior, or of its Gaussians, and of the private
                latents given z; not of a fitted prior.
            generator: Source of the noise, on the model's device.
            text_options: Options of autoregressive text decoders, as for `generate_modalities`.

        Returns:
            As `generate_modalities`, but (n, …).

        Raises:
            ValueError: No prior has been fitted, or a target is unknown.
        """
        z = self.sample_latent_prior(num_samples, density, temperature, generator)
        return self.decode(z, targets, text_options, generator)

    @torch.no_grad()
    def sample_latent_prior(
        self,
        num_samples: int,
        density: Literal["own", "fitted"] = "own",
        temperature: float = 1.0,
        generator: torch.Generator | None = None,
    ) -> Tensor:
        """Draw z and all private latents (n, Z) from the prior, as `sample_prior` does."""
        if density == "own" and self.latent.condition:
            raise ValueError("The model is a conditional VAE: it has no prior without its condition; give some of it.")
        z = torch.randn(num_samples, self.latent.total_size, generator=generator, device=self.device) * temperature
        shared = slice(0, self.latent.size)
        if density == "fitted":
            if self.fitted_prior is None:
                raise ValueError("density: got 'fitted' for a model without fitted prior; call fit_prior first.")
            z[:, shared] = self.fitted_prior.sample(num_samples, generator)
        elif self.latent_head.shared_prior is not None:
            z[:, shared] = self.latent_head.shared_prior.sample(num_samples, generator, temperature)
        return self.latent_head.complete(z, {})

    @torch.no_grad()
    def fit_prior(
        self,
        batches: Iterable[Modalities],
        num_components: int = 30,
        generator: torch.Generator | None = None,
        seed: int = 0,
        kind: Literal["mixture", "flow"] = "mixture",
    ) -> None:
        """Fit a prior to one posterior sample of z of each training sample, and keep it with the model.

        Args:
            batches: Modalities of the training samples; the posterior is that of all available ones.
            num_components: Number of Gaussians with full covariances.
            generator: Source of the noise of the samples.
            seed: Seed of the fit.
            kind: A `mixture` of Gaussians, or a `flow`, see `m3ae.models.flows.FITTED`.

        Raises:
            ValueError: The kind is unknown, or there are too few samples.
        """
        check_choice("kind of a fitted prior", kind, ("mixture", "flow"))
        samples = (self.sample_latent(modalities, generator=generator)[0] for modalities in batches)
        points = [z[:, : self.latent.size].cpu() for z in samples]
        if kind == "flow":
            self.fitted_prior = FlowPrior.fit(torch.cat(points), seed=seed).to(self.device)
            self.latent.prior_components, self.latent.prior_flow = 0, FITTED
        else:
            self.fitted_prior = FittedPrior.fit(torch.cat(points), num_components, seed).to(self.device)
            self.latent.prior_components, self.latent.prior_flow = num_components, None

    def decode(
        self,
        z: Tensor,
        targets: Sequence[str] | Mapping[str, Any] | None = None,
        text_options: Mapping[str, Any] | None = None,
        generator: torch.Generator | None = None,
    ) -> dict[str, Tensor]:
        """Return the means of the decoders at points z (…, Z), as `generate_modalities` does.

        Raises:
            ValueError: A target is unknown, or the condition of `cvae`, whose decoders learn nothing.
        """
        names = self.latent.decoded if targets is None else list(targets)
        check_names(names, self.latent.decoded)
        asked = targets if isinstance(targets, Mapping) else {}
        return {name: self.latent_head.decode(name, z, text_options, generator, asked.get(name)) for name in names}

    def _read(self, modalities: Modalities) -> LatentInputs:
        return read_inputs(modalities, self.latent_head.modalities)

    def _infer_experts(self, available: Modalities) -> InferredExperts:
        inputs = self._read(available)
        return self.latent_head.infer_experts(self._encode(inputs), inputs.present, self._fusion)

    @property
    def _fusion(self) -> nn.Module | None:
        return cast(nn.Module, self.m3ae.fusion) if self.latent_head.fuses else None

    def _prior(self, modalities: Modalities, q: LatentPosterior) -> Prior | None:
        """Return the prior of a posterior's latents; with `cvae` that of z is what the condition says."""
        if not self.latent.condition:
            return self.latent_head.prior(q.inferred)
        given = self.infer_latent(only(modalities, self.latent.condition)).shared.components
        return self.latent_head.prior(q.inferred, type(given)(given.mu[0], given.logvar[0]))

    def _members(self, joint: bool, generator: torch.Generator | None) -> Tensor:
        """Return the components (C, M) of the posterior, or with `joint` the product of all alone if it is one."""
        members = posterior_members(self.latent, generator)
        return members[-1:] if joint and self.latent.kind not in ("moe", "holder") else members

    def _encode(self, inputs: LatentInputs) -> dict[str, Stream | Tensor]:
        """Return what the expert of each modality in the batch reads."""
        return {
            name: self.latent_head.modalities[name].encode(self.m3ae, inputs.targets[name], inputs.present[name])
            for name in self.latent.experts
            if name in inputs.targets
        }
