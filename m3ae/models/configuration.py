"""Configuration of M3AE models: self-contained, so that building a model never reads another checkpoint."""

from __future__ import annotations

import os
from contextlib import suppress
from typing import Any, ClassVar, Literal, get_args

from transformers import AutoConfig, PreTrainedConfig
from transformers.image_utils import OPENAI_CLIP_MEAN, OPENAI_CLIP_STD  # type: ignore[attr-defined]

from m3ae.images.augment import Resize
from m3ae.models.latent_configuration import LatentConfig
from m3ae.models.option_checks import StrictConfig, check_choice, check_fraction, check_heads, check_width
from m3ae.models.processing import M3AEImageProcessor
from m3ae.models.text_encoder import check_text_encoder, longest_text, text_config_of


class M3AEImageConfig(StrictConfig):
    """A vision transformer over square patches, by default the published CLIP ViT-B/16 at 288 px.

    Args:
        image_size: Side of the square input in pixels, a multiple of `patch_size`.
        patch_size: Side of a patch in pixels.
        num_channels: Colour channels.
        hidden_size: Width of the encoder.
        num_hidden_layers: Number of blocks. The published model builds one fewer than CLIP: 11.
        num_attention_heads: Attention heads of a block.
        mlp_ratio: Width of a block's MLP over `hidden_size`.
        hidden_act: timm name of the MLP's activation.
        pre_norm: Normalise the embedded patches before the first block, as CLIP does.
        class_token: Whether a class token goes through the blocks with the patches. Without one, the mean of the
            encoded patches takes the place of the encoded class token.
        num_registers: Register tokens, which go through the blocks and are left out afterwards, as in DINOv3.
        layer_scale: Initial value of the learned factors on attention and MLP; None leaves them out.
        gated_mlp: Whether the MLP is gated; with `hidden_act: silu` that is SwiGLU.
        qk_norm: Whether each head's queries and keys are normalised.
        qkv_bias: Which projections of attention have a bias: `all`, `no_key` (queries and values) or `none`.
        rope_theta: Base of DINOv3's rotary positions, which replace the table of positions; None has the table.
        dropout: Dropout after projections and MLPs.
        drop_path_rate: Probability that training leaves out a residual branch of the last block for a sample; it grows
            linearly from 0 in the first block (stochastic depth, Huang et al. 2016).
        layer_norm_eps: Epsilon of the layer normalisations.
        image_mean: Mean of each channel, which the processor subtracts from values in [0, 1]; CLIP's if None.
        image_std: Deviation of each channel, which the processor divides by; CLIP's if None.
        resize: How images of another shape become squares. `crop`, as published, keeps the middle. `stretch` keeps
            everything and changes the aspect ratio. `pad` keeps both; patches that are nothing but padding are not
            attended to, not masked, and in no loss.

    Raises:
        ValueError: Sizes that do not divide, not one mean and deviation for each channel, or an option that does not
            exist.
    """

    model_type = "m3ae_image"
    base_config_key = "image_config"

    image_size: int = 288
    patch_size: int = 16
    num_channels: int = 3
    hidden_size: int = 768
    num_hidden_layers: int = 11
    num_attention_heads: int = 12
    mlp_ratio: float = 4.0
    hidden_act: str = "quick_gelu"
    pre_norm: bool = True
    class_token: bool = True
    num_registers: int = 0
    layer_scale: float | None = None
    gated_mlp: bool = False
    qk_norm: bool = False
    qkv_bias: Literal["all", "no_key", "none"] = "all"
    rope_theta: float | None = None
    dropout: float = 0.0
    drop_path_rate: float = 0.0
    layer_norm_eps: float = 1e-5
    image_mean: list[float] | None = None
    image_std: list[float] | None = None
    resize: Resize = "crop"

    def __post_init__(self, **kwargs: Any) -> None:
        self.image_mean = _for_channels("image_mean", self.image_mean, OPENAI_CLIP_MEAN, self.num_channels)
        self.image_std = _for_channels("image_std", self.image_std, OPENAI_CLIP_STD, self.num_channels)
        if self.image_size % self.patch_size:
            below = self.image_size // self.patch_size * self.patch_size
            raise ValueError(
                f"image_size must be a multiple of patch_size ({self.patch_size}), got {self.image_size}: "
                f"choose {below or self.patch_size} or {below + self.patch_size}."
            )
        check_width("image_config.hidden_size", self.hidden_size)
        check_heads("image_config", self.hidden_size, self.num_attention_heads)
        check_fraction("image_config.drop_path_rate", self.drop_path_rate, 0.0, 0.99)
        check_choice("image_config.resize", self.resize, get_args(Resize))
        check_choice("image_config.qkv_bias", self.qkv_bias, ("all", "no_key", "none"))
        if self.rope_theta is not None and self.hidden_size // self.num_attention_heads % 4:
            raise ValueError(
                f"image_config.rope_theta needs heads whose width is a multiple of 4, got {self.hidden_size} / "
                f"{self.num_attention_heads}."
            )
        super().__post_init__(**kwargs)

    @property
    def num_patches(self) -> int:
        """Number of patches N of an image."""
        return (self.image_size // self.patch_size) ** 2


def _for_channels(name: str, values: list[float] | None, colours: list[float], num_channels: int) -> list[float]:
    """Return the values, one for each channel; None stands for those of colours, or for their mean."""
    if values is None:
        values = colours if num_channels == len(colours) else [sum(colours) / len(colours)]
    if len(values) == 1:
        values = values * num_channels
    if len(values) != num_channels:
        raise ValueError(
            f"image_config.{name} must have one value for each of the {num_channels} channels, got {values}."
        )
    return list(values)


class M3AEConfig(StrictConfig):
    """Encoders, co-attention fusion, decoders and objectives of an M3AE model.

    The defaults are the published base model (Chen et al., MICCAI 2022, arXiv 2209.07098).

    Args:
        image_config: An `M3AEImageConfig`, or its options.
        text_config: Options of a bidirectional text encoder of transformers, or its configuration; `model_type` names
            the architecture, by default `roberta`.
        views: Names of the images that a study may have, such as `frontal` and `lateral`. They share the image encoder
            and the fusion's image layers, and each is a stream of its own; a sample may lack any of them. None is one
            image, as published.
        hidden_size: Width of the fusion.
        num_hidden_layers: Fusion layers per stream.
        num_attention_heads: Attention heads of a fusion layer.
        intermediate_size: Width of a fusion layer's MLP.
        hidden_dropout_prob: Dropout after the fusion's projections.
        attention_probs_dropout_prob: Dropout of the fusion's attention weights.
        layer_norm_eps: Epsilon of the fusion's layer normalisations.
        initializer_range: Standard deviation of the initial weights.
        mask_ratio: Share of patches hidden in the masked pass; int(N·(1 − mask_ratio)) stay visible.
        mlm_probability: Share of a text's tokens to predict in the masked pass, at least one.
        whole_word_masking: Mask whole words rather than tokens; the published code masks tokens.
        mim_layer: Fusion layer whose image input the pixel decoder reads; −1 reads the output of the last layer.
        norm_pix_loss: Whether each target patch is normalised by its mean and variance (He et al. 2022).
        decoder_hidden_size: Width of the pixel decoder.
        decoder_num_hidden_layers: Blocks of the pixel decoder.
        decoder_num_attention_heads: Attention heads of the pixel decoder.
        mim_weight: Weight of masked-image modelling; 0 leaves it out.
        mlm_weight: Weight of masked-language modelling; 0 leaves it out.
        itm_weight: Weight of image-text matching; 0 leaves it out.
        itc_weight: Weight of image-text contrast between the encoders; 0, as published, leaves it and its head out.
        itc_size: Width of the space in which images and texts are contrasted.
        itc_loss: Loss of the contrast: `infonce` finds each image's text among the batch's (CLIP), `sigmoid` judges
            each pair by itself (SigLIP).
        schedule: `separate` masks one modality at a time and matches on unmasked inputs, as published;
            `joint` masks both at once and computes everything in one fusion pass.
        class_weights: Weight of each class in the classification loss (of each label's positives if a sample may have
            several); 1 if None.
        decision_thresholds: Probability of each label from which a sample counts as having it, where a sample may have
            several, chosen on validation; 0.5 if None.
        calibration_temperature: Temperature of a classifier: the softmax reads the logits divided by this number.
        input_streams: The inputs that a head was fine-tuned on, some of `image` and `text`; None for both.
        num_negatives: Number of other texts of the batch that the matching head compares with an image's own text in
            training; 0 trains the contrastive head alone.
        report_num_hidden_layers: Layers of the decoder that writes reports; its width and heads are the fusion's.
        mask_token_id: Index of the mask token. None becomes the last index of the vocabulary, as RoBERTa has it.
        latent: A `LatentConfig`, or its options. None, as published, leaves the latent head out.
        tie_word_embeddings: Whether masked-language modelling predicts words by the weights of the word embeddings.

    Raises:
        ValueError: An option out of range, or one that does not exist.
    """

    model_type = "m3ae"
    keys_to_ignore_at_inference: ClassVar[list[str]] = ["losses", "hidden_states", "attentions"]
    sub_configs: ClassVar[dict[str, type[PreTrainedConfig]]] = {
        "image_config": M3AEImageConfig,
        "text_config": AutoConfig,  # type: ignore[dict-item]  # as in the library
        "latent": LatentConfig,
    }

    image_config: dict[str, Any] | M3AEImageConfig | None = None
    text_config: dict[str, Any] | PreTrainedConfig | None = None
    views: list[str] | None = None
    hidden_size: int = 768
    num_hidden_layers: int = 6
    num_attention_heads: int = 12
    intermediate_size: int = 3072
    hidden_dropout_prob: float = 0.1
    attention_probs_dropout_prob: float = 0.1
    layer_norm_eps: float = 1e-12
    initializer_range: float = 0.02
    mask_ratio: float = 0.75
    mlm_probability: float = 0.15
    whole_word_masking: bool = False
    mim_layer: int = 3
    norm_pix_loss: bool = True
    decoder_hidden_size: int = 384
    decoder_num_hidden_layers: int = 4
    decoder_num_attention_heads: int = 6
    mim_weight: float = 1.0
    mlm_weight: float = 1.0
    itm_weight: float = 1.0
    itc_weight: float = 0.0
    itc_size: int = 256
    itc_loss: Literal["infonce", "sigmoid"] = "infonce"
    schedule: Literal["separate", "joint"] = "separate"
    class_weights: list[float] | None = None
    decision_thresholds: list[float] | None = None
    calibration_temperature: float = 1.0
    input_streams: list[str] | None = None
    num_negatives: int = 15
    report_num_hidden_layers: int = 3
    mask_token_id: int | None = None
    latent: dict[str, Any] | LatentConfig | None = None
    tie_word_embeddings: bool = False

    def __post_init__(self, **kwargs: Any) -> None:
        if isinstance(self.text_config, PreTrainedConfig):
            check_text_encoder(self.text_config.model_type, self.text_config.to_dict())
        else:
            self.text_config = text_config_of(self.text_config or {})
        if self.latent is not None and not isinstance(self.latent, LatentConfig):
            self.latent = LatentConfig(**self.latent)
        if self.views is not None and (not self.views or len(set(self.views)) < len(self.views)):
            raise ValueError(f"views needs different names of at least one image, got {self.views}.")
        stated = self._take_normalizations()
        if not isinstance(self.image_config, M3AEImageConfig):
            self.image_config = M3AEImageConfig(**((stated or [{}])[0] | (self.image_config or {})))
        for normalization in stated:
            _check_normalization(self.image_config, normalization)
        if self.mask_token_id is None:
            self.mask_token_id = self.text_config.vocab_size - 1
        check_heads("fusion", self.hidden_size, self.num_attention_heads)
        check_heads("pixel decoder", self.decoder_hidden_size, self.decoder_num_attention_heads)
        check_width("decoder_hidden_size", self.decoder_hidden_size)
        if not -1 <= self.mim_layer <= self.num_hidden_layers:
            raise ValueError(
                f"mim_layer must lie between -1 and num_hidden_layers ({self.num_hidden_layers}), "
                f"got {self.mim_layer}."
            )
        if self.num_negatives < (0 if self.itc_weight else 1):
            raise ValueError(
                f"num_negatives must be at least 1, got {self.num_negatives}; 0 trains the contrast alone, which "
                f"needs itc_weight (got {self.itc_weight:g})."
            )
        check_choice("itc_loss", self.itc_loss, ("infonce", "sigmoid"))
        if self.schedule not in ("separate", "joint"):
            raise ValueError(f"schedule must be 'separate' or 'joint', got {self.schedule!r}.")
        check_fraction("mask_ratio", self.mask_ratio, 0.0, 0.99)
        check_fraction("mlm_probability", self.mlm_probability, 0.0, 1.0)
        super().__post_init__(**kwargs)

    @property
    def num_views(self) -> int:
        """Number of images V that a study may have."""
        return len(self.views or ["image"])

    def view_number(self, name: str) -> int:
        """Return the number of the view with a modality's name; 0 if no view has this name."""
        return self.views.index(name) if self.views and name in self.views else 0

    @property
    def longest_text(self) -> int:
        """Number of tokens, special ones included, of the longest text that the text encoder takes."""
        assert isinstance(self.text_config, PreTrainedConfig)
        return longest_text(self.text_config)

    def _take_normalizations(self) -> list[dict[str, list[float]]]:
        """Take out of the latent head what it states of the trunk's images, as options of the image encoder."""
        taken = []
        modalities = self.latent.modalities if isinstance(self.latent, LatentConfig) else None
        for options in (modalities or {}).values():
            if options["encoder"] == "vit" and options["mean"] is not None:
                taken.append({"image_mean": options["mean"], "image_std": options["std"]})
                options |= {"mean": None, "std": None}
        return taken

    @classmethod
    def get_config_dict(
        cls, pretrained_model_name_or_path: str | os.PathLike[str], **kwargs: Any
    ) -> tuple[dict[str, Any], dict[str, Any]]:
        """Read the options of a saved model.

        An old configuration lacks mean and deviation of the images; they are read from the model's processor.
        """
        options, unused = super().get_config_dict(pretrained_model_name_or_path, **kwargs)
        image = options.get("image_config")
        if isinstance(image, dict) and "image_mean" not in image:
            with suppress(OSError):
                processor = M3AEImageProcessor.from_pretrained(pretrained_model_name_or_path)
                image |= {"image_mean": [*processor.image_mean], "image_std": [*processor.image_std]}
                for modality in ((options.get("latent") or {}).get("modalities") or {}).values():
                    modality |= {"mean": None, "std": None} if modality.get("encoder") == "vit" else {}
        return options, unused

    @classmethod
    def named(cls, size: str, **overrides: Any) -> M3AEConfig:
        """Build the configuration of a named size, with some options replaced.

        Args:
            size: One of `SIZES`: `tiny` (tests), `mini` (two CPU cores), `small` (one CPU or GPU), `base`
                (the published model).
            overrides: Options of `M3AEConfig`; the dictionaries `image_config` and `text_config` are merged into
                those of the size. A `text_config` of another `model_type` than RoBERTa's replaces that of the size.

        Raises:
            ValueError: An unknown size or option.
        """
        if size not in SIZES:
            raise ValueError(f"Unknown model size {size!r}; the sizes are {', '.join(SIZES)}.")
        options = dict(SIZES[size])
        for key, value in overrides.items():
            merges = isinstance(value, dict) and value.get("model_type") in (None, "roberta")
            options[key] = {**options.get(key, {}), **value} if merges else value
        return cls(**options)


def _check_normalization(image: M3AEImageConfig, stated: dict[str, list[float]]) -> None:
    if stated != {name: getattr(image, name) for name in stated}:
        raise ValueError(
            f"latent.modalities: images of the encoder vit are normalised by image_config, whose mean is "
            f"{image.image_mean} and deviation {image.image_std}; got {stated}. Leave mean and std out there."
        )


SIZES: dict[str, dict[str, Any]] = {
    "tiny": {
        "image_config": {"image_size": 32, "patch_size": 8, "hidden_size": 32, "num_hidden_layers": 2}
        | {"num_attention_heads": 2},
        "text_config": {"vocab_size": 128, "hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 2}
        | {"intermediate_size": 64, "max_position_embeddings": 66},
        "hidden_size": 32,
        "num_hidden_layers": 2,
        "num_attention_heads": 2,
        "intermediate_size": 64,
        "mim_layer": 1,
        "decoder_hidden_size": 24,
        "decoder_num_hidden_layers": 1,
        "decoder_num_attention_heads": 2,
    },
    "mini": {
        "image_config": {"image_size": 96, "hidden_size": 192, "num_hidden_layers": 4, "num_attention_heads": 4},
        "text_config": {"hidden_size": 192, "num_hidden_layers": 2, "num_attention_heads": 4}
        | {"intermediate_size": 768, "max_position_embeddings": 98}
        | {"initializer_range": 0.04, "hidden_dropout_prob": 0.1, "attention_probs_dropout_prob": 0.0},
        "initializer_range": 0.04,  # 0.02 is made for a width of 768
        "hidden_size": 192,
        "num_hidden_layers": 2,
        "num_attention_heads": 4,
        "intermediate_size": 768,
        "hidden_dropout_prob": 0.1,
        "attention_probs_dropout_prob": 0.0,
        "mim_layer": 1,
        "decoder_hidden_size": 192,
        "decoder_num_hidden_layers": 2,
        "decoder_num_attention_heads": 4,
    },
    "small": {
        "image_config": {"image_size": 224, "hidden_size": 384, "num_hidden_layers": 6, "num_attention_heads": 6},
        "text_config": {"hidden_size": 384, "num_hidden_layers": 6, "num_attention_heads": 6}
        | {"intermediate_size": 1536},
        "hidden_size": 384,
        "num_hidden_layers": 6,
        "num_attention_heads": 6,
        "intermediate_size": 1536,
    },
    "base": {},
}
