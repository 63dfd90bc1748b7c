"""Configuration of the latent head: its posterior, its objective, and the modalities it joins."""

from __future__ import annotations

from dataclasses import asdict
from typing import TYPE_CHECKING, Any, Literal

from m3ae.models.gaussians import MAX_ENUMERATED
from m3ae.models.option_checks import (
    StrictConfig,
    check_choice,
    check_count,
    check_fraction,
    check_number,
    reads_file,
)

if TYPE_CHECKING:
    from m3ae.models.modalities import ModalityConfig


class LatentConfig(StrictConfig):
    """A multimodal VAE over the trunk's encoders and small encoders of further modalities.

    Args:
        kind: The posterior of inference, and of the objectives `elbo`, `iwae` and `dreg`: a product of experts (`poe`,
            Wu & Goodman 2018), their mixture (`moe`, Shi et al. 2019), the mixture of the products of all subsets
            (`mopoe`, Sutter et al. 2021), or an expert of all present modalities together, which reads their fused
            streams and their features (`joint`). `jmvae`, `telbo` and `cvae` learn that expert and each single one:
            they infer z from the joint expert where all modalities are present, and elsewhere from the product. Or
            the mixture (Σ √q_m)² of the experts and of the geometric mean of each pair (`holder`).
        family: Distributions of the experts, `gaussian` or `laplace`; the latter for `moe` (Shi et al. 2019).
        size: Dimensions of z that all modalities share.
        initial_std: Standard deviation σ of each expert, and of each slice of a scene, before training. At 1, what
            they say about a sample has to rise above the noise of z first; at .1 decoders hear it from the first step.
        num_tokens: Number of latent tokens of transformer decoders, and of queries that pool an encoder's tokens.
        prior_expert: Which products contain the prior: `always`, `full_only` (that of all experts) or `never`; or
            `divided`: the product of k experts is divided by the prior k − 1 times. If None, `divided` for the kind
            `joint`, `never` for `holder`, for the family `laplace` and for `meme`, otherwise `always`.
        objective: `elbo` of the mixture; `subset_elbos`, the sum over subsets that each explain themselves (Wu &
            Goodman 2018); `dmvae`, `mvtcae`, `crmvae`, `mmvm`, `jmvae`, `telbo`, `cvae`, `meme` or `mfm`, see
            docs/objectives.md;
            `iwae` and `dreg` with the mixture's density (Shi et al. 2019); or one of `m3ae.register_objective`.
        alpha: Share of the KL to the experts, rather than to the prior, of `mvtcae` (published with 5/6, `beta` 2.5,
            `kind` `poe` and `prior_expert` `never`) and of `mmvm` (`kind` `moe`); weight of the KL to each expert in
            `jmvae`, where .1 is usual.
        gamma: Weight of the likelihoods of single modalities in `telbo`.
        condition: Names of the modalities that `cvae` is given.
        contrast: Weight of the InfoNCE between the means of z of each two modalities, beside any objective.
        num_samples: K of `iwae`, `dreg` and `meme`; for `elbo`, number of components drawn for each sample and
            decoded, all if None.
        num_subsets: Number of subsets of 2 to M − 1 modalities drawn at each step if M is more than five.
        beta: Weight of the KL after warm-up; of the maximum mean discrepancies in `mfm`.
        beta_warmup: Share of the steps over which the weight rises from 0.
        free_bits: Nats of each latent dimension that cost nothing (Kingma et al. 2016).
        weight: Weight of the latent pass beside the masked ones of `M3AEForPreTraining`: its loss is a sum over all
            elements of a sample, in nats, theirs are means. Learned scales shrink, and the gradient grows with them:
            at 1e-3 it then drowns the contrast, at 1e-4 it does not. Adam does not mind the scale of a gradient: the
            head's layers learn about as well at 1e-6, which leaves the encoders to the masked passes.
        learned_prior: Number of Gaussians of a prior of z that is learned with the model; 0 for N(0, I).
        flow_prior: Kind of a flow that is learned with the model as the prior of z: couplings `nice` or `realnvp`,
            autoregressive `maf` or `iaf`, or autoregressive splines `nsf`. It starts as N(0, I).
        prior_components: Number of Gaussians of the fitted prior; set by `M3AEForGeneration.fit_prior`.
        prior_flow: Kind of the flow that is the fitted prior; set by `M3AEForGeneration.fit_prior`.
        modalities: Name → `kind` and options of the kind's configuration (`m3ae.models.modalities`); the trunk's
            `image` and `text` if None. They are numbered in alphabetical order, which a saved configuration has, too.

    Raises:
        ValueError: An option out of range, or one that does not exist.
    """

    model_type = "m3ae_latent"
    base_config_key = "latent"

    kind: Literal["poe", "moe", "mopoe", "joint", "holder"] = "mopoe"
    family: Literal["gaussian", "laplace"] = "gaussian"
    size: int = 64
    initial_std: float = 1.0
    num_tokens: int = 4
    prior_expert: Literal["always", "full_only", "never", "divided"] | None = None
    objective: str = "elbo"
    alpha: float = 5 / 6
    gamma: float = 1.0
    condition: list[str] | None = None
    contrast: float = 0.0
    num_samples: int | None = None
    num_subsets: int = 8
    beta: float = 1.0
    beta_warmup: float = 0.25
    free_bits: float = 0.1
    weight: float = 1e-3
    learned_prior: int = 0
    flow_prior: Literal["nice", "realnvp", "maf", "iaf", "nsf"] | None = None
    prior_components: int = 0
    prior_flow: Literal["nice", "realnvp", "maf", "iaf", "nsf"] | None = None
    modalities: dict[str, dict[str, Any]] | None = None

    def __post_init__(self, **kwargs: Any) -> None:
        # Kinds and objectives build networks of configurations, such as this one.
        from m3ae.models.flows import FLOWS
        from m3ae.models.modalities import configure
        from m3ae.models.objectives import OBJECTIVES

        check_choice("latent.kind", self.kind, ("poe", "moe", "mopoe", "joint", "holder"))
        check_choice("latent.family", self.family, ("gaussian", "laplace"))
        alone = self.kind == "holder" or self.family == "laplace" or self.objective == "meme"
        if self.prior_expert is None:
            self.prior_expert = "divided" if self.kind == "joint" else "never" if alone else "always"
        check_choice("latent.prior_expert", self.prior_expert, ("always", "full_only", "never", "divided"))
        check_choice("latent.objective", self.objective, OBJECTIVES)
        for option, least in (
            ("size", 1),
            ("num_tokens", 1),
            ("num_subsets", 1),
            ("learned_prior", 0),
            ("prior_components", 0),
        ):
            check_count(f"latent.{option}", getattr(self, option), least)
        if self.num_samples is not None or self.objective in ("iwae", "dreg", "meme"):
            check_count(f"latent.num_samples of the objective {self.objective}", self.num_samples, 1)
        for option in ("beta", "free_bits", "weight", "gamma", "contrast"):
            check_number(f"latent.{option}", getattr(self, option))
        check_number("latent.initial_std", self.initial_std, positive=True)
        for option in ("flow_prior", "prior_flow"):
            check_choice(f"latent.{option}", getattr(self, option), (*FLOWS, None))
        if self.flow_prior and self.learned_prior:
            raise ValueError(
                f"latent.learned_prior: got {self.learned_prior} beside flow_prior; expected one of the two."
            )
        check_fraction("latent.beta_warmup", self.beta_warmup, 0.0, 1.0)
        check_fraction("latent.alpha", self.alpha, 0.0, 1.0)
        modalities = (
            {"image": {"kind": "image"}, "text": {"kind": "text"}} if self.modalities is None else self.modalities
        )
        if not modalities:
            raise ValueError("latent.modalities is empty; expected at least one modality.")
        self.modalities = {name: asdict(configure(name, modalities[name])) for name in sorted(modalities)}
        self._check_experts()
        super().__post_init__(**kwargs)

    def _check_experts(self) -> None:
        from m3ae.models.objectives import OBJECTIVES, PLAIN, Bound

        silent = [name for name, modality in self.typed_modalities.items() if modality.encoder == "none"]
        if len(silent) == len(self.typed_modalities):
            raise ValueError("latent.modalities: all have the encoder 'none'; expected at least one expert.")
        row = OBJECTIVES[self.objective]
        if self.num_samples is not None and isinstance(row, Bound) and row != PLAIN and not reads_file():
            raise ValueError(
                f"latent.num_samples: got {self.num_samples} for the objective {self.objective}, which decodes every "
                "component of its own; expected None."
            )
        self._check_joint(row)
        self._check_densities(row)
        if silent and isinstance(row, Bound) and row.explains_members:
            raise ValueError(
                f"latent.objective {self.objective}: each subset explains itself, so every modality needs an encoder; "
                f"{', '.join(silent)} has none."
            )

    def _check_joint(self, row: Any) -> None:
        from m3ae.models.objectives import PLAIN, Bound

        if isinstance(row, Bound) and row != PLAIN and row.joins != (self.kind == "joint"):
            raise ValueError(
                f"latent.objective {self.objective}: got the kind {self.kind}; expected "
                + ("joint." if row.joins else "another kind, since this objective has no joint expert.")
            )
        names, given = self.typed_modalities, self.condition or []
        if (self.objective == "cvae") != bool(given) or not set(given) < set(names) or set(given) - set(self.experts):
            raise ValueError(
                f"latent.condition of the objective {self.objective}: got {self.condition}; expected "
                + (f"some, not all, of {', '.join(self.experts)}." if self.objective == "cvae" else "None.")
            )

    def _check_densities(self, row: Any) -> None:
        from m3ae.models.objectives import PLAIN, Bound

        modalities, objective = self.typed_modalities, self.objective
        deceives = any(
            (options.get("adversarial") or {}).get("weight") for options in (self.modalities or {}).values()
        )
        if deceives and objective in ("iwae", "dreg", "meme"):
            raise ValueError(
                f"latent.objective {objective}: got an image with `adversarial`, which goes with one sample of z; "
                "expected another objective, such as elbo."
            )
        private = ", ".join(name for name, modality in modalities.items() if modality.private_size) or "none"
        if objective == "mfm" and (self.kind not in ("poe", "joint") or self.num_samples is not None):
            raise ValueError(
                f"latent.objective mfm: got the kind {self.kind} and num_samples {self.num_samples}; expected poe or "
                "joint, and None, since its latents are points."
            )
        pair = len(self.experts) == len(modalities) == 2 and private == "none"
        if objective == "meme" and (self.kind != "moe" or not pair):
            raise ValueError(
                f"latent.objective meme: got the kind {self.kind}, {len(modalities)} modalities, {len(self.experts)} "
                f"of them with encoders, and private latents of {private}; expected moe, 2, 2 and none."
            )
        if self.kind == "holder" and (
            self.prior_expert != "never" or self.num_samples is not None or (isinstance(row, Bound) and row != PLAIN)
        ):
            raise ValueError(
                f"latent.kind holder: got the objective {objective}, num_samples {self.num_samples} and prior_expert "
                f"{self.prior_expert}; expected elbo, None and never, since its weights learn from every component."
            )
        singles = self.kind == "moe" and (not isinstance(row, Bound) or row.components in ("kind", "singles"))
        singles = singles and self.prior_expert in ("never", "divided")
        if self.family == "laplace" and (not singles or private != "none"):
            raise ValueError(
                f"latent.family laplace: got the kind {self.kind}, the objective {objective}, prior_expert "
                f"{self.prior_expert} and private latents of {private}; expected moe, an "
                "objective of single experts, never and none, since a product is no Laplace distribution."
            )

    @property
    def typed_modalities(self) -> dict[str, ModalityConfig]:
        """The modalities, typed."""
        from m3ae.models.modalities import KINDS

        assert self.modalities is not None
        return {name: KINDS[options["kind"]].config_class(**options) for name, options in self.modalities.items()}

    @property
    def experts(self) -> list[str]:
        """Names of the modalities with an encoder, in order."""
        return [name for name, modality in self.typed_modalities.items() if modality.encoder != "none"]

    @property
    def enumerates_subsets(self) -> bool:
        """Whether all subsets of experts are components, rather than some at each step."""
        return len(self.experts) <= MAX_ENUMERATED

    @property
    def decoded(self) -> list[str]:
        """The names of the modalities whose decoders learn: all but the condition of `cvae`."""
        return [name for name in self.typed_modalities if name not in (self.condition or ())]

    @property
    def total_size(self) -> int:
        """Dimensions of z and of all private latents."""
        return self.size + sum(modality.private_size for modality in self.typed_modalities.values())
