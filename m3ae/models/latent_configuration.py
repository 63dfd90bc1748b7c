"""Configuration of the latent head: its posterior, its objective, and the modalities it joins."""

from __future__ import annotations

from dataclasses import asdict, dataclass, fields
from typing import Any, Literal

from m3ae.models.latent import MAX_ENUMERATED
from m3ae.models.option_checks import (
    StrictConfig,
    check_choice,
    check_count,
    check_fraction,
    check_heads,
    check_keys,
    check_number,
)

# Kind → encoders, decoders and likelihoods it may have, the default first.
_ENCODERS = {"image": ("vit", "mlp", "cnn"), "text": ("roberta",)}
_DECODERS = {"image": ("transformer", "mlp", "cnn"), "text": ("transformer", "autoregressive")}
_LIKELIHOODS = {"text": ("categorical",), "label": ("categorical",), "labels": ("bernoulli",)}
_KINDS = {"image": 3, "text": 0, "vector": 1, "sequence": 2, "label": 0, "labels": 0}  # kind → dimensions of its shape


@dataclass(frozen=True)
class ModalityConfig:
    """One modality of the latent head: how it becomes an expert, and how it is decoded from z.

    Attributes:
        kind: `image`, `text`, `vector`, `sequence`, `label` (one class) or `labels` (any number of classes at once).
        encoder: `vit` and `roberta` are the trunk's encoders, shared by all modalities that have them; `mlp`, and for
            images `cnn`, are of its own; `none` leaves the modality without an expert: it is decoded from z and says
            nothing about it. By default `vit` for images, `roberta` for texts, `mlp` for the rest.
        decoder: `transformer` (queries that attend to the latent tokens) or `mlp`; by default that for texts and
            for images with the encoder `vit`. For images also `cnn`, transposed convolutions, whose edges are sharper
            than those of an `mlp`; for texts also `autoregressive`, see `m3ae.models.text_decoders`.
        conditioning: How a transformer or autoregressive decoder reads the latent tokens: `cross_attention`, or as a
            `prefix` of its own tokens.
        shape: Of an image [C, S, S], of a sequence [T, F], of a vector [F]. With the encoder `vit` images have the
            trunk's size and channels, and need no shape; [1] makes them grayscale for a trunk of several channels.
        labels: Names of the classes of a label or of labels.
        likelihood: `normal`, `laplace` or `bernoulli` (values in [0, 1]); for texts and a label `categorical`, for
            labels `bernoulli`. By default `normal`.
        scale: Standard deviation of the normal likelihood, b of the Laplace one.
        learn_scale: Whether `scale` is only where it starts from (one for all elements; Rybkin et al. 2021).
        weight: Of its log-likelihood in training; not in what is reported.
        private_size: Dimensions of a latent of its own, whose prior given z is learned
            (`m3ae.models.learned_prior.ConditionalPrior`); 0 for none.
        hidden_size: Width of the MLPs, from which the channels of convolutions follow, or of the transformer decoder.
        num_layers: Hidden layers of each MLP, convolutions of stride 2 of encoder and decoder `cnn`, or blocks of the
            transformer decoder.
        dropout: Of what enters the layers of the encoder `mlp` or `cnn`; of the words that an autoregressive decoder
            reads in training.
        num_attention_heads: Attention heads of a transformer decoder, or an autoregressive one.
        patch_size: Side of the patches that a transformer decoder predicts; those of the trunk if None.
        max_length: Longest text in tokens that can be decoded, special ones included.
        mean: Subtracted from each channel of an image before it is encoded. Images of the encoder `vit` are normalised
            by `image_config`.
        std: What the difference is divided by.
    """

    kind: Literal["image", "text", "vector", "sequence", "label", "labels"]
    encoder: Literal["vit", "roberta", "mlp", "none"] | None = None
    decoder: Literal["transformer", "mlp", "cnn", "autoregressive"] | None = None
    conditioning: Literal["cross_attention", "prefix"] = "cross_attention"
    shape: list[int] | None = None
    labels: list[str] | None = None
    likelihood: Literal["normal", "laplace", "bernoulli", "categorical"] | None = None
    scale: float = 1.0
    learn_scale: bool = False
    weight: float = 1.0
    private_size: int = 0
    hidden_size: int = 512
    num_layers: int = 2
    dropout: float = 0.0
    num_attention_heads: int = 4
    patch_size: int | None = None
    max_length: int = 64
    mean: list[float] | None = None
    std: list[float] | None = None

    @classmethod
    def of(cls, name: str, options: dict[str, Any]) -> ModalityConfig:
        """Fill in the defaults and check the options of the modality called `name`.

        Raises:
            ValueError: An option is unknown, missing, out of range, or does not go with the kind.
        """
        owner = f"latent.modalities.{name}"
        check_keys(owner, _FIELDS, options, accepted=())
        kind = options.get("kind")
        check_choice(f"{owner}.kind", kind, _KINDS)
        assert kind is not None
        filled = dict(options)
        encoders = (*_ENCODERS.get(kind, ("mlp",)), "none")
        if filled.get("encoder") is None:
            filled["encoder"] = encoders[0]
        decoders = _DECODERS.get(kind, ("mlp",))
        if filled.get("decoder") is None:
            filled["decoder"] = "mlp" if filled["encoder"] in ("mlp", "cnn") else decoders[0]
        likelihoods = _LIKELIHOODS.get(kind, ("normal", "laplace", "bernoulli"))
        if filled.get("likelihood") is None:
            filled["likelihood"] = likelihoods[0]
        config = cls(**filled)
        check_choice(f"{owner}.encoder", config.encoder, encoders)
        check_choice(f"{owner}.decoder", config.decoder, decoders)
        check_choice(f"{owner}.conditioning", config.conditioning, ("cross_attention", "prefix"))
        check_choice(f"{owner}.likelihood", config.likelihood, likelihoods)
        config._check_sizes(owner)
        return config

    def _check_sizes(self, owner: str) -> None:
        for option in ("hidden_size", "num_layers", "num_attention_heads"):
            check_count(f"{owner}.{option}", getattr(self, option), 1)
        check_count(f"{owner}.private_size", self.private_size, 0)
        check_count(f"{owner}.max_length", self.max_length, 3)
        check_number(f"{owner}.scale", self.scale, positive=True)
        check_number(f"{owner}.weight", self.weight, positive=True)
        check_fraction(f"{owner}.dropout", self.dropout, 0.0, 0.9)
        if self.decoder in ("transformer", "autoregressive"):
            check_heads(owner, self.hidden_size, self.num_attention_heads)
        if self.encoder == "none" and self.private_size:
            raise ValueError(
                f"{owner}.private_size: a modality without encoder has no private posterior, set it to 0."
            )
        if self.kind in ("label", "labels") and not self.labels:
            raise ValueError(
                f"{owner}.labels: the kind {self.kind} needs the names of its classes, got {self.labels!r}."
            )
        if (self.mean is None) != (self.std is None):
            raise ValueError(f"{owner}: mean and std go together, got mean {self.mean} and std {self.std}.")
        shape = self.shape or []
        dimensions = _KINDS[self.kind]
        expected = {0: "none", 1: "[F]", 2: "[T, F]", 3: "[C, S, S]"}[dimensions]
        if self.encoder == "vit":
            dimensions, expected = len(shape[:1]), "none, or [1] for grayscale images,"
        if len(shape) != dimensions or not all(isinstance(size, int) and size > 0 for size in shape):
            raise ValueError(f"{owner}.shape is {self.shape}; expected {expected} for a modality of kind {self.kind}.")
        if len(shape) == 3 and shape[1] != shape[2]:
            raise ValueError(f"{owner}.shape: images are square, got {shape[1]}×{shape[2]} pixels.")


_FIELDS = [field.name for field in fields(ModalityConfig)]


class LatentConfig(StrictConfig):
    """A multimodal VAE over the trunk's encoders and small encoders of further modalities.

    Args:
        kind: The posterior: a product of experts (`poe`, Wu & Goodman 2018), their mixture (`moe`, Shi et al. 2019),
            or the mixture of the products of all subsets (`mopoe`, Sutter et al. 2021).
        size: Dimensions of z that all modalities share.
        num_tokens: Latent tokens that transformer decoders attend to, and queries that pool an encoder's tokens.
        prior_expert: Which products contain the prior: `always`, `full_only` (that of all experts) or `never`.
        objective: `elbo` of the mixture; `subset_elbos`, the sum over subsets that each explain themselves (Wu &
            Goodman 2018); `iwae` and `dreg` with the mixture's density (Shi et al. 2019).
        num_samples: K of `iwae` and `dreg`. For `elbo`, how many components are drawn for each sample and decoded; all
            of them, exactly, if None.
        num_subsets: Subsets of 2 to M − 1 modalities drawn at each step where there are more than five modalities.
        beta: Weight of the KL after warm-up.
        beta_warmup: Share of the steps over which the weight rises from 0.
        free_bits: Nats of each latent dimension that cost nothing (Kingma et al. 2016).
        weight: Of the latent pass beside the masked ones of `M3AEForPreTraining`: its loss is a sum over all elements
            of a sample, in nats, theirs are means. Learned scales shrink, and its gradient grows with them; at 1e-3 it
            then drowns the contrast, at 1e-4 it does not. Adam does not mind the scale of a gradient: the head's own
            layers learn about as well at 1e-6, which leaves the encoders to the masked passes.
        learned_prior: Gaussians of a prior of z that is learned with the model (`m3ae.models.learned_prior`); 0 for
            N(0, I).
        prior_components: Gaussians of the fitted prior; set by `M3AEForGeneration.fit_prior`.
        modalities: Name → options of `ModalityConfig`; the trunk's `image` and `text` if None. They are numbered in
            alphabetical order, which a saved configuration has, too.

    Raises:
        ValueError: An option out of range, or one that does not exist.
    """

    model_type = "m3ae_latent"
    base_config_key = "latent"

    kind: Literal["poe", "moe", "mopoe"] = "mopoe"
    size: int = 64
    num_tokens: int = 4
    prior_expert: Literal["always", "full_only", "never"] = "always"
    objective: Literal["elbo", "subset_elbos", "iwae", "dreg"] = "elbo"
    num_samples: int | None = None
    num_subsets: int = 8
    beta: float = 1.0
    beta_warmup: float = 0.25
    free_bits: float = 0.1
    weight: float = 1e-3
    learned_prior: int = 0
    prior_components: int = 0
    modalities: dict[str, dict[str, Any]] | None = None

    def __post_init__(self, **kwargs: Any) -> None:
        check_choice("latent.kind", self.kind, ("poe", "moe", "mopoe"))
        check_choice("latent.prior_expert", self.prior_expert, ("always", "full_only", "never"))
        check_choice("latent.objective", self.objective, ("elbo", "subset_elbos", "iwae", "dreg"))
        for option, least in (
            ("size", 1),
            ("num_tokens", 1),
            ("num_subsets", 1),
            ("learned_prior", 0),
            ("prior_components", 0),
        ):
            check_count(f"latent.{option}", getattr(self, option), least)
        if self.num_samples is not None or self.objective in ("iwae", "dreg"):
            check_count(f"latent.num_samples of the objective {self.objective}", self.num_samples, 1)
        for option in ("beta", "free_bits", "weight"):
            check_number(f"latent.{option}", getattr(self, option))
        check_fraction("latent.beta_warmup", self.beta_warmup, 0.0, 1.0)
        given = {"image": {"kind": "image"}, "text": {"kind": "text"}} if self.modalities is None else self.modalities
        if not given:
            raise ValueError("latent.modalities is empty; expected at least one modality.")
        self.modalities = {name: asdict(ModalityConfig.of(name, given[name])) for name in sorted(given)}
        self._check_experts()
        super().__post_init__(**kwargs)

    def _check_experts(self) -> None:
        silent = [name for name, modality in self.typed_modalities.items() if modality.encoder == "none"]
        if len(silent) == len(self.typed_modalities):
            raise ValueError("latent.modalities: all have the encoder 'none'; expected at least one expert.")
        if silent and self.objective == "subset_elbos":
            raise ValueError(
                f"latent.objective subset_elbos: each subset explains itself, so every modality needs an encoder; "
                f"{', '.join(silent)} has none."
            )

    @property
    def typed_modalities(self) -> dict[str, ModalityConfig]:
        """The modalities, typed."""
        assert self.modalities is not None
        return {name: ModalityConfig(**options) for name, options in self.modalities.items()}

    @property
    def experts(self) -> list[str]:
        """Names of the modalities with an encoder, in order."""
        return [name for name, modality in self.typed_modalities.items() if modality.encoder != "none"]

    @property
    def enumerates_subsets(self) -> bool:
        """Whether all subsets of experts are components, rather than some drawn at each step."""
        return len(self.experts) <= MAX_ENUMERATED

    @property
    def total_size(self) -> int:
        """Dimensions of z and of all private latents."""
        return self.size + sum(modality.private_size for modality in self.typed_modalities.values())
