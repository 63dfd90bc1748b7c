"""From a stored image to the size that a model sees: the published crops, and changes that a radiograph bears.

Everything is Pillow, as in `M3AEImageProcessor`, so that training and inference see the same pixels. Nothing is ever
mirrored: the side words of the text would become wrong.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Literal

import numpy as np
from PIL import Image, ImageChops, ImageOps

from m3ae.images.pixels import to_8bit

Augmentation = Literal["crop", "radiograph", "affine"]
Resize = Literal["crop", "pad", "stretch"]

ASPECT_RATIOS = (3 / 4, 4 / 3)
CROP_TRIES = 10
MAX_ROTATION = 5.0  # degrees
MAX_SHIFT = 0.05  # share of the side
MAX_TURN, MAX_SCALE_CHANGE, MAX_MOVE = 12.0, 0.12, 0.07  # of `affine`: degrees, as a factor, share of the side
MAX_TONE_CHANGE = 0.1  # of contrast and gamma as factors, and of the grey range for half the brightness


def plain(image: Image.Image) -> Image.Image:
    """Return an image of mode "L" or "RGB"; a grey one stored in colour becomes "L": a third of the work."""
    colour = image if image.mode in ("L", "RGB") else to_8bit(image)
    if colour.mode == "L":
        return colour
    red, green, blue = colour.split()
    same = ImageChops.difference(red, green).getbbox() is None and ImageChops.difference(red, blue).getbbox() is None
    return red if same else colour


def augment(
    image: Image.Image,
    size: int,
    draw: np.random.Generator,
    augmentation: Augmentation,
    crop_scale: tuple[float, float],
    resize: Resize = "crop",
) -> Image.Image:
    """Turn an image into a square of `size` pixels, or with `pad` one that fits into it, as training sees it.

    Args:
        image: The image, of mode "L" or "RGB".
        size: Side in pixels.
        draw: Source of all randomness.
        augmentation: `crop`; `radiograph`, which also turns, shifts and re-tones; or `affine`, which turns, shifts and
            scales.
        crop_scale: Range of the area that is cut out; (1, 1) cuts out nothing at random.
        resize: As for `fit`.
    """
    if crop_scale == (1.0, 1.0):
        return change(fit(image, size, size, resize), draw, augmentation)
    return change(random_crop(image, size, draw, crop_scale, resize), draw, augmentation)


def change(image: Image.Image, draw: np.random.Generator, augmentation: Augmentation) -> Image.Image:
    """Return an image of the model's size as training sees it, see `augment`."""
    changes = {"radiograph": jitter, "affine": affine}
    return changes[augmentation](image, draw) if augmentation in changes else image


def fit(image: Image.Image, width: int, height: int, resize: Resize) -> Image.Image:
    """Resize an image of any shape, pixel for pixel as the processor does.

    Args:
        image: The image.
        width: Width of the model's images in pixels.
        height: Height of the model's images.
        resize: `crop` keeps the middle; `stretch` keeps everything and changes the aspect ratio; `pad` keeps both: the
            result is smaller on one side, and what pads it does not count.
    """
    if resize == "crop" and width == height:
        return centre_crop(image, width)
    if resize == "crop":
        return ImageOps.fit(image, (width, height), Image.Resampling.BICUBIC)
    size = fitted_size(image.size, width, height) if resize == "pad" else (width, height)
    return image.resize(size, Image.Resampling.BICUBIC) if image.size != size else image


def fitted_size(size: tuple[int, int], width: int, height: int) -> tuple[int, int]:
    """Return the largest size of the same aspect ratio, to the pixel, that fits into `width` and `height`."""
    if size[0] * height >= size[1] * width:
        return width, max(1, round(size[1] * width / size[0]))
    return max(1, round(size[0] * height / size[1])), height


def middle(outer: Sequence[int], inner: Sequence[int]) -> tuple[slice, slice]:
    """Return the rows and the columns of an image of size (H, W) in which a smaller one lies that is padded to it."""
    top, left = ((whole - side) // 2 for whole, side in zip(outer, inner, strict=True))
    return slice(top, top + inner[0]), slice(left, left + inner[1])


def centre_crop(image: Image.Image, size: int) -> Image.Image:
    """Resize the shorter side to `size` pixels and cut out the middle: pixel for pixel what the processor does."""
    width, height = image.size
    if width <= height:
        width, height = size, int(size * height / width)
    else:
        width, height = int(size * width / height), size
    resized = image.resize((width, height), Image.Resampling.BICUBIC) if image.size != (width, height) else image
    left, top = (width - size) // 2, (height - size) // 2
    return resized.crop((left, top, left + size, top + size))


def random_crop(
    image: Image.Image, size: int, draw: np.random.Generator, scale: tuple[float, float], resize: Resize = "crop"
) -> Image.Image:
    """Cut out a random share of the area and resize it to a square (the random resized crop of Inception).

    The published recipe has a scale of (0.9, 1) and, as here, aspect ratios from 3/4 to 4/3, with `pad` and `stretch`
    times that of the image. A shape that does not fit into the image in ten tries is replaced by what `fit` returns.
    """
    width, height = image.size
    aspect = 1.0 if resize == "crop" else width / height
    for _ in range(CROP_TRIES):
        area = width * height * draw.uniform(*scale)
        ratio = math.exp(draw.uniform(*np.log(ASPECT_RATIOS))) * aspect
        w, h = round(math.sqrt(area * ratio)), round(math.sqrt(area / ratio))
        if 0 < w <= width and 0 < h <= height:
            left, top = int(draw.integers(width - w + 1)), int(draw.integers(height - h + 1))
            box, target = (left, top, left + w, top + h), (size, size)
            target = fitted_size((w, h), *target) if resize == "pad" else target
            return image.resize(target, Image.Resampling.BICUBIC, box=box)
    return fit(image, size, size, resize)


def jitter(image: Image.Image, draw: np.random.Generator) -> Image.Image:
    """Turn by up to 5 degrees, shift by up to 5 % of the side, and vary the tones.

    Contrast and gamma vary by up to 10 %, brightness by up to 5 % of the range. What comes in at the borders is
    black, as the surroundings of a radiograph are.
    """
    angle = draw.uniform(-MAX_ROTATION, MAX_ROTATION)
    shift = draw.uniform(-MAX_SHIFT, MAX_SHIFT, size=2) * image.size
    turned = image.rotate(angle, Image.Resampling.BILINEAR, translate=(round(shift[0]), round(shift[1])))
    limit = math.log(1 + MAX_TONE_CHANGE)
    contrast, gamma = np.exp(draw.uniform(-limit, limit, size=2))
    brightness = draw.uniform(-MAX_TONE_CHANGE, MAX_TONE_CHANGE) / 2
    grey = (np.arange(256) / 255) ** gamma
    table = ((grey - 0.5) * contrast + 0.5 + brightness).clip(0, 1) * 255
    return turned.point(table.round().astype(int).tolist() * len(image.getbands()))


def affine(image: Image.Image, draw: np.random.Generator) -> Image.Image:
    """Turn by up to 12 degrees, scale by up to 12 %, and shift by up to 7 % of the side, as a hand does that writes.

    What comes in at the borders is black.
    """
    angle = math.radians(draw.uniform(-MAX_TURN, MAX_TURN))
    scale = math.exp(draw.uniform(-1, 1) * math.log(1 + MAX_SCALE_CHANGE))
    centre = np.array(image.size) / 2
    matrix = np.array([[math.cos(angle), math.sin(angle)], [-math.sin(angle), math.cos(angle)]]) / scale
    offset = centre - matrix @ (centre + draw.uniform(-MAX_MOVE, MAX_MOVE, size=2) * image.size)
    rows = np.column_stack([matrix, offset]).ravel().tolist()
    return image.transform(image.size, Image.Transform.AFFINE, rows, Image.Resampling.BILINEAR)
