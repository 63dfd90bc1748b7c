"""The kind `slices`: any number of images of a scene, each with the pose that it is seen from.

z is the scene. The expert of the modality is the product over the slices, q(z|x_1 … x_S) ∝ ∏_s q(z|x_s, v_s), so that
their number and order do not matter. The decoder draws p(x|z, v) for any pose v. Training infers z from some slices of
a scene, and decodes these and others, which bounds log p(x_1 … x_S) for any choice. Eslami et al. 2018 add up features
in place of densities. Hou et al. 2019 (arXiv 1908.11312) draw missing slices of CT, MR and ultrasound so.

Shapes: B batch, S slices, P numbers of a pose, F features of a pose, Q poses that are asked for, C, H, W an image's, Z
dimensions of z and of the private latent together.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, ClassVar, NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from m3ae.models.fusion import Stream
from m3ae.models.gaussians import Gaussian, PriorExpert, dtype_of, product_of_experts
from m3ae.models.latent_configuration import LatentConfig
from m3ae.models.latent_networks import (
    ConvolutionalDecoder,
    Expert,
    MLPDecoder,
    cnn_encoder,
    mlp,
    mlp_encoder,
    read_gaussian,
)
from m3ae.models.modalities.base import Modality, Tensors
from m3ae.models.modalities.options import BatchOptions, ModalityConfig
from m3ae.models.option_checks import check_count

if TYPE_CHECKING:
    from matplotlib.axes import Axes

    from m3ae.models.modeling import M3AEEncoders

OCTAVES = 3


class Scene(NamedTuple):
    """Slices of one scene, each with a pose.

    Attributes:
        images: (S, C, H, W) in [0, 1], or of 8 bits.
        poses: (S, P) in [−1, 1]: where each slice lies, such as positions and angles, each divided by the largest.
    """

    images: NDArray[Any]
    poses: NDArray[Any]

    @classmethod
    def of_volume(cls, volume: NDArray[Any]) -> Scene:
        """Cut a volume (C, D, H, W) into its D slices; the poses (D, 1) are positions from −1 to 1."""
        images = np.moveaxis(volume, 1, 0)
        return cls(images, np.linspace(-1, 1, len(images), dtype=np.float32)[:, None])


@dataclass(frozen=True)
class SlicesConfig(ModalityConfig):
    """The options of slices.

    Attributes:
        poses: Poses (Q, P) of the slices that are drawn where nobody asks for others; all poses have P numbers.
        num_slices: Slices of a scene that a visit in training reads or decodes, drawn at random if there are more.
    """

    poses: list[list[float]] | None = None
    num_slices: int = 8


def pose_features(poses: Tensor) -> Tensor:
    """Return poses v (…, P) and sin, cos of π2^k v for k = 0, 1, 2, (…, F), F = 7·P (Mildenhall et al. 2020)."""
    angles = [math.pi * 2**octave * poses for octave in range(OCTAVES)]
    return torch.cat([poses, *(angle.sin() for angle in angles), *(angle.cos() for angle in angles)], -1)


class SliceExpert(Expert):
    """Slices with poses → the product of the Gaussians of all, over z and over the private latent."""

    def __init__(self, modality: Slices, latent: LatentConfig) -> None:
        super().__init__(modality, latent)
        self.shape, self.pose_size = modality.shape, modality.pose_size
        self.posed = mlp(self.width + modality.num_pose_features, self.width, 1)
        self.width = self.output.out_features  # of the product, which is what others read of the expert
        self.prior_expert = latent.prior_expert

    def read(self, inputs: Stream | Tensor) -> Tensor:
        """Return the mean and log-variance of the product, (B, 2·Z).

        Args:
            inputs: Tokens (B, S, P + C·H·W), a pose and an image each; the mask says which count, at least one.
        """
        assert isinstance(inputs, Stream) and inputs.mask is not None
        tokens = inputs.tokens.to(dtype_of(self))
        poses, images = tokens.tensor_split([self.pose_size], -1)
        features = self.features(images.flatten(0, 1).unflatten(-1, self.shape))
        posed = self.posed(torch.cat([features, pose_features(poses).flatten(0, 1)], -1))
        each = self.output(posed).unflatten(0, tokens.shape[:2]).transpose(0, 1)  # (S, B, 2·Z)
        # The head multiplies by the prior, if at all; dividing by it is the one thing that has to be done here, too.
        prior_expert: PriorExpert = "divided" if self.prior_expert == "divided" else "never"
        product = product_of_experts(read_gaussian(each, self.initial_std), inputs.mask.T[None], prior_expert)
        return torch.cat([*product], -1)[0].to(tokens.dtype)

    def forward(self, features: Tensor) -> tuple[Gaussian, Gaussian]:
        """Return the expert over z (B, D) and over the private latent (B, P)."""
        both = Gaussian(*features.chunk(2, -1))
        return both.columns(slice(self.size)), both.columns(slice(self.size, None))


class Slices(Modality):
    """Images (C, H, W) in [0, 1] of one scene, each with a pose. A cell is a `Scene`.

    A column of prepared data holds arrays (S, P + C·H·W), a pose and an image in each row; or, for one number a pose,
    volumes (C, D, H, W).
    """

    kind = "slices"
    config_class = SlicesConfig
    config: SlicesConfig
    tensor = "pixel_values"
    further_tensors = ("poses", "slice_mask", "given")
    dimensions = ("C", "H", "W")
    encoders: ClassVar = {
        "cnn": lambda modality: cnn_encoder(modality.shape, modality.config),
        "mlp": lambda modality: mlp_encoder(modality.shape, modality.config),
    }
    decoders: ClassVar = {
        "cnn": lambda modality, input_size: ConvolutionalDecoder(input_size, modality.config, modality.shape),
        "mlp": lambda modality, input_size: MLPDecoder(input_size, modality.config, modality.shape),
    }
    is_set = is_pictured = True

    @classmethod
    def check(cls, owner: str, config: SlicesConfig) -> None:
        """Raise ValueError if the options do not fit together."""
        super().check(owner, config)
        check_count(f"{owner}.num_slices", config.num_slices, 1)
        poses = config.poses or []
        if not poses or not poses[0] or len({len(pose) for pose in poses}) != 1:
            raise ValueError(
                f"{owner}.poses is {config.poses}; expected poses with equally many numbers, such as [[-1], [1]]."
            )

    @property
    def pose_size(self) -> int:
        """P."""
        assert self.config.poses is not None
        return len(self.config.poses[0])

    @property
    def num_pose_features(self) -> int:
        """F."""
        return (1 + 2 * OCTAVES) * self.pose_size

    @classmethod
    def defaults(cls, scenes: Sequence[Scene]) -> dict[str, Any]:
        """Return options that follow from scenes."""
        images, poses = np.asarray(scenes[0].images), np.asarray(scenes[0].poses, np.float32)
        scale = float(np.std(np.concatenate([_unit(np.asarray(scene.images)).ravel() for scene in scenes])))
        return {
            "kind": cls.kind,
            "decoder": "mlp" if any(side % 4 for side in images.shape[2:]) else "cnn",
            "shape": list(images.shape[1:]),
            "scale": round(scale / 2, 3) or 1.0,
            "learn_scale": True,
            "hidden_size": 256,
            "poses": poses.tolist(),
        }

    # Networks

    def build_expert(self, latent: LatentConfig) -> Expert:
        """Build the expert of any number of slices."""
        return SliceExpert(self, latent)

    def build_decoder(self, input_size: int) -> nn.Module:
        """Build the network from latents and features of a pose (R, Z + F) to means or logits (R, C, H, W)."""
        width = self.config.hidden_size
        return nn.Sequential(mlp(input_size + self.num_pose_features, width, 2), super().build_decoder(width))

    def targets(self, tensors: Tensors, present: Tensor) -> dict[str, Tensor]:
        """Return images and poses, 0 where there is no slice, and which slices (B, S) there are and are given.

        Raises:
            ValueError: There are no poses, or tensors do not fit.
        """
        values, poses = tensors[self.tensor], tensors.get("poses")
        expected = f"pixel_values (B, S, {', '.join(map(str, self.shape))}) and poses (B, S, {self.pose_size})"
        if poses is None or values.shape[2:] != self.shape or poses.shape != (*values.shape[:2], self.pose_size):
            shapes = f"pixel_values {tuple(values.shape)}, poses {None if poses is None else tuple(poses.shape)}"
            raise ValueError(f"{self.name}: got {shapes}; expected {expected}.")
        mask = tensors.get("slice_mask", torch.ones_like(poses[..., 0])).bool() & present[:, None]
        return {
            self.tensor: torch.where(mask[..., None, None, None], values, 0),
            "poses": torch.where(mask[..., None], poses, 0),
            "slice_mask": mask,
            "given": tensors.get("given", mask).bool() & mask,
        }

    def encode(self, trunk: M3AEEncoders, targets: Tensors, present: Tensor) -> Stream:
        """Return a token (P + C·H·W) for each slice, and which are given."""
        return Stream(torch.cat([targets["poses"], targets[self.tensor].flatten(2)], -1), targets["given"])

    def counted(self, targets: Tensors) -> Tensor | None:
        """Return the slices (B, S, 1, 1, 1) that there are."""
        return targets["slice_mask"][..., None, None, None]

    def queried(self, latents: Tensor, query: Any = None) -> Tensor:
        """Return latents beside features of each pose that is asked for, (…, B, Q, Z + F).

        Args:
            latents: (…, B, Z).
            query: Poses (Q, P) for all, or (B, Q, P); those of the options if None.

        Raises:
            ValueError: The poses have other numbers.
        """
        query = self.config.poses if query is None else query
        poses = query if isinstance(query, Tensor) else torch.from_numpy(np.asarray(query, np.float32))
        if poses.dim() not in (2, 3) or poses.shape[-1] != self.pose_size:
            raise ValueError(f"{self.name}: got poses {tuple(poses.shape)}, expected (Q, {self.pose_size})")
        features = pose_features(poses.to(latents))
        lead = (*latents.shape[:-1], poses.shape[-2])
        return torch.cat([latents[..., None, :].expand(*lead, -1), features.expand(*lead, -1)], -1)

    # Data

    def read(self, cells: Sequence[Any], seed: int) -> Scene | None:
        """Return the scene of a row."""
        return None if cells[0] is None else self.cell(np.asarray(cells[0]))

    def batch(
        self, cells: Sequence[Any | None], options: BatchOptions, draws: Sequence[np.random.Generator]
    ) -> dict[str, Tensor]:
        """Return `pixel_values` (B, S, C, H, W), `poses` (B, S, P), and which slices there are and are given (B, S).

        In training a scene has at most `num_slices` slices, any one to all of which are given, as its `draws` say.
        """
        chosen = [np.arange(0 if cell is None else len(cell.poses)) for cell in cells]
        given = list(map(len, chosen))
        for row, draw in enumerate(draws):
            if options.training and given[row]:
                chosen[row] = draw.permutation(chosen[row])[: self.config.num_slices]
                given[row] = int(draw.integers(len(chosen[row]))) + 1
        size = (len(cells), max(self.config.num_slices, *map(len, chosen)))
        values, poses = np.zeros((*size, *self.shape), np.float32), np.zeros((*size, self.pose_size), np.float32)
        for row, (cell, order) in enumerate(zip(cells, chosen, strict=True)):
            if cell is not None:
                values[row, : len(order)] = _unit(cell.images[order])
                poses[row, : len(order)] = cell.poses[order]
        number = torch.arange(size[1])
        masks = (number < torch.tensor(counts)[:, None] for counts in (list(map(len, chosen)), given))
        tensors = dict(zip(("slice_mask", "given"), masks, strict=True))
        return {self.tensor: torch.from_numpy(values), "poses": torch.from_numpy(poses), **tensors}

    # People

    @property
    def value_type(self) -> type:
        """A scene."""
        return Scene

    def cell(self, value: Any) -> Scene:
        """Turn a scene, or an array of a column, into a cell.

        Raises:
            ValueError: The value is of another type or shape, or poses are beyond −1 to 1.
        """
        if isinstance(value, np.ndarray):
            if value.ndim == 2:
                poses, flat = np.split(value, [self.pose_size], 1)
                value = Scene(flat.reshape(-1, *self.shape) if flat.size % math.prod(self.shape) == 0 else flat, poses)
            elif value.ndim == 4:
                value = Scene.of_volume(value)
        self._expect(value)
        images, poses = np.asarray(value.images), np.asarray(value.poses, np.float32)
        count = len(poses)
        if not count or images.shape != (count, *self.shape) or poses.shape != (count, self.pose_size):
            raise ValueError(
                f"{self.name}: got images {images.shape} with poses {poses.shape}, expected (S, "
                f"{', '.join(map(str, self.shape))}) with (S, {self.pose_size}), at least one slice"
            )
        for name, values, low in (("images", _unit(images), 0), ("poses", poses, -1)):
            if not (np.isfinite(values).all() and values.min() >= low - 1e-5 and values.max() <= 1 + 1e-5):
                raise ValueError(
                    f"{self.name}: {name} lie in {values.min():g} to {values.max():g}, expected {low} to 1: divide by "
                    "the largest"
                )
        return Scene(images if images.dtype == np.uint8 else images.astype(np.float32), poses)

    def drawable(self, value: Scene | NDArray[Any]) -> NDArray[np.float32]:
        """Return the slices of a scene, or generated ones (Q, C, H, W), as one picture."""
        images = _unit(value.images if isinstance(value, Scene) else value)[
            :, [0] if self.shape[0] != 3 else [0, 1, 2]
        ]
        columns = math.ceil(len(images) ** 0.5)
        missing = -len(images) % columns
        rows = np.pad(images, [(0, missing), (0, 0), (0, 0), (0, 0)]).reshape(-1, columns, *images.shape[1:])
        picture = np.concatenate([np.concatenate([*row], 2) for row in rows], 1).transpose(
            1, 2, 0
        )  # (rows·H, columns·W, C)
        return picture.clip(0, 1)

    def draw(self, axes: Axes, drawable: Any) -> None:
        """Draw pixels."""
        axes.imshow(drawable, cmap="gray", vmin=0, vmax=1)


def _unit(images: NDArray[Any]) -> NDArray[np.float32]:
    """Return images of 8 bits as float32 in [0, 1], others as float32."""
    scale = np.float32(255 if images.dtype == np.uint8 else 1)
    return images.astype(np.float32) / scale
