"""Turning images and texts into what the models take."""

from __future__ import annotations

import base64
import os
from collections.abc import Iterator
from contextlib import suppress
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from huggingface_hub import get_session
from PIL import Image
from transformers import BatchFeature, PreTrainedTokenizerBase, ProcessorMixin
from transformers.image_processing_backends import PilBackend
from transformers.image_utils import ChannelDimension, PILImageResampling, SizeDict, is_valid_image

from m3ae.images.augment import Resize, fitted_size, middle
from m3ae.images.files import load_image
from m3ae.images.pixels import MAX_ASPECT, array_to_8bit, to_8bit

if TYPE_CHECKING:
    from m3ae.models.configuration import M3AEImageConfig  # which reads processors


class M3AEImageProcessor(PilBackend):
    """Make images square as the model's `image_config.resize` says, scale and normalise them as CLIP does.

    By default, the shorter side is resized to the model's size, and the centre is cropped. `for_size` builds others:
    `pad` puts an image into the middle of zeros, and gives a `pixel_mask` (B, H, W) that is 0 at these.

    Only the Pillow backend exists: torchvision's resampling differs by up to 0.015, and a model should see the same
    pixels wherever it runs.
    """

    do_resize = True
    do_center_crop = True
    do_pad = False
    do_rescale = True
    do_normalize = True
    do_convert_rgb = True
    resample = PILImageResampling.BICUBIC
    default_to_square = False  # a single number is the shorter side
    size = {"shortest_edge": 288}  # noqa: RUF012 (plain attributes in the base class)
    crop_size = {"height": 288, "width": 288}  # noqa: RUF012
    image_mean = [0.48145466, 0.4578275, 0.40821073]  # noqa: RUF012
    image_std = [0.26862954, 0.26130258, 0.27577711]  # noqa: RUF012
    model_input_names = ["pixel_values", "pixel_mask"]  # noqa: RUF012

    def fetch_images(self, image_url_or_urls: Any) -> Any:
        """Read images that are paths, addresses, bytes or base64, as `m3ae.images.files.load_image` does.

        Raises:
            TypeError: What is to be processed is no image.
            ValueError: An image cannot be read.
        """
        if isinstance(image_url_or_urls, list | tuple):
            return [self.fetch_images(image) for image in image_url_or_urls]
        if isinstance(image_url_or_urls, str | os.PathLike | bytes):
            return load_image(_content(image_url_or_urls))
        if not is_valid_image(image_url_or_urls):
            raise TypeError(
                f"images: got {type(image_url_or_urls).__name__}, expected a picture of Pillow, an array, a tensor, "
                "a path, an address, bytes, or a list of these"
            )
        return image_url_or_urls

    def _prepare_images_structure(self, images: Any, expected_ndims: int = 3) -> list[Any]:
        return list(_flat(self.fetch_images(images)))

    def process_image(
        self, image: Any, do_convert_rgb: bool | None = None, input_data_format: Any = None, **kwargs: Any
    ) -> np.ndarray:
        """Return an image as an array (C, H, W) of 8-bit values, see `m3ae.images.pixels`.

        Only the values of an array that the processor is not to rescale, or by another factor, stay as they are.

        Raises:
            ValueError: An array is of a shape that no image has, or does not hold real numbers.
        """
        if isinstance(image, torch.Tensor):
            image = (image.float() if image.dtype == torch.bfloat16 else image).detach().cpu().numpy()
        if isinstance(image, np.ndarray) and image.ndim == 2:
            image, input_data_format = np.stack([image] * (3 if do_convert_rgb else 1)), ChannelDimension.FIRST
        is_plain = kwargs.get("do_rescale", True) and kwargs.get("rescale_factor", 1 / 255) == 1 / 255
        if isinstance(image, np.ndarray) and not is_plain:
            values: np.ndarray = super().process_image(image, do_convert_rgb, input_data_format, **kwargs)
            return values
        if isinstance(image, np.ndarray):
            pixels = array_to_8bit(image, input_data_format and input_data_format == ChannelDimension.LAST)
            if not do_convert_rgb:
                return pixels.transpose(2, 0, 1)
            image = Image.fromarray(pixels[..., 0] if pixels.shape[-1] == 1 else pixels)
        picture = to_8bit(image)
        pixels = np.asarray(picture.convert("RGB") if do_convert_rgb else picture)
        return pixels[None] if pixels.ndim == 2 else pixels.transpose(2, 0, 1)

    def resize(self, image: np.ndarray, size: SizeDict, *args: Any, **kwargs: Any) -> np.ndarray:
        """Resize an image (C, H, W).

        Raises:
            ValueError: One of its sides is over 100 times the other: resizing would need as many times the memory.
        """
        height, width = image.shape[-2:]
        if max(height, width) > MAX_ASPECT * min(height, width):
            raise ValueError(
                f"got an image of {width}x{height} pixels, expected a longer side of at most {MAX_ASPECT} times the "
                "shorter one: cut out the part that matters"
            )
        if size.max_height and size.max_width:  # transformers rounds down, and may miss the size by a pixel
            width, height = fitted_size((width, height), size.max_width, size.max_height)
            size = SizeDict(height=height, width=width)
        resized: np.ndarray = super().resize(image, size, *args, **kwargs)
        return resized

    def _preprocess(self, images: list[np.ndarray], *args: Any, **kwargs: Any) -> BatchFeature:  # type: ignore[override]
        if not kwargs.get("do_pad"):
            return super()._preprocess(images, *args, **kwargs)
        unpadded = super()._preprocess(images, *args, **{**kwargs, "do_pad": False, "return_tensors": None})
        pixels, pad_size = unpadded["pixel_values"], kwargs["pad_size"]
        size = (pad_size.height, pad_size.width)
        padded = [np.zeros((len(values), *size), values.dtype) for values in pixels]
        masks = [np.zeros(size, np.int64) for _ in pixels]
        for values, target, mask in zip(pixels, padded, masks, strict=True):
            rows, columns = middle(size, values.shape[1:])
            target[:, rows, columns], mask[rows, columns] = values, 1
        return BatchFeature({"pixel_values": padded, "pixel_mask": masks}, kwargs["return_tensors"])

    @property
    def resize_mode(self) -> Resize:
        """How images become square, see `M3AEImageConfig.resize`."""
        return "crop" if self.do_center_crop else "pad" if self.do_pad else "stretch"

    @classmethod
    def for_size(cls, image_size: int, resize: Resize = "crop", **options: Any) -> M3AEImageProcessor:
        """Build the processor of a model whose images have `image_size` pixels a side, with further options."""
        square = {"height": image_size, "width": image_size}
        longest = {"max_height": image_size, "max_width": image_size}
        modes: dict[Resize, dict[str, Any]] = {
            "crop": {"size": {"shortest_edge": image_size}, "crop_size": square},
            "pad": {"size": longest, "do_center_crop": False, "do_pad": True, "pad_size": square},
            "stretch": {"size": square, "do_center_crop": False},
        }
        return cls(**modes[resize], **options)


def _content(source: str | os.PathLike[str] | bytes) -> str | os.PathLike[str] | bytes:
    """Return the bytes of an address or of base64; a path as it is."""
    if isinstance(source, str) and source.startswith(("http://", "https://")):
        content: bytes = get_session().get(source, follow_redirects=True).raise_for_status().content
        return content
    if isinstance(source, str) and not os.path.isfile(source):
        with suppress(ValueError):  # of which no path consists
            return base64.b64decode(source.partition("base64,")[2] or source, validate=True)
    return source


def _flat(images: Any) -> Iterator[Any]:
    """Yield the images of nested lists and of arrays (B, C, H, W) or (B, H, W, C)."""
    if isinstance(images, list | tuple) or getattr(images, "ndim", 0) == 4:
        for image in images:
            yield from _flat(image)
    else:
        yield images


class M3AEProcessor(ProcessorMixin):
    """An image processor and a tokenizer: `processor(images=..., text=...)` gives a model's keyword arguments.

    Args:
        image_processor: Usually `M3AEImageProcessor`.
        tokenizer: Any Hugging Face tokenizer with a mask and a padding token.

    Raises:
        TypeError: An input is no image, or no text.
        ValueError: The tokenizer lacks a special token that masked-language modelling needs; or what is to be
            processed is an empty list, or an image without pixels or of a shape that no image has.
    """

    def __init__(
        self,
        image_processor: M3AEImageProcessor | None = None,
        tokenizer: PreTrainedTokenizerBase | None = None,
        **kwargs: Any,
    ) -> None:
        if tokenizer is not None:
            for name in ("mask_token", "pad_token"):
                if getattr(tokenizer, name) is None:
                    raise ValueError(
                        f"M3AE predicts masked words and needs a tokenizer with a {name}; "
                        f"{type(tokenizer).__name__} from {tokenizer.name_or_path or 'memory'!r} has none. "
                        f"Use a RoBERTa- or BERT-like tokenizer, or add one: tokenizer.add_special_tokens("
                        f"{{{name!r}: '<{name.removesuffix('_token')}>'}})."
                    )
        super().__init__(image_processor, tokenizer, **kwargs)

    def __call__(self, images: Any = None, text: Any = None, *args: Any, **kwargs: Any) -> BatchFeature:
        """Return a model's keyword arguments; tensors of several texts are padded to the longest one by default."""
        several = isinstance(text, list | tuple) and len(text) > 1 and kwargs.get("return_tensors") is not None
        if several and "padding" not in kwargs | (kwargs.get("text_kwargs") or {}):
            kwargs["padding"] = True
        batch: BatchFeature = super().__call__(images, text, *args, **kwargs)
        return batch

    def validate_inputs(
        self, images: Any = None, text: Any = None, videos: Any = None, audio: Any = None, **kwargs: Any
    ) -> None:
        """Check all inputs before any of them is processed.

        Raises:
            ValueError: An empty list, or an array without elements.
        """
        for name, given in (("images", images), ("text", text)):
            if _is_empty(given):
                raise ValueError(f"{name}: got an empty {type(given).__name__}, expected at least one, or None")
        super().validate_inputs(images=images, text=text, videos=videos, audio=audio, **kwargs)


def _is_empty(given: Any) -> bool:
    """Return whether a list, a list in it, or an array has no element."""
    if isinstance(given, list | tuple):
        return not given or any(map(_is_empty, given))
    return 0 in getattr(given, "shape", ())


def check_processor(processor: M3AEImageProcessor, config: M3AEImageConfig) -> None:
    """Raise ValueError if a processor does not prepare images as the model's configuration says."""
    if processor.resize_mode != config.resize:
        raise ValueError(
            f"the processor makes images square by resize {processor.resize_mode!r}, but image_config of the model "
            f"says {config.resize!r}: give it M3AEImageProcessor.for_size({config.image_size}, {config.resize!r})"
        )
    expected = [config.image_mean, config.image_std]
    stated = [list(processor.image_mean), list(processor.image_std)] if processor.do_normalize else [None, None]
    if stated != expected:
        raise ValueError(
            f"the processor normalises images by mean {stated[0]} and deviation {stated[1]}, but image_config of the "
            f"model says mean {expected[0]} and deviation {expected[1]}: give the processor these"
        )
