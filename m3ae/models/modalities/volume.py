"""The kind `volume`."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn
from torch.nn import functional as F

from m3ae.images.volumes import load_volume
from m3ae.models.latent_networks import ConvolutionalDecoder, ImplicitDecoder, cnn_encoder
from m3ae.models.modalities.base import Modality
from m3ae.models.modalities.options import ModalityConfig
from m3ae.models.option_checks import check_count, check_number

if TYPE_CHECKING:
    from matplotlib.axes import Axes

TURN, LIFT = 0.6, 0.45  # radians by which the view of a surface goes around it, and above it
LIGHT = (-0.45, -0.6, -0.66)  # where it comes from: right, down, away from the viewer
MOST_BLOCKS = 4  # along a side of what the implicit decoder predicts; more are slower, and blur more after equal time
REACH = 1.2  # of the view, in halves of the longest side


@dataclass(frozen=True)
class VolumeModalityConfig(ModalityConfig):
    """The options of a volume.

    Attributes:
        patch_size: Side of the cubes of voxels that the convolutions see as channels of one position, and predict
            together (sub-pixel convolution, Shi et al. 2016): of 4, training costs about a tenth of
            1, which None is. The decoder `implicit` has blocks of its own, four along each side if they fit.
        spacing: Millimetres between the voxels, to which volumes in files are resampled. If None, each volume is
            scaled so that it just fits.
    """

    patch_size: int | None = None
    spacing: float | None = None


class Blocks(nn.Module):
    """Makes blocks of p·q·r voxels channels of one position, (B, C, D, …) → (B, C·p·q·r, D/p, …), or the reverse."""

    def __init__(self, sides: Sequence[int], *, merge: bool) -> None:
        super().__init__()
        self.sides, self.merge = tuple(sides), merge

    def forward(self, voxels: Tensor) -> Tensor:
        """Move voxels between space and channels."""
        p, q, r = self.sides
        if self.merge:  # (B, C·p·q·r, D, H, W)
            cut = voxels.unflatten(1, (-1, p, q, r)).permute(0, 1, 5, 2, 6, 3, 7, 4)  # (B, C, D, p, H, q, W, r)
            merged: Tensor = cut.flatten(6).flatten(4, 5).flatten(2, 3)
            return merged
        cut = voxels.unflatten(4, (-1, r)).unflatten(3, (-1, q)).unflatten(2, (-1, p))  # (B, C, D, p, H, q, W, r)
        channels: Tensor = cut.permute(0, 1, 3, 5, 7, 2, 4, 6).flatten(1, 4)
        return channels


def _patches(modality: Volume) -> list[int]:
    """Return the sides of what the convolutions see as one position."""
    return [modality.config.patch_size or 1] * 3


def _in_blocks(modality: Volume, blocks: Sequence[int]) -> list[int]:
    """Return the shape of an element in blocks."""
    channels, *sides = modality.shape
    return [channels * math.prod(blocks), *(side // block for side, block in zip(sides, blocks, strict=True))]


def _encoder(modality: Volume) -> nn.Module:
    blocks = _patches(modality)
    return nn.Sequential(Blocks(blocks, merge=False), *cnn_encoder(_in_blocks(modality, blocks), modality.config))


def _decoder(modality: Volume, input_size: int) -> nn.Module:
    blocks = _patches(modality)
    decoder = ConvolutionalDecoder(input_size, modality.config, _in_blocks(modality, blocks))
    return nn.Sequential(decoder, Blocks(blocks, merge=True))


def _implicit_decoder(modality: Volume, input_size: int) -> nn.Module:
    counts = (max(count for count in range(1, MOST_BLOCKS + 1) if side % count == 0) for side in modality.shape[1:])
    blocks = [side // count for side, count in zip(modality.shape[1:], counts, strict=True)]
    decoder = ImplicitDecoder(input_size, modality.config, _in_blocks(modality, blocks))
    return nn.Sequential(decoder, Blocks(blocks, merge=True))


class Volume(Modality):
    """Voxels (C, D, H, W), mostly in [0, 1]. A cell is an array; one of 8 bits is divided by 255.

    The networks are those of images in three dimensions. A figure shows the mid planes, axial, coronal and sagittal,
    and the surface at half of the range.
    """

    kind = "volume"
    config_class = VolumeModalityConfig
    config: VolumeModalityConfig
    dimensions = ("C", "D", "H", "W")
    encoders: ClassVar = {"cnn": _encoder}
    decoders: ClassVar = {"cnn": _decoder, "implicit": _implicit_decoder}
    is_volume = is_pictured = True

    @classmethod
    def check(cls, owner: str, config: VolumeModalityConfig) -> None:
        """Raise ValueError if an option is out of range."""
        super().check(owner, config)
        if config.spacing is not None:
            check_number(f"{owner}.spacing", config.spacing, positive=True)
        if config.patch_size is not None:
            check_count(f"{owner}.patch_size", config.patch_size, 1)
        if any(side % (config.patch_size or 1) for side in (config.shape or [])[1:]):
            raise ValueError(
                f"{owner}.patch_size: got {config.patch_size} for the shape {config.shape}; expected a divisor of all "
                "sides."
            )

    def read(self, cells: Any, seed: int) -> NDArray[np.float32] | None:
        """Return the voxels of a row, float32."""
        return None if cells[0] is None else self.cell(np.asarray(cells[0]))

    def cell(self, value: Any) -> NDArray[np.float32]:
        """Return voxels as float32, those of 8 bits divided by 255."""
        scale = 255 if getattr(value, "dtype", None) == np.uint8 else 1
        cell: NDArray[np.float32] = super().cell(value)
        return cell / np.float32(scale)

    def load(self, path: Path) -> NDArray[np.float32]:
        """Read a file or a folder as `m3ae.images.volumes.load_volume` does, resampled to the shape.

        Raises:
            ImportError: A library is missing.
            ValueError: The file cannot be used, or the modality has several channels.
        """
        if self.shape[0] != 1:
            raise ValueError(f"{self.name}: {path.name} has one channel, expected an array {self.shape}")
        return self.cell(load_volume(path).on_grid(self.shape[1:], self.config.spacing)[None])

    def drawable(self, value: Any) -> NDArray[np.float32]:
        """Return a picture in [0, 1] of the first channel: mid planes and surface of S × S pixels, two by two."""
        low, high = min(0.0, float(value.min())), max(1.0, float(value.max()))
        voxels = (torch.from_numpy(np.array(value[0], np.float32)) - low) / (high - low)
        depth, height, width = (side // 2 for side in voxels.shape)
        panels = [voxels[depth], voxels[:, height].flip(0), voxels[:, :, width].flip(0), surface(voxels)]  # head up
        side = max(voxels.shape)
        rows = [torch.cat([_centred(panel, side) for panel in pair], 1) for pair in (panels[:2], panels[2:])]
        picture: NDArray[np.float32] = torch.cat(rows).numpy()
        return picture

    def draw(self, axes: Axes, drawable: Any) -> None:
        """Draw the picture."""
        axes.imshow(drawable, cmap="gray", vmin=0, vmax=1)


def surface(voxels: Tensor, level: float = 0.5, scale: int = 1) -> Tensor:
    """Render the surface of a volume (D, H, W) at a level, seen from the front, one side and above: (S, S) in [0, 1].

    Parallel rays end where they first meet the level; it is as bright there as its normal faces the light (Lambert).
    Rays need no further library, and less time than triangles. S is the longest side times `scale`.
    """
    side, rays = max(voxels.shape), scale * max(voxels.shape)
    turn, lift = torch.tensor(TURN), torch.tensor(LIFT)
    across = torch.linspace(-REACH, REACH, rays)
    depth = torch.linspace(-REACH, REACH, 2 * side)
    far, down, right = torch.meshgrid(depth, across, across, indexing="ij")
    back, up = far * lift.cos() - down * lift.sin(), -far * lift.sin() - down * lift.cos()
    x, y = right * turn.cos() - back * turn.sin(), right * turn.sin() + back * turn.cos()
    lengths = torch.tensor([side / length for length in reversed(voxels.shape)])
    grid = torch.stack([x, y, up], -1)[None] * lengths
    values = F.grid_sample(voxels[None, None], grid, align_corners=False)[0, 0]  # (2·side, S, S), 0 outside
    inside = values > level
    first = inside.int().argmax(0)
    after, before = (values.gather(0, index[None])[0] for index in (first, (first - 1).clamp(min=0)))
    met = first.float() - ((after - level) / (after - before).clamp(min=1e-3)).clamp(0, 1)  # between two samples
    slopes = torch.gradient(met.where(inside.any(0), torch.nan) * rays / (2 * side))
    normal = F.normalize(torch.stack([slopes[1], slopes[0], -torch.ones_like(met)]), dim=0)
    light = F.normalize(torch.tensor(LIGHT), dim=0)
    facing = (normal * light[:, None, None]).sum(0).clamp(0, 1).nan_to_num(0)  # the rim has no slope
    return (0.15 + 0.85 * facing) * inside.any(0)


def _centred(panel: Tensor, side: int) -> Tensor:
    """Put a panel (H, W) into the middle of a black square."""
    height, width = panel.shape
    top, left = (side - height) // 2, (side - width) // 2
    return F.pad(panel, (left, side - width - left, top, side - height - top))
