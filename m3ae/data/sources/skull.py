"""Built-in data: synthetic fetal skulls as volumes, each with the three standard planes as ultrasound shows them.

A skull is a shell around an ellipsoid that is squared and tapers to the front, open at its base, with sutures and a
fontanelle, tilted and off centre. Sizes are those of the second trimester; `Skull.sample` has their spread. The planes
go through the middle of the grid, not of the skull, and miss it by a jitter of position and angle.

Coordinates are in millimetres from the middle of the grid: x to the left, y to the back, z to the head. Shapes: N grid
voxels and S pixels a side.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from functools import partial
from typing import Any

import datasets
import numpy as np
from numpy.typing import NDArray
from PIL import Image
from scipy.ndimage import gaussian_filter

from m3ae.data.prepared import PreparedColumns
from m3ae.data.sources._common import IMAGE, features

Field = NDArray[np.float32]

FIELD = 96.0  # mm, side of the grid and of the images
PLANES = {  # the axes that rows and columns of an image follow, and the normal; the beam comes from above
    "axial": ((1, 0, 0), (0, 1, 0), (0, 0, 1)),
    "coronal": ((0, 0, -1), (1, 0, 0), (0, 1, 0)),
    "sagittal": ((0, 0, -1), (0, 1, 0), (1, 0, 0)),
}
FEATURES = features(**dict.fromkeys(PLANES, IMAGE))
SMALLEST_SIDE = 16


def rows(*, count: int = 3000, size: int = 48, image_size: int = 64, seed: int = 0) -> Iterator[Any]:
    """Yield one row per skull; the ninth of every ten is for validation and the tenth for the test.

    Args:
        count: number of skulls.
        size: voxels of the volume a side; the volume spans 96 mm.
        image_size: height and width of the planes in pixels.
        seed: another seed gives other skulls.

    Raises:
        ValueError: An argument is out of range.
    """
    least_values = {
        "count": (count, 1),
        "size": (size, SMALLEST_SIDE),
        "image_size": (image_size, SMALLEST_SIDE),
        "seed": (seed, 0),
    }
    for name, (value, least) in least_values.items():
        if value < least:
            raise ValueError(f"{name} is {value}, expected at least {least}")
    voxels: Any = datasets.Value("uint8")
    for side in (size, size, size, 1):
        voxels = datasets.List(voxels, length=side)
    yield PreparedColumns(datasets.Features(FEATURES | {"skull": voxels}))
    for index in range(count):
        yield {
            "id": f"skull-{seed}-{index:06d}",
            "split": {8: "validation", 9: "test"}.get(index % 10, "train"),
            **{plane: partial(render_plane, seed, index, plane, image_size) for plane in PLANES},
            "skull": partial(render_volume, seed, index, size),
        }


@dataclass(frozen=True)
class Skull:
    """The anatomy of a skull; lengths in millimetres, angles in radians.

    Attributes:
        radii: Half of width, length and height.
        square: Share of the fourth-order norm in the shape, 0 for an ellipsoid.
        taper: Relative gain of width from the middle to the back.
        thickness: Of the bone, as wide as ultrasound shows it.
        rotation: (3, 3) from the grid's axes to the skull's.
        shift: Position of the skull's middle.
        base: Height below which there is no bone.
        sutures: y of the coronal and of the lambdoid suture.
        gap: Width of the sutures.
        fontanelle: Radius of the hole between the coronal and the sagittal suture.
    """

    radii: Field
    square: np.float32
    taper: np.float32
    thickness: float
    rotation: Field
    shift: Field
    base: float
    sutures: tuple[float, float]
    gap: float
    fontanelle: float

    @classmethod
    def sample(cls, rng: np.random.Generator) -> "Skull":
        """Draw a skull: its size varies by 8 %, its proportions by 3 %, its tilt by 1.5 degrees."""
        length = float(36 * np.exp(0.08 * np.clip(rng.standard_normal(), -2.2, 2.2)))
        width, height = length * np.array([0.79, 0.75]) * (1 + 0.03 * rng.standard_normal(2))
        tilt = np.deg2rad(1.5) * rng.standard_normal(3)
        return cls(
            radii=np.array([width, length, height], np.float32),
            square=np.float32(rng.uniform(0.0, 0.5)),
            taper=np.float32(0.08 + 0.03 * rng.standard_normal()),
            thickness=float(4.6 + 0.4 * np.clip(rng.standard_normal(), -2.5, 2.5)),
            rotation=_rotation(tilt),
            shift=(0.5 * rng.standard_normal(3)).astype(np.float32),
            base=float(-height * (0.6 + 0.05 * rng.standard_normal())),
            sutures=(
                float(length * (-0.25 + 0.04 * rng.standard_normal())),
                float(length * (0.6 + 0.04 * rng.standard_normal())),
            ),
            gap=2.8 + 0.4 * rng.standard_normal(),
            fontanelle=5 + rng.standard_normal(),
        )

    def inside(self, x: Field, y: Field, z: Field) -> tuple[Field, Field]:
        """Return by how much points lie within the bone, and beyond the middle of its layer, in millimetres.

        Both are first-order distances: exact at the surface of a sphere. The coordinates are broadcast.
        """
        moved = [axis - shift for axis, shift in zip((x, y, z), self.shift, strict=True)]
        x, y, z = (row[0] * moved[0] + row[1] * moved[1] + row[2] * moved[2] for row in self.rotation)
        width, length, height = self.radii
        squares = [np.square(x / (width + (width * self.taper / length) * y)), np.square(y / length)]
        squares.append(np.square(z / height))
        norm = (1 - self.square) * np.sqrt(squares[0] + squares[1] + squares[2])
        norm += self.square * np.sqrt(np.sqrt(squares[0] ** 2 + squares[1] ** 2 + squares[2] ** 2))
        norm = np.maximum(norm, np.float32(0.05))  # the middle has no direction
        beyond = (1 - 1 / norm) * np.sqrt(np.maximum(x * x + y * y + z * z, 1))
        coronal, lambdoid = self.sutures
        above = np.minimum(z, np.minimum(y - coronal, lambdoid - y))  # where the sagittal suture is
        across = np.minimum(np.abs(y - coronal), np.abs(y - lambdoid))
        gap = self.gap / 2
        within = np.minimum(self.thickness / 2 - np.abs(beyond), z - self.base)
        within = np.minimum(within, np.maximum(np.abs(x) - gap, -above))
        within = np.minimum(within, np.maximum(across - gap, -z))
        hole = np.sqrt(x**2 + (y - coronal) ** 2) - self.fontanelle
        return np.minimum(within, np.maximum(hole, -z)), beyond


def render_volume(seed: int, index: int, size: int) -> NDArray[np.uint8]:
    """Return the skull `(seed, index)` (1, N, N, N): 255 where a voxel is bone; to head, back and left."""
    skull = Skull.sample(np.random.default_rng([seed, index, 1]))
    axis = (np.arange(size, dtype=np.float32) + 0.5) * np.float32(FIELD / size) - np.float32(FIELD / 2)
    within, _ = skull.inside(axis, axis[:, None], axis[:, None, None])
    return np.where(within > 0, np.uint8(255), np.uint8(0))[None]


def render_plane(seed: int, index: int, plane: str, image_size: int) -> Image.Image:
    """Return a standard plane of the skull `(seed, index)`, a grey picture of S × S pixels.

    Raises:
        ValueError: The plane is unknown.
    """
    if plane not in PLANES:
        raise ValueError(f"unknown plane {plane!r}: expected one of {', '.join(PLANES)}")
    skull = Skull.sample(np.random.default_rng([seed, index, 1]))
    rng = np.random.default_rng([seed, index, 2 + list(PLANES).index(plane)])
    turn = _rotation(np.deg2rad(1.5) * rng.standard_normal(3))
    down, right, normal = np.array(PLANES[plane], np.float32) @ turn.T
    axis = (np.arange(image_size, dtype=np.float32) + 0.5) * np.float32(FIELD / image_size) - np.float32(FIELD / 2)
    points = axis[:, None, None] * down + axis[:, None] * right + np.float32(rng.standard_normal()) * normal
    within, beyond = skull.inside(*np.moveaxis(points, -1, 0))
    return Image.fromarray((255 * _scan(within, beyond, skull.thickness, axis, rng)).astype(np.uint8))


def _scan(within: Field, beyond: Field, thickness: float, axis: Field, rng: np.random.Generator) -> Field:
    """Return an ultrasound image (S, S) in [0, 1] of a plane, with the probe above it.

    Bone echoes where the beam meets it head on, and weakens what lies below. Echoes interfere to speckle, which the
    beam smears sideways. Shadows and dropped sectors spread from the probe, and its aperture is a fan.
    """
    pixel = axis[1] - axis[0]
    rows, columns = axis[:, None] + FIELD / 2 + 35, axis[None, :]  # the fan's centre lies 35 mm above the image
    angle, depth = np.arctan2(columns, rows), np.hypot(columns, rows)
    bone = np.clip(0.5 + within / pixel, 0, 1)
    slope = np.stack([*np.gradient(beyond, pixel)])
    facing = np.abs(slope[0] * np.cos(angle) + slope[1] * np.sin(angle)) / np.maximum(np.hypot(*slope), 1e-3)
    tissue = np.where(beyond < -thickness / 2, 0.10, 0.05)
    echo = bone * (0.12 + 0.88 * facing**2) + (1 - bone) * tissue
    passed = np.exp(-0.05 * pixel * np.cumsum(bone, 0))
    for _ in range(rng.poisson(1.5)):  # shadows
        start = rng.uniform(45, 110)
        passed *= 1 - rng.uniform(0.4, 0.9) * _sector(angle, rng, 0.06) * (depth > start)
    for _ in range(rng.poisson(0.7)):  # dropped sectors
        passed *= 1 - 0.95 * _sector(angle, rng, 0.05)
    noise = gaussian_filter(rng.standard_normal((2, *bone.shape), dtype=np.float32), (0, 0.6, 1.0))
    speckle = np.hypot(*noise) / np.hypot(*noise).mean()  # Rayleigh
    blurred = gaussian_filter((echo * passed).astype(np.float32), (0.5, 0.9)) * (0.3 + 0.7 * speckle)
    aperture = np.abs(angle) < rng.uniform(0.42, 0.55)
    brightness: Field = np.log1p(25 * blurred) / np.log1p(25 * 1.2) * rng.uniform(0.8, 1.1) * aperture
    return brightness.clip(0, 1)


def _sector(angle: Field, rng: np.random.Generator, width: float) -> Field:
    """Return 1 within a sector of a random direction, in radians, and 0 elsewhere, with soft edges."""
    distance = np.abs(angle - rng.uniform(-0.45, 0.45)) / (width * rng.uniform(0.5, 1.5))
    sector: Field = np.exp(-(distance**4))
    return sector


def _rotation(angles: NDArray[np.floating]) -> Field:
    """Return the rotation (3, 3) about x, then y, then z."""
    matrix = np.eye(3)
    for axis, angle in enumerate(angles):
        first, second = (axis + 1) % 3, (axis + 2) % 3
        turn = np.eye(3)
        turn[first, first] = turn[second, second] = np.cos(angle)
        turn[first, second], turn[second, first] = -np.sin(angle), np.sin(angle)
        matrix = turn @ matrix
    return matrix.astype(np.float32)
