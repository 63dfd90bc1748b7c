"""The kind `image`."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, ClassVar, cast

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image as Pillow
from torch import Tensor, nn

from m3ae.images.augment import Resize, augment, change, fit, middle, plain
from m3ae.images.pixels import to_8bit
from m3ae.models.autoregressive import AutoregressiveDecoder
from m3ae.models.configuration import M3AEConfig, M3AEImageConfig
from m3ae.models.encoders import normalize_images
from m3ae.models.fusion import Stream
from m3ae.models.latent_networks import ConvolutionalDecoder, MLPDecoder, PatchDecoder, cnn_encoder, mlp_encoder
from m3ae.models.masking import blank_padding
from m3ae.models.modalities.base import Modality, Tensors
from m3ae.models.modalities.options import (
    BatchOptions,
    ModalityConfig,
    TransformerModalityConfig,
    check_dimensions,
    check_transformer,
)
from m3ae.models.option_checks import check_fraction, check_keys, check_number

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from transformers import PreTrainedTokenizerBase

    from m3ae.models.modeling import M3AEEncoders

SMALL_BYTES = 2**14  # of an image, encoded and decoded: decoding it takes longer than all else
KEPT_BYTES = 64 * 2**20  # of all such images of a modality


@dataclass(frozen=True)
class ImageModalityConfig(TransformerModalityConfig):
    """The options of an image.

    The encoder `vit` is the trunk's, shared by all images that have it; `mlp` and `cnn` belong to one image. The
    decoder is by default `transformer` (queries that attend to the latent tokens) with the encoder `vit`, otherwise
    `mlp`; `cnn`, transposed convolutions, has sharper edges than an `mlp`.

    With the encoder `vit` images have the trunk's size and channels, and need no shape; [1] makes them grayscale for a
    trunk of several channels.

    Attributes:
        patch_size: Side of the patches that a transformer decoder predicts; those of the trunk if None.
        mean: Subtracted from each channel before the image is encoded. Images of the encoder `vit` are normalised by
            `image_config`.
        std: What the difference is divided by.
        adversarial: A discriminator of patches that the decoder deceives (`m3ae.models.adversarial`): `weight` of the
            deceit beside the nats of each pixel, and `start`, the share of the steps that learn without.
    """

    patch_size: int | None = None
    mean: list[float] | None = None
    std: list[float] | None = None
    adversarial: dict[str, float] | None = None


def _patch_decoder(modality: Image, input_size: int) -> nn.Module:
    trunk, latent = cast(M3AEImageConfig, modality.model.image_config), cast(Any, modality.model.latent)
    patch_size = modality.config.patch_size or trunk.patch_size
    return PatchDecoder(input_size, modality.config, modality.shape, patch_size, latent.num_tokens)


class Image(Modality):
    """Pixels (C, H, W) in [0, 1]. A cell is an image of Pillow, one to be decoded when it is batched, or an array."""

    kind = "image"
    config_class = ImageModalityConfig
    config: ImageModalityConfig
    columns = ("image",)
    tensor = "pixel_values"
    further_tensors = ("pixel_mask",)
    dimensions = ("C", "H", "W")
    encoders: ClassVar = {
        "vit": None,
        "mlp": lambda modality: mlp_encoder(modality.shape, modality.config),
        "cnn": lambda modality: cnn_encoder(modality.shape, modality.config),
    }
    decoders: ClassVar = {
        "transformer": _patch_decoder,
        "mlp": lambda modality, input_size: MLPDecoder(input_size, modality.config, modality.shape),
        "autoregressive": AutoregressiveDecoder,
        "cnn": lambda modality, input_size: ConvolutionalDecoder(input_size, modality.config, modality.shape),
    }
    is_image = is_pictured = True

    def __init__(self, name: str, config: ModalityConfig, model: M3AEConfig) -> None:
        super().__init__(name, config, model)
        self._kept: dict[bytes, Pillow.Image] = {}

    @classmethod
    def _filled(cls, options: dict[str, Any]) -> dict[str, Any]:
        encoder = options.get("encoder") or "vit"
        if options.get("decoder") is None:
            options["decoder"] = "transformer" if encoder in ("vit", "none") else "mlp"
        return super()._filled(options)

    @classmethod
    def check(cls, owner: str, config: ImageModalityConfig) -> None:
        """Raise ValueError if the options do not fit together."""
        super().check(owner, config)
        check_transformer(owner, config)
        if (config.mean is None) != (config.std is None):
            raise ValueError(f"{owner}: mean and std go together, got mean {config.mean} and std {config.std}.")
        if config.adversarial is not None:
            check_adversary(f"{owner}.adversarial", config)

    @classmethod
    def check_shape(cls, owner: str, config: ImageModalityConfig) -> None:
        """Raise ValueError if an image of the trunk has another shape than grayscale, or another image has none."""
        if config.encoder == "vit":
            check_dimensions(owner, config, len((config.shape or [])[:1]), "none, or [1] for grayscale images,")
        else:
            super().check_shape(owner, config)

    def _shape(self) -> tuple[int, ...]:
        shape = tuple(self.config.shape or ())
        if self.config.encoder != "vit":
            return shape
        trunk = cast(M3AEImageConfig, self.model.image_config)
        if shape not in ((), (1,), (trunk.num_channels,)):
            raise ValueError(
                f"latent.modalities.{self.name}.shape is {self.config.shape}; the encoder vit takes images of "
                f"{trunk.num_channels} channels, which need no shape, or those of [1], whose channel is repeated."
            )
        return (*(shape or (trunk.num_channels,)), trunk.image_size, trunk.image_size)

    @property
    def resize(self) -> Resize:
        """How images of another shape become the model's."""
        return cast(M3AEImageConfig, self.model.image_config).resize

    @property
    def stream(self) -> str | None:
        """The trunk's `image`, for the encoder `vit`."""
        return "image" if self.config.encoder == "vit" else None

    def features(self, targets: Tensors) -> Tensor:
        """Return the normalised pixels; of grayscale images for the trunk, the channel repeated."""
        values = self.elements(targets)
        mean, std = self.config.mean, self.config.std
        if self.stream is not None:
            trunk = cast(M3AEImageConfig, self.model.image_config)
            values, mean, std = values.expand(-1, trunk.num_channels, -1, -1), trunk.image_mean, trunk.image_std
        return values if mean is None or std is None else normalize_images(values, mean, std)

    def targets(self, tensors: Tensors, present: Tensor) -> dict[str, Tensor]:
        """Return the pixels, 0 where absent or padding, and the mask (B, H, W) of padded images."""
        targets = super().targets(tensors, present)
        if (mask := tensors.get("pixel_mask")) is not None:
            targets = {self.tensor: blank_padding(targets[self.tensor], mask), "pixel_mask": mask}
        return targets

    def counted(self, targets: Tensors) -> Tensor | None:
        """Return the pixels (B, 1, H, W) that are no padding."""
        mask = targets.get("pixel_mask")
        return None if mask is None else mask[:, None]

    def encode(self, trunk: M3AEEncoders, targets: Tensors, present: Tensor) -> Stream | Tensor:
        """Return the trunk's tokens, or the normalised pixels."""
        values = self.features(targets)
        if self.stream is None:
            return values
        view, mask = self.model.view_number(self.name), targets.get("pixel_mask")
        return trunk.encode_image(values, None, present, view, mask)

    def read(self, cells: Sequence[Any], seed: int) -> Any | None:
        """Return one of the row's views, still encoded; the seed draws which."""
        views = [cell for cell in cells if cell is not None]
        return views[(seed & 0xFFFFFFFF) % len(views)] if views else None

    def batch(
        self, cells: Sequence[Any | None], options: BatchOptions, draws: Sequence[np.random.Generator]
    ) -> dict[str, Tensor]:
        """Return `pixel_values` (B, C, H, W) float32, in [0, 1] or normalised for the trunk.

        If an image is padded, by zeros, `pixel_mask` (B, H, W) bool is False at the padding.
        """
        pixels, mask = torch.zeros(len(cells), *self.shape), None
        trunk = cast(M3AEImageConfig, self.model.image_config)
        mean, deviation = (torch.tensor(values).view(-1, 1, 1) for values in (trunk.image_mean, trunk.image_std))
        offset, scale = -mean / deviation, 1 / (255 * deviation)
        for row, (cell, draw) in enumerate(zip(cells, draws, strict=True)):
            values = pixels[row]
            if cell is None:
                continue
            if isinstance(cell, np.ndarray):
                values[:] = torch.from_numpy(cell)
                if options.for_trunk:
                    values.sub_(mean).div_(deviation)
                continue
            image = self.pixels(cell, options, draw).float()
            if image.shape[1:] != values.shape[1:]:
                mask = torch.ones(len(cells), *self.shape[1:], dtype=torch.bool) if mask is None else mask
                rows, columns = middle(values.shape[1:], image.shape[1:])
                mask[row] = False
                mask[row, rows, columns] = True
                values = values[:, rows, columns]
            if options.for_trunk:
                torch.addcmul(offset, image, scale, out=values)
            else:
                torch.div(image.expand_as(values), 255, out=values)
        return {self.tensor: pixels} if mask is None else {self.tensor: pixels, "pixel_mask": mask}

    def pixels(self, cell: Any, options: BatchOptions, draw: np.random.Generator) -> Tensor:
        """Return an image at the model's size, or before it is padded to that, augmented: (C or 1, H, W) uint8."""
        if options.crop_scale == (1.0, 1.0):
            image = change(self._fitted(cell), draw, options.augmentation)
        else:
            changes = (options.augmentation, options.crop_scale, self.resize)
            image = augment(self._toned(cell), self.shape[-1], draw, *changes)
        pixels = np.array(image)
        return torch.from_numpy(pixels[None] if pixels.ndim == 2 else pixels.transpose(2, 0, 1))

    def _toned(self, cell: Any) -> Pillow.Image:
        image = self.value(cell)
        return plain(image) if self.shape[0] != 1 else image.convert("L")

    def _fitted(self, cell: Any) -> Pillow.Image:
        """Return an image at the model's size; small stored images are kept as long as there is room."""
        content: bytes = getattr(cell, "content", b"")
        if len(content) <= SMALL_BYTES and content in self._kept:
            return self._kept[content]
        height, width = self.shape[1:]
        image = fit(self._toned(cell), width, height, self.resize)
        size = math.prod(self.shape) + len(content)
        if content and size <= SMALL_BYTES and size * len(self._kept) < KEPT_BYTES:
            self._kept[content] = image
        return image

    @property
    def value_type(self) -> type:
        """An image of Pillow."""
        return Pillow.Image

    def cell(self, value: Any) -> Any:
        """Return the image in 8 bits, or an array (C, H, W) in [0, 1] as it is."""
        if not isinstance(value, np.ndarray):
            self._expect(value)
            return to_8bit(value)
        return super().cell(value)

    def _expect(self, value: Any) -> None:
        if not isinstance(value, np.ndarray):
            super()._expect(value)

    def value(self, cell: Any) -> Pillow.Image:
        """Decode a cell."""
        if isinstance(cell, np.ndarray):
            return _picture(cell)
        image: Pillow.Image = cell if isinstance(cell, Pillow.Image) else cell.decode()
        return image

    def values(self, decoded: Tensor, tokenizer: PreTrainedTokenizerBase | None = None) -> list[Any]:
        """Return images of 8 bits."""
        return [_picture(pixels) for pixels in decoded.detach().cpu().float().numpy()]

    def drawable(self, value: Any) -> NDArray[np.float32]:
        """Return pixels (H, W[, 3]) in [0, 1]."""
        image = value.convert("RGB" if value.mode not in ("L", "1") else "L")
        return np.asarray(image, dtype=np.float32) / np.float32(255)

    def draw(self, axes: Axes, drawable: Any) -> None:
        """Draw pixels."""
        axes.imshow(drawable, cmap="gray", vmin=0, vmax=1)


def check_adversary(owner: str, config: ImageModalityConfig) -> None:
    """Raise ValueError unless the options have a weight and a start, and the decoder a gradient."""
    options = config.adversarial or {}
    check_keys(owner, ["weight", "start"], options, accepted=())
    for option in ("weight", "start"):
        check_number(f"{owner}.{option}", options.get(option))
    check_fraction(f"{owner}.start", options["start"], 0.0, 1.0)
    if options["weight"] and config.decoder == "autoregressive":
        raise ValueError(
            f"{owner}: got an autoregressive decoder, whose draws have no gradient; expected another one."
        )


def _picture(pixels: NDArray[np.float32]) -> Pillow.Image:
    values = (pixels.clip(0, 1) * 255).round().astype(np.uint8).transpose(1, 2, 0)
    return Pillow.fromarray(values[..., 0] if values.shape[-1] == 1 else values)
