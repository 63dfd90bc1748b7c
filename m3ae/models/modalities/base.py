"""What a kind of modality is: from the cell of a row to tensors, through encoder and decoder, and back to a user.

Shapes: B batch, E the shape of an element, R rows of latents, Z dimensions of z and of the private latent together, W
width, L text tokens.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import fields
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from m3ae.models.autoregressive import AutoregressiveDecoder
from m3ae.models.configuration import M3AEConfig
from m3ae.models.fusion import Stream
from m3ae.models.latent_configuration import LatentConfig
from m3ae.models.latent_networks import Expert
from m3ae.models.likelihoods import Bernoulli, Laplace, Levels, Likelihood, Normal, NormalMixture
from m3ae.models.modalities.options import BatchOptions, ModalityConfig, check_dimensions
from m3ae.models.option_checks import check_choice, check_count, check_fraction, check_keys, check_number

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from transformers import PreTrainedTokenizerBase

    from m3ae.models.modeling import M3AEEncoders

Tensors = Mapping[str, Tensor]


class Modality:
    """A modality of a model: its name, its options, and everything that depends on its kind.

    This class serves kinds whose elements are arrays of one shape. Other kinds override some methods: how a cell
    is read and batched (`read`, `batch`), what enters encoder and likelihood (`targets`, `features`, `encode`,
    `log_likelihood`, `decode`), what a user gives and gets (`cell`, `value`, `values`), and how a figure shows it
    (`drawable`, `draw`). Networks and likelihoods come from the tables `encoders`, `decoders` and `likelihoods`.

    Args:
        name: Name of the modality.
        config: The modality's options, from `configure`.
        model: The model's configuration, `latent` included.

    Attributes:
        shape: Shape of what a decoder predicts for one element: (F,), (C, H, W), or (A,) for the logits of classes.
    """

    kind: ClassVar[str]
    config_class: ClassVar[type[ModalityConfig]] = ModalityConfig
    columns: ClassVar[tuple[str, ...]] = ("array",)  # types of the prepared columns that hold it
    tensor: ClassVar[str] = "values"  # what a batch calls its values
    further_tensors: ClassVar[tuple[str, ...]] = ()  # what else a batch may have of it
    dimensions: ClassVar[tuple[str, ...]] = ()  # names of those of `config.shape`
    encoders: ClassVar[dict[str, Callable[..., nn.Module] | None]]  # None is an encoder of the trunk
    decoders: ClassVar[dict[str, Callable[..., nn.Module]]]
    likelihoods: ClassVar[dict[str, Callable[[ModalityConfig], Likelihood] | None]] = {
        "normal": Normal,
        "laplace": Laplace,
        "bernoulli": Bernoulli,
        "categorical": Levels,
        "mixture": NormalMixture,
    }
    is_text: ClassVar[bool] = False  # a decoder writes token ids
    is_class: ClassVar[bool] = False  # every element is one of some classes
    is_image: ClassVar[bool] = False  # elements are pixels (C, H, W)
    is_set: ClassVar[bool] = False  # an element is any number of things, which no row has in common with another
    is_volume: ClassVar[bool] = False  # elements are voxels (C, D, H, W)
    is_pictured: ClassVar[bool] = False  # elements are drawn as rectangles that can be laid side by side

    def __init__(self, name: str, config: ModalityConfig, model: M3AEConfig) -> None:
        self.name, self.config, self.model = name, config, model
        self.shape: tuple[int, ...] = self._shape()

    # Options

    @classmethod
    def configure(cls, owner: str, options: Mapping[str, Any]) -> ModalityConfig:
        """Fill in the defaults and check the options.

        Args:
            owner: The options' key, for messages.
            options: Options of `config_class`.

        Raises:
            ValueError: An option is unknown, missing, out of range, or does not go with the kind.
        """
        check_keys(owner, [field.name for field in fields(cls.config_class)], options, accepted=())
        filled = cls._filled({**options, "kind": cls.kind})
        config = cls.config_class(**filled)
        check_choice(f"{owner}.encoder", config.encoder, (*cls.encoders, "none"))
        check_choice(f"{owner}.decoder", config.decoder, tuple(cls.decoders))
        check_choice(f"{owner}.likelihood", config.likelihood, tuple(cls.likelihoods))
        cls.check(owner, config)
        return config

    @classmethod
    def _filled(cls, options: dict[str, Any]) -> dict[str, Any]:
        """Return the options with the defaults of encoder, decoder and likelihood."""
        for option, table in (("encoder", cls.encoders), ("decoder", cls.decoders), ("likelihood", cls.likelihoods)):
            if options.get(option) is None:
                options[option] = next(iter(table))
        return options

    @classmethod
    def check(cls, owner: str, config: Any) -> None:
        """Raise ValueError if a size, a shape or a weight of the options, called `owner`, is out of range."""
        for option in ("hidden_size", "num_layers"):
            check_count(f"{owner}.{option}", getattr(config, option), 1)
        check_count(f"{owner}.private_size", config.private_size, 0)
        check_count(f"{owner}.levels", config.levels, 2)
        check_number(f"{owner}.scale", config.scale, positive=True)
        check_number(f"{owner}.weight", config.weight, positive=True)
        check_fraction(f"{owner}.dropout", config.dropout, 0.0, 0.9)
        if config.encoder == "none" and config.private_size:
            raise ValueError(
                f"{owner}.private_size: a modality without encoder has no private posterior, set it to 0."
            )
        cls.check_shape(owner, config)
        build = cls.likelihoods[str(config.likelihood)]
        if build is not None and build(config).num_parameters > 1 and config.decoder != "autoregressive":
            raise ValueError(
                f"{owner}.likelihood: got {config.likelihood}, of several parameters a value, for the decoder "
                f"{config.decoder}; expected the decoder autoregressive, or another likelihood."
            )

    @classmethod
    def check_shape(cls, owner: str, config: Any) -> None:
        """Raise ValueError if `shape` has other dimensions than the kind."""
        expected = f"[{', '.join(cls.dimensions)}]" if cls.dimensions else "none"
        check_dimensions(owner, config, len(cls.dimensions), expected)

    # Networks

    def _shape(self) -> tuple[int, ...]:
        return tuple(self.config.shape or ())

    @property
    def stream(self) -> str | None:
        """Name of the stream of the trunk that the modality's expert reads; None if another network encodes it."""
        return None

    def build_expert(self, latent: LatentConfig) -> Expert:
        """Build the network from what `encode` returns to the Gaussians of z and of the private latent."""
        return Expert(self, latent)

    def build_encoder(self) -> nn.Module | None:
        """Build the network from `features` (B, *E) to (B, W), W = `hidden_size`; None if the trunk encodes it."""
        build = self.encoders[str(self.config.encoder)]
        return None if build is None else build(self)

    def build_decoder(self, input_size: int) -> nn.Module:
        """Build the network from latents (R, Z), Z = `input_size`, to means or logits (R, *shape)."""
        return self.decoders[str(self.config.decoder)](self, input_size)

    def build_likelihood(self) -> Likelihood | None:
        """Build p(x|z) around the decoder's prediction; None if the decoder computes the likelihood itself."""
        build = self.likelihoods[str(self.config.likelihood)]
        return None if build is None else build(self.config)

    def targets(self, tensors: Tensors, present: Tensor) -> dict[str, Tensor]:
        """Return the tensors of a batch that a likelihood reads; absent samples (B,) have zeros, never NaN."""
        values = tensors[self.tensor]
        rows = present.reshape(-1, *[1] * (values.dim() - 1))
        return {self.tensor: torch.where(rows, values, 0)}

    def features(self, targets: Tensors) -> Tensor:
        """Return what an encoder other than the trunk's reads, (B, *E)."""
        return self.elements(targets)

    def elements(self, tensors: Tensors) -> Tensor:
        """Return the elements of a batch as `decode` gives them, (B, *shape) or token ids (B, L)."""
        return tensors[self.tensor]

    def encode(self, trunk: M3AEEncoders, targets: Tensors, present: Tensor) -> Stream | Tensor:
        """Return what the modality's expert reads: tokens of the trunk, or `features`."""
        return self.features(targets)

    def log_likelihood(
        self,
        decoder: nn.Module,
        likelihood: nn.Module | None,
        latents: Tensor,
        targets: Tensors,
        noise: Tensor | None = None,
        generator: torch.Generator | None = None,
    ) -> Tensor:
        """Return log p(x|z) (…, B) in nats at latents (…, B, Z).

        Args:
            decoder: The network of `build_decoder`.
            likelihood: What `build_likelihood` returns.
            latents: Shared and private latents.
            targets: What `targets` returns.
            noise: Uniform noise (…, B, 1 + L) of decoders of texts.
            generator: Source of the noise that is None.
        """
        assert likelihood is not None
        latents, elements = self.queried(latents, targets.get("poses")), targets[self.tensor]
        read = [elements] if isinstance(decoder, AutoregressiveDecoder) else []
        predicted = decoder(latents.flatten(0, -2), *read).unflatten(0, latents.shape[:-1])
        counted = self.counted(targets)
        value: Tensor = likelihood(predicted, elements, *([] if counted is None else [counted]))
        return value

    def queried(self, latents: Tensor, query: Any = None) -> Tensor:
        """Return the decoder's input, (…, B, Z) or more: latents (…, B, Z) with a query such as poses.

        Raises:
            ValueError: A decoder that reads z alone gets a query.
        """
        if query is not None:
            raise ValueError(f"{self.name} is of kind {self.kind}, which has no poses; ask for it by its name alone")
        return latents

    def counted(self, targets: Tensors) -> Tensor | None:
        """Return which elements a likelihood counts, to be broadcast to (B, *E); None if all."""
        return None

    def decode(
        self,
        decoder: nn.Module,
        likelihood: nn.Module | None,
        latents: Tensor,
        text_options: Mapping[str, Any],
        generator: torch.Generator | None = None,
    ) -> Tensor:
        """Return the mean at latents (R, Z), or an autoregressive draw: (R, *shape), or token ids (R, L)."""
        assert isinstance(likelihood, Likelihood)
        if isinstance(decoder, AutoregressiveDecoder):
            return decoder.draw(latents, likelihood, generator)
        return likelihood.mean(decoder(latents))

    # Data

    def read(self, cells: Sequence[Any], seed: int) -> Any | None:
        """Return the cell of one visit of a row; None if the row lacks the modality.

        Args:
            cells: The cells of the modality's columns: arrays, texts, lists of texts, stored images, or None.
            seed: Seed of the visit, which draws one of several views or texts; 0 takes the first.

        Raises:
            ValueError: A number is not finite.
        """
        if cells[0] is None:
            return None
        array = np.asarray(cells[0], dtype=np.float32)
        if not np.isfinite(array).all():
            raise ValueError(f"{self.name} has NaN or infinity, expected finite numbers, or null for a missing one")
        return self.cell(array)

    def check_column(self, column: Callable[[], Iterable[Any]], *, training: bool = True) -> None:
        """Raise ValueError if the rows of a split do not fit the options; by default, all fit.

        Args:
            column: Returns the modality's column of the split.
            training: Whether the split is that of training.
        """

    def batch(
        self, cells: Sequence[Any | None], options: BatchOptions, draws: Sequence[np.random.Generator]
    ) -> dict[str, Tensor]:
        """Return the tensors of some cells, 0 where a sample has none.

        Args:
            cells: B cells, as `read` or `cell` returns them.
            options: Tokenizer and augmentation.
            draws: The randomness of each sample's visit.
        """
        blank = self.blank()
        stacked = np.stack([blank if cell is None else cell for cell in cells])
        return {self.tensor: torch.from_numpy(stacked)}

    def blank(self) -> NDArray[Any]:
        """Return the element that stands for an absent one in a batch."""
        return np.zeros(self.shape, np.float32)

    # Users

    @property
    def value_type(self) -> type:
        """Type of a user's values: an array, an image, a text, or a list of names."""
        return np.ndarray

    def cell(self, value: Any) -> Any:
        """Turn a user's value into a cell.

        Raises:
            ValueError: The value is of another type or shape.
        """
        self._expect(value)
        array = np.asarray(value, dtype=np.float32)
        if array.shape != self.shape:
            raise ValueError(f"{self.name}: got an array of shape {array.shape}, expected {self.shape}")
        return array

    def load(self, path: Path) -> NDArray[Any]:
        """Read a user's array from a file, `.npy`.

        Raises:
            ValueError: The file holds no array.
        """
        try:
            array: NDArray[Any] = np.load(path, allow_pickle=False)
        except (OSError, ValueError, EOFError) as error:
            raise ValueError(f"{self.name}: {path} is no array in a .npy file ({error})") from error
        return array

    def value(self, cell: Any) -> Any:
        """Turn a cell into a user's value: the inverse of `cell`."""
        return cell

    def values(self, decoded: Tensor, tokenizer: PreTrainedTokenizerBase | None = None) -> list[Any]:
        """Turn the rows that `decode` returns into a user's values."""
        return list(decoded.detach().cpu().float().numpy())

    def drawable(self, value: Any) -> Any:
        """Turn a user's value into the argument of `draw`."""
        return value

    def draw(self, axes: Axes, drawable: Any) -> None:
        """Draw a value into a panel without ticks."""
        axes.plot(np.ravel(drawable), linewidth=1)

    def _expect(self, value: Any) -> None:
        if not isinstance(value, self.value_type):
            raise ValueError(
                f"{self.name} is of kind {self.kind}: expected {self.value_type.__name__}, got {type(value).__name__}"
            )
