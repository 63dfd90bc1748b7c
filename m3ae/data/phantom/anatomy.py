"""The healthy chest of the phantom: attenuation along the rays of a frontal and of a lateral view.

Lengths are in half-images: the field of view spans [-1, 1] on both axes and y points down. The frontal view follows
the radiological convention, the patient's left is at the image's right (x > 0, and u = |x| points outwards); in the
lateral view the patient faces the image's left (z < 0). Both views show one patient, so a height means the same in
both. An attenuation of 1 is a transmission of 1/e.
"""

import dataclasses
import functools
import math
from collections.abc import Sequence
from typing import Any

import numpy as np
import numpy.typing as npt
from PIL import Image, ImageDraw

Field = npt.NDArray[Any]  # float32, one value per pixel, (image_size, image_size)

SUPERSAMPLING = 3  # of line drawings only: vessels and leads are thinner than a pixel


def _within(low: float, high: float) -> Any:
    return dataclasses.field(metadata={"range": (low, high)})


@dataclasses.dataclass(frozen=True, kw_only=True)
class Patient:
    """The properties of a patient and an exposure that no factor describes, each uniform within its range."""

    shift: float = _within(-0.04, 0.04)
    tilt: float = _within(-0.035, 0.035)  # in the image plane, radians
    rotation: float = _within(-0.03, 0.03)  # of the mediastinum against the rib cage
    width: float = _within(0.93, 1.07)
    depth: float = _within(0.92, 1.08)
    apex: float = _within(-0.80, -0.72)  # height of the lungs' upper end
    dome: float = _within(0.36, 0.48)  # height of the right hemidiaphragm
    dome_difference: float = _within(0.03, 0.08)  # by which the left one is lower
    lung_roundness: float = _within(2.3, 3.0)
    heart: float = _within(0.95, 1.05)
    heart_axis: float = _within(0.58, 0.70)
    rib_spacing: float = _within(0.135, 0.155)
    rib_offset: float = _within(0.0, 1.0)
    rib_slope: float = _within(0.16, 0.26)
    rib_contrast: float = _within(0.16, 0.30)
    clavicle_height: float = _within(-0.64, -0.56)
    clavicle_slope: float = _within(0.0, 0.16)
    vertebra: float = _within(0.115, 0.135)
    breast: float = _within(-0.35, 0.35)  # none where negative
    breast_height: float = _within(0.26, 0.40)
    fat: float = _within(0.0, 0.10)
    gas: float = _within(0.2, 0.6)
    exposure: float = _within(0.88, 1.12)
    noise: float = _within(0.008, 0.022)
    blur: float = _within(0.0, 0.5)  # in pixels of a 128-pixel image
    marker: float = _within(0.0, 1.0)
    lesion_x: float = _within(-0.07, 0.07)
    lesion_y: float = _within(-0.05, 0.05)
    lesion_z: float = _within(-0.28, 0.22)

    @classmethod
    def sample(cls, rng: np.random.Generator) -> "Patient":
        """Draw every field independently."""
        return cls(**{field.name: float(rng.uniform(*field.metadata["range"])) for field in dataclasses.fields(cls)})


@dataclasses.dataclass(frozen=True)
class Lung:
    """One lung in one view."""

    air: Field  # along the ray, 1 at most
    pleura: Field  # level set of the lung's surface, < 1 inside; a collapsed lung is smaller than the air
    meniscus: Field  # height of a fluid level that touches the dome of the diaphragm


@dataclasses.dataclass(frozen=True)
class Stroke:
    """A line through `points` in the patient's coordinates; `width` in half-images, `strength` in [0, 1]."""

    points: Sequence[Sequence[float]]
    width: float
    strength: float


def ellipsoid(x: Field, y: Field, cx: float, cy: float, rx: float, ry: float, angle: float = 0.0) -> Field:
    """Return the path length through an ellipsoid: 1 at its centre, 0 outside; `angle` turns the x axis towards y."""
    dx, dy, cos, sin = x - cx, y - cy, math.cos(angle), math.sin(angle)
    u, v = (cos * dx + sin * dy) / rx, (cos * dy - sin * dx) / ry
    return np.sqrt(np.maximum(1 - u * u - v * v, 0))


def inside(distance: Field, softness: float = 0.012) -> Field:
    """Return a soft indicator of `distance > 0`."""
    return 0.5 + 0.5 * np.tanh(distance / softness)


def cloud(rng: np.random.Generator, knots: int, image_size: int) -> Field:
    """Return smooth noise of about unit variance from `knots` random values per axis."""
    values = Image.fromarray(rng.standard_normal((knots, knots), dtype=np.float32))
    return np.asarray(values.resize((image_size, image_size), Image.Resampling.BICUBIC))


def draw(p: Patient, strokes: Sequence[Stroke], image_size: int) -> Field:
    """Draw lines one over the other; values in [0, 1]."""
    size = SUPERSAMPLING * image_size
    canvas = Image.new("L", (size, size))
    pen = ImageDraw.Draw(canvas)
    cos, sin, scale = math.cos(p.tilt), math.sin(p.tilt), size / 2
    for stroke in strokes:
        points = [(p.width * x, y) for x, y in stroke.points]
        pixels = [((p.shift + cos * x - sin * y + 1) * scale, (sin * x + cos * y + 1) * scale) for x, y in points]
        pen.line(pixels, round(255 * stroke.strength), max(1, round(stroke.width * scale)), joint="curve")
    return np.asarray(canvas.reduce(SUPERSAMPLING), dtype=np.float32) / 255


def _largest(*fields: Field) -> Field:
    return np.asarray(np.maximum.reduce(fields))


def _tube(distance: Field, radius: float) -> Field:
    thickness: Field = np.sqrt(np.maximum(1 - np.square(distance / radius), 0))
    return thickness


def _slab(position: Field) -> Field:
    """Return a trunk's flat thickness over a position that is ±1 at its skin."""
    thickness: Field = np.maximum(1 - position**4, 0) ** 0.45
    return thickness


@functools.cache
def _smoothed(knots: tuple[tuple[float, float], ...]) -> tuple[Field, Field]:
    rows, kernel = np.linspace(-1.5, 1.5, 301), np.hanning(27)
    heights, values = np.array(knots).T
    return rows[13:-13], np.convolve(np.interp(rows, heights, values), kernel / kernel.sum(), mode="valid")


def _profile(y: Field, *knots: tuple[float, float]) -> Field:
    """Return a smooth function of height that follows the (height, value) knots."""
    rows, values = _smoothed(knots)
    return np.interp(y, rows, values).astype(np.float32)


def _rib_band(phase: Field) -> Field:
    """Return ribs at every unit of `phase`, thinner between their cortices."""
    offset = (phase - np.floor(phase) - 0.5) / 0.26
    return _tube(offset, 1.0) - 0.35 * _tube(offset, 0.6)


def vessels(rng: np.random.Generator, root: tuple[float, float], fan: tuple[float, float]) -> list[Stroke]:
    """Return a tree of vessels that fans out from a hilum and forks and thins at every generation."""
    angle = np.linspace(*fan, 7) + rng.normal(0, 0.12, 7)
    end = np.tile(np.array(root), (7, 1)) + rng.normal(0, 0.035, (7, 2))
    strokes: list[Stroke] = []
    for generation in range(6):
        points = [end]
        for _ in range(2):
            angle = angle + rng.normal(0, 0.16, angle.size)
            step = 0.075 * 0.86**generation * rng.uniform(0.7, 1.3, angle.size)[:, None]
            points.append(points[-1] + step * np.stack([np.cos(angle), np.sin(angle)], axis=1))
        paths = np.stack(points, axis=1).tolist()
        strokes += [Stroke(path, 0.022 * 0.72**generation, 0.84**generation) for path in paths]
        fork = rng.uniform(0.15, 0.5, angle.size)
        angle, end = np.stack([angle - fork, angle + fork], axis=1).ravel(), np.repeat(points[-1], 2, axis=0)
    return strokes[::-1]  # thin ones first: a trunk is never cut by its branches


def stomach_bubble(p: Patient, a: Field, y: Field, centre: float) -> Field:
    """Return gas under the left hemidiaphragm, over a fluid level; `a` is the horizontal axis of either view."""
    top = p.dome + p.dome_difference
    return p.gas * ellipsoid(a, y, centre, top + 0.19, 0.17, 0.13) * inside(top + 0.22 - y, 0.015)


# --- frontal view -------------------------------------------------------------------------------------------------


def frontal_body(p: Patient, x: Field, y: Field) -> Field:
    """Return the soft tissue of neck, shoulders, trunk and breasts, less the air of trachea and main bronchi."""
    neck = ((-1.5, 0.24), (-0.9, 0.26), (-0.76, 0.55))
    chest = ((-0.62, 0.86), (-0.2, 0.86), (0.2, 0.83), (0.7, 0.84), (1.5, 0.9))
    u = np.abs(x)
    trunk = 1.72 * _slab(x / (_profile(y, *neck, *chest) + p.fat))
    shoulder = 1.35 * ellipsoid(u, y, 0.84 + p.fat, -0.42, 0.36, 0.33)
    arm = 1.05 * ellipsoid(u, y, 1.08 + p.fat, 0.1, 0.20, 1.1, -0.12)
    breast = ellipsoid(u, y, 0.44, p.breast_height, 0.36, 0.32) * inside(y - p.breast_height + 0.05, 0.25)
    abdomen = 0.30 * inside(y - p.dome - 0.05, 0.1) * (trunk > 0)
    trachea = _tube(x + 0.01 - p.rotation, 0.045) * inside(-0.25 - y, 0.04)
    bronchi = _tube(y + 0.28 - 0.8 * u, 0.03) * inside(0.15 - u, 0.03)
    airway = 0.3 * np.maximum(trachea, 0.5 * bronchi)
    body: Field = _largest(trunk, shoulder, arm) + max(p.breast, 0.0) * breast + abdomen - airway
    return body


def frontal_bones(p: Patient, x: Field, y: Field) -> Field:
    """Return the spine, ribs as tilted rings around the lungs, clavicles, shoulder blades and arms."""
    u = np.abs(x)
    spine = 0.28 * np.square(_tube(x, 0.12)) * (1 + 0.2 * np.cos((2 * np.pi / p.vertebra) * y))
    half = 0.75 * np.clip((y - p.apex + 0.03) / 0.75, 0.03, 1) ** 0.45
    bow = np.sqrt(np.maximum(1 - np.square(u / half), 0))
    cage = inside(half - u) / np.maximum(bow, 0.55) * (1 - 0.75 * inside(y - p.dome - 0.15, 0.15))
    ribs = np.zeros_like(y)
    for ends, weight in ((-bow, 1.0), (1.6 * bow, 0.6)):  # the posterior arc, and the anterior one further down
        phase = (y - p.rib_slope * (1 + ends)) / p.rib_spacing + p.rib_offset
        ribs += weight * _rib_band(phase) * inside(u - 0.22 + 0.14 * weight, 0.06)
    curve = p.clavicle_height - p.clavicle_slope * (u - 0.1) + 0.035 * np.sin(7.0 * (u - 0.1))
    clavicle = _tube(y - curve, 0.035) * inside(u - 0.06, 0.02) * inside(0.74 - u, 0.03)
    humerus = _tube(u - 0.98 - 0.1 * y, 0.06) * inside(y + 0.5, 0.03)
    arm = np.maximum(np.square(ellipsoid(u, y, 0.92, -0.52, 0.13, 0.14)), humerus)
    blade = inside(ellipsoid(u, y, 0.78, -0.30, 0.15, 0.34, 0.25) - 0.25, 0.12)
    bones: Field = spine + p.rib_contrast * cage * ribs + 0.26 * clavicle + 0.3 * arm + 0.13 * blade
    return bones


def frontal_mediastinum(p: Patient, x: Field, y: Field, heart: float) -> Field:
    """Return the heart (of relative size `heart`, growing mostly to the left) and great vessels, in [0, 1]."""
    x, base = x - p.rotation, p.dome - 0.19
    ventricle = ellipsoid(x, y, 0.12 * heart, base, 0.35 * heart, 0.26 * heart**0.5, p.heart_axis)
    atrium = ellipsoid(x, y, -0.03, base - 0.02, 0.18 * heart, 0.27)
    vessels = ellipsoid(x, y, 0.0, -0.25, 0.13, 0.70)
    knob = ellipsoid(x, y, 0.085, -0.30, 0.105, 0.12)
    trunk = ellipsoid(x, y, 0.10, -0.10, 0.12, 0.20)
    return np.tanh(1.6 * _largest(ventricle, 0.85 * atrium, 0.7 * vessels, 0.75 * knob, 0.7 * trunk))


def frontal_lung(p: Patient, u: Field, y: Field, side: int, collapse: float) -> Lung:
    """Return the lung of `side` (-1 right, 1 left), its apex retracted by `collapse`; `u` points outwards."""
    dome = p.dome + (p.dome_difference if side > 0 else 0.0)
    along = (0.34 - y) / (0.34 - p.apex)
    centre, half = 0.375 - 0.07 * along, 0.325 - 0.03 * along
    border = np.square((u - centre) / half) + np.abs(along) ** p.lung_roundness
    floor = dome + np.square(u - 0.33) + 2.5 * np.square(np.maximum(u - 0.47, 0))
    air = np.maximum(1 - border, 0) ** 0.36 * inside(floor - y)
    along = (0.34 - y) / (0.34 - p.apex - collapse)
    retracted = u - centre + 0.5 * collapse * np.clip(along, 0, 1)
    pleura = np.square(retracted / half) + np.abs(along) ** p.lung_roundness
    return Lung(air, pleura, dome + 0.12 - 1.6 * np.square(np.maximum(u - 0.2, 0)))


# --- lateral view -------------------------------------------------------------------------------------------------


def _outline(p: Patient, y: Field) -> tuple[Field, Field]:
    """Return the front and the back of the trunk at every height."""
    front = _profile(y, (-1.5, -0.2), (-0.9, -0.24), (-0.6, -0.46), (-0.2, -0.64), (0.3, -0.70), (1.5, -0.70))
    back = _profile(y, (-1.5, 0.2), (-0.9, 0.46), (-0.5, 0.70), (-0.1, 0.76), (0.4, 0.70), (0.8, 0.58), (1.5, 0.56))
    return p.depth * front - p.fat, p.depth * back + p.fat / 2


def _floor(z: Field, dome: float) -> Field:
    """Return the height of the diaphragm, which falls steeply to the posterior angle."""
    behind = z + 0.12
    return dome + 0.2 * behind + 0.7 * behind * np.abs(behind)


def lateral_body(p: Patient, z: Field, y: Field) -> Field:
    """Return the soft tissue of neck, trunk, breasts, shoulders and raised arms, less the air of the trachea."""
    front, back = _outline(p, y)
    trunk = 1.75 * _slab((2 * z - front - back) / (back - front))
    breast = ellipsoid(z, y, -0.55 * p.depth, p.breast_height, 0.15 + 0.6 * max(p.breast, 0.0), 0.40)
    arm = 1.4 * ellipsoid(z, y, -0.6, -0.92, 0.75, 0.17, 0.15) + 0.4 * ellipsoid(z, y, -0.6, -0.92, 0.75, 0.06, 0.15)
    shoulder = 1.1 * np.square(ellipsoid(z, y, 0.12, -0.85, 0.45, 0.55))
    abdomen = 0.35 * inside(y - p.dome - 0.1, 0.15) * (trunk > 0)
    trachea = 0.25 * _tube(z - 0.03 - 0.12 * (y + 0.5), 0.045) * inside(-0.2 - y, 0.06)
    return _largest(trunk, breast, arm) + shoulder + abdomen - trachea


def lateral_bones(p: Patient, z: Field, y: Field) -> Field:
    """Return the spine with its discs and processes, ribs of both sides, and the sternum."""
    front, back = _outline(p, y)
    spine = z - back + 0.27
    bodies = np.tanh(2.5 * np.cos((2 * np.pi / p.vertebra) * (y + 0.3 * spine)) + 1)
    column = _tube(spine, 0.10) * (0.20 + 0.10 * bodies) + 0.18 * _tube(spine - 0.15, 0.06) * (1 - 0.7 * bodies)
    cage = inside(back - 0.12 - z, 0.02) * inside(z - front - 0.1, 0.02) * (1 - 0.8 * inside(y - p.dome - 0.1, 0.15))
    phase = (y - 0.4 * (0.3 - z) + 0.3 * np.square(z)) / (1.25 * p.rib_spacing) + p.rib_offset
    ribs = _rib_band(phase) + _rib_band(phase + 0.35)
    sternum = _tube(z - front - 0.09, 0.035) * inside(y + 0.55, 0.03) * inside(0.25 - y, 0.03)
    bones: Field = column + 0.33 * p.rib_contrast * cage * ribs + 0.35 * sternum
    return bones


def lateral_mediastinum(p: Patient, z: Field, y: Field, heart: float) -> Field:
    """Return the heart (of relative size `heart`), ascending aorta and hila, in [0, 1]."""
    floor = _floor(z, p.dome + p.dome_difference) + 0.02
    muscle = ellipsoid(z, y, -0.28, p.dome - 0.22, 0.36 * heart, 0.25 * heart, -0.75) * inside(floor - y, 0.03)
    aorta = ellipsoid(z, y, -0.10, -0.25, 0.16, 0.32, -0.1)
    hilum = np.square(ellipsoid(z, y, 0.0, -0.08, 0.17, 0.18))
    return _largest(np.tanh(1.6 * muscle), 0.3 * aorta, 0.5 * hilum)


def lateral_lung(p: Patient, z: Field, y: Field, side: int, collapse: float) -> Lung:
    """Return the lung of `side` (-1 right, 1 left), its apex retracted by `collapse`."""
    dome = p.dome + (p.dome_difference if side > 0 else 0.0)
    front, back = _outline(p, y)
    centre, half = (front + back) / 2 + 0.01, (back - front) / 2 - 0.11
    along = (0.34 - y) / (0.34 - p.apex)
    border = np.square((z - centre) / half) + np.abs(along) ** p.lung_roundness
    air = np.maximum(1 - border, 0) ** 0.36 * inside(_floor(z, dome) - y)
    along = (0.34 - y) / (0.34 - p.apex - collapse)
    retracted = half - 0.5 * collapse * np.clip(along, 0, 1)
    pleura = np.square((z - centre) / retracted) + np.abs(along) ** p.lung_roundness
    return Lung(air, pleura, dome + 0.10 - 0.9 * np.square(z + 0.12))
