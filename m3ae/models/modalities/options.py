"""The options of modalities and of batches."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal

from m3ae.images.augment import Augmentation
from m3ae.models.option_checks import check_choice, check_count, check_heads

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

Conditioning = Literal["cross_attention", "prefix"]


@dataclass(frozen=True)
class ModalityConfig:
    """The options that every kind of modality has.

    Attributes:
        kind: Name of the kind, such as `image`.
        encoder: Name of an encoder of the kind; `none` leaves the modality without an expert: it is decoded from z and
            says nothing about it. The kind's first one by default.
        decoder: Name of a decoder of the kind.
        shape: Shape of an element, for kinds whose elements have one.
        likelihood: Name of a likelihood of the kind, the kind's first one by default.
        levels: Number of the values in [0, 1] that the likelihood `categorical` tells apart.
        scale: Standard deviation of the normal likelihood, b of the Laplace one.
        learn_scale: Whether training changes `scale`, one for all elements (Rybkin et al. 2021).
        weight: Weight of the modality's log-likelihood in training, not in reports.
        private_size: Dimensions of a private latent, whose prior given z is learned
            (`m3ae.models.priors.ConditionalPrior`); 0 for none.
        hidden_size: Width of the MLPs or of the transformer decoder. The channels of convolutions follow from it.
        num_layers: Hidden layers of each MLP, convolutions of stride 2 of encoder and decoder `cnn`, blocks of the
            transformer decoder, or stacks of an autoregressive decoder.
        dropout: Dropout of what enters the layers of the encoder `mlp` or `cnn`; share of the words, pixels or times
            that an autoregressive decoder does not read in training.
    """

    kind: str
    encoder: str | None = None
    decoder: str | None = None
    shape: list[int] | None = None
    likelihood: str | None = None
    levels: int = 256
    scale: float = 1.0
    learn_scale: bool = False
    weight: float = 1.0
    private_size: int = 0
    hidden_size: int = 512
    num_layers: int = 2
    dropout: float = 0.0


@dataclass(frozen=True)
class TransformerModalityConfig(ModalityConfig):
    """The options of kinds that a transformer may decode.

    Attributes:
        conditioning: How a transformer or autoregressive decoder reads the latent tokens: `cross_attention`, or as a
            `prefix` of the decoder's tokens.
        num_attention_heads: Attention heads of that decoder.
    """

    conditioning: Conditioning = "cross_attention"
    num_attention_heads: int = 4


@dataclass(frozen=True)
class BatchOptions:
    """What turns cells into tensors beside the modality itself.

    Attributes:
        tokenizer: Tokenizer of the texts; None without texts.
        max_text_length: Longest text in tokens, special ones included; longer ones are cut. That of each modality if
            None.
        augmentation: What training changes about images, see `m3ae.images.augment.augment`.
        crop_scale: Range of the share of an image's area that is cropped at random; (1, 1) is the centre crop.
        for_trunk: Whether the trunk reads the batch: pixels are normalised by the mean and deviation of
            `image_config`, and texts have a `special_tokens_mask`. Pixels lie in [0, 1] otherwise.
        word_ids: Whether the batch of a text says which word each token belongs to.
        training: Whether a scene shows some of its slices, drawn at every visit.
    """

    tokenizer: PreTrainedTokenizerBase | None = None
    max_text_length: int | None = None
    augmentation: Augmentation = "crop"
    crop_scale: tuple[float, float] = (1.0, 1.0)
    for_trunk: bool = False
    word_ids: bool = False
    training: bool = False


def check_dimensions(owner: str, config: ModalityConfig, dimensions: int, expected: str) -> None:
    """Raise ValueError unless the shape has this number of dimensions, each of a positive size."""
    shape = config.shape or []
    if len(shape) != dimensions or not all(isinstance(size, int) and size > 0 for size in shape):
        raise ValueError(f"{owner}.shape is {config.shape}; expected {expected} for a modality of kind {config.kind}.")


def check_transformer(owner: str, config: TransformerModalityConfig) -> None:
    """Raise ValueError if the options of a transformer decoder do not fit together."""
    check_choice(f"{owner}.conditioning", config.conditioning, ("cross_attention", "prefix"))
    check_count(f"{owner}.num_attention_heads", config.num_attention_heads, 1)
    if config.decoder in ("transformer", "autoregressive"):
        check_heads(owner, config.hidden_size, config.num_attention_heads)
