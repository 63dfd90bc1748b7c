"""Pictures of the chest phantom: a finding in a patient, and the exposure of the film.

`m3ae.data.phantom.anatomy` explains the coordinates.
"""

import dataclasses
import functools
import itertools
import math
from collections.abc import Callable

import numpy as np
from PIL import Image, ImageFilter

from m3ae.data.phantom import anatomy
from m3ae.data.phantom.anatomy import Field, Lung, Patient, Stroke, cloud, draw, ellipsoid, inside
from m3ae.data.phantom.report import Factors

SIDE_SIGN: dict[str | None, int] = {"right": -1, "left": 1}
ZONE_DEPTH: dict[str | None, float] = {"upper": 0.27, "middle": 0.54, "lower": 0.81}  # from lung apex 0 to diaphragm 1
ZONE_OUTWARDS: dict[str | None, float] = {"upper": 0.34, "middle": 0.40, "lower": 0.44}  # follows the lung's axis
# One scale for both: small, moderate and large mean the same for a nodule and for an opacity.
NODULE_RADIUS: dict[str | None, float] = {"small": 0.07, "moderate": 0.15, "large": 0.27}
OPACITY_RADIUS: dict[str | None, float] = {"small": 0.1, "moderate": 0.18, "large": 0.37}
FLUID_HEIGHT: dict[str | None, float] = {"small": 0.06, "moderate": 0.28, "large": 0.56}  # above the diaphragm dome
COLLAPSE: dict[str | None, float] = {"small": 0.21, "moderate": 0.36, "large": 0.55}  # retraction of the lung apex
HEART_SCALE: dict[str | None, float] = {"small": 1.2, "moderate": 1.4, "large": 1.62}
DILATION: dict[str | None, float] = {"dilated": 1.5}


@dataclasses.dataclass(frozen=True)
class _View:
    """The differences between the projections of a chest."""

    body: Callable[[Patient, Field, Field], Field]
    bones: Callable[[Patient, Field, Field], Field]
    mediastinum: Callable[[Patient, Field, Field, float], Field]
    lung: Callable[[Patient, Field, Field, int, float], Lung]
    mirrored: bool  # whether the right lung is the mirror image of the left one rather than behind it
    displaced: float  # fraction of the air that the heart takes
    air: float  # attenuation that one lung saves
    filled: float  # attenuation of the tissue or fluid that takes the place of its air
    trees: tuple[tuple[tuple[float, float], tuple[float, float]], ...]  # root and fan (radians) of the vessels
    stomach: float


VIEWS = {
    "frontal": _View(
        body=anatomy.frontal_body,
        bones=anatomy.frontal_bones,
        mediastinum=anatomy.frontal_mediastinum,
        lung=anatomy.frontal_lung,
        mirrored=True,
        displaced=0.55,
        air=1.32,
        filled=1.1,
        trees=(((-0.14, -0.06), (1.77, 4.41)), ((0.16, -0.10), (-1.27, 1.37))),
        stomach=0.36,
    ),
    "lateral": _View(
        body=anatomy.lateral_body,
        bones=anatomy.lateral_bones,
        mediastinum=anatomy.lateral_mediastinum,
        lung=anatomy.lateral_lung,
        mirrored=False,
        displaced=0.30,
        air=0.74,
        filled=0.8,
        trees=(((0.02, -0.06), (-math.pi, math.pi)),),
        stomach=-0.15,
    ),
}


def _finding(
    p: Patient, f: Factors, view: _View, a: Field, y: Field, lung: Lung, mottle: Field
) -> tuple[Field, Field]:
    """Return the attenuation that a finding adds to `lung`, and the air in which vessels still show."""
    if f.finding == "effusion":
        fluid = inside(y - lung.meniscus + FLUID_HEIGHT[f.size], 0.03)
        return view.filled * lung.air * fluid, lung.air * (1 - fluid)
    if f.finding == "pneumothorax":
        gap = inside(lung.pleura - 1, 0.05)
        line = np.exp(-np.square((lung.pleura - 1) / 0.1))
        density = 0.3 * COLLAPSE[f.size] * (1 - gap) - 0.24 * gap  # the smaller the lung, the denser
        return lung.air * (view.air * density + 0.45 * line), lung.air * (1 - gap)
    height = p.apex + ZONE_DEPTH[f.zone] * (p.dome - p.apex) + p.lesion_y
    centre = ZONE_OUTWARDS[f.zone] + p.lesion_x if view.mirrored else p.lesion_z
    if f.finding == "nodule":
        radius = NODULE_RADIUS[f.size]
        return 1.2 * np.tanh(2 * ellipsoid(a, y, centre, height, radius, radius)), lung.air
    distance = np.hypot(a - centre, y - height) / OPACITY_RADIUS[f.size]
    dense = inside(1 - distance + 0.3 * mottle, 0.6)
    return 0.7 * view.filled * lung.air * dense, lung.air * (1 - dense)


def _smooth(points: list[tuple[float, float]]) -> list[tuple[float, float]]:
    """Cut the corners of a line (Chaikin's algorithm)."""
    for _ in range(3):
        pairs = [(p, q, t) for p, q in itertools.pairwise(points) for t in (0.25, 0.75)]
        cut = [((1 - t) * p[0] + t * q[0], (1 - t) * p[1] + t * q[1]) for p, q, t in pairs]
        points = [points[0], *cut, points[-1]]
    return points


def _pacemaker(p: Patient, f: Factors, view: _View, a: Field, y: Field) -> Field:
    """Return a generator below the clavicle, and its lead through the great veins into the right ventricle."""
    height, side = -0.40 + p.lesion_y / 2, SIDE_SIGN[f.side]
    if view.mirrored:
        centre, radii = side * (0.46 + p.lesion_x / 2), (0.10, 0.085)
        path = [(centre, height), (side * 0.52, -0.58), (side * 0.25, -0.60), (-0.07, -0.45), (-0.12, -0.15)]
        path += [(-0.08, 0.14), (0.04, 0.30), (0.22, p.dome - 0.08)]
    else:
        centre, radii = -0.45 * p.depth, (0.035, 0.09)
        path = [(centre, height), (-0.3, -0.62), (-0.05, -0.48), (0.0, -0.1), (-0.05, 0.15), (-0.2, 0.3), (-0.36, 0.3)]
    generator = np.minimum(2 * ellipsoid(a, y, centre, height, *radii), 1)
    lead = draw(p, [Stroke(_smooth(path), 0.018, 1.0)], len(a))
    metal: Field = 2.4 * np.maximum(generator, 0.55 * lead)
    return metal


def _chest(p: Patient, f: Factors, view: _View, a: Field, y: Field, rng: np.random.Generator) -> Field:
    """Return the attenuation of the whole chest; `a` is the horizontal axis of the view."""
    heart = p.heart * (HEART_SCALE[f.size] if f.finding == "cardiomegaly" else DILATION.get(f.heart, 1.0))
    mediastinum = view.mediastinum(p, a, y, heart)
    attenuation = view.body(p, a, y) + view.bones(p, a, y) + 0.25 * mediastinum
    attenuation -= anatomy.stomach_bubble(p, a, y, view.stomach)
    strokes = [stroke for root, fan in view.trees for stroke in anatomy.vessels(rng, root, fan)]
    vessels, mottle = draw(p, strokes, len(a)), cloud(rng, 20, len(a))
    for side in (-1, 1):
        affected = f.zone is not None and SIDE_SIGN[f.side] == side
        out = side * a if view.mirrored else a
        lung = view.lung(p, out, y, side, COLLAPSE[f.size] if affected and f.finding == "pneumothorax" else 0.0)
        lung = dataclasses.replace(lung, air=lung.air * (1 - view.displaced * mediastinum))
        aerated = lung.air
        if affected:
            added, aerated = _finding(p, f, view, out, y, lung, mottle)
            attenuation += added
        attenuation += view.air * (0.22 * vessels * aerated - lung.air)
    if f.finding == "device":
        attenuation += _pacemaker(p, f, view, a, y)
    tissue = 0.05 * cloud(rng, 9, len(a)) + 0.03 * cloud(rng, 30, len(a))
    return attenuation * (1 + tissue)


def _marker(p: Patient) -> Stroke:
    """Return the letter L in lead at the image's right."""
    x, y = 0.72 + 0.14 * p.marker, -0.90
    return Stroke([(x, y), (x, y + 0.10), (x + 0.06, y + 0.10)], 0.02, 1.0)


def _expose(p: Patient, attenuation: Field, rng: np.random.Generator) -> Image.Image:
    """Expose a film by the law of Beer and Lambert, with grain and blur; it stays black where nothing attenuates."""
    transmission = np.exp(-p.exposure * np.maximum(attenuation, 0))
    brightness = (1 - transmission) ** 1.35 + p.noise * rng.standard_normal(attenuation.shape, dtype=np.float32)
    image = Image.fromarray((255 * np.clip(brightness, 0, 1)).astype(np.uint8))
    return image.filter(ImageFilter.GaussianBlur(p.blur * image.width / 128))


@functools.cache
def _grid(image_size: int) -> tuple[Field, Field]:
    axis = (np.arange(image_size, dtype=np.float32) + 0.5) * np.float32(2 / image_size) - 1
    columns, rows = np.meshgrid(axis, axis)
    return columns, rows


def render(factors: Factors, seed: int, index: int, projection: str, image_size: int = 128) -> Image.Image:
    """Render one view of patient `(seed, index)`.

    The patient, the exposure and the position of a finding within its zone depend on `(seed, index)` alone: other
    factors give the counterfactual picture of this patient.

    Args:
        factors: The factors of the picture.
        seed: The seed of the data set, not negative.
        index: The number of the study, not negative.
        projection: The view, `"frontal"` or `"lateral"`.
        image_size: The height and width in pixels.

    Returns:
        A square grayscale picture (mode `L`).

    Raises:
        ValueError: The projection is unknown.
    """
    if projection not in VIEWS:
        raise ValueError(f"unknown projection {projection!r}: expected one of {', '.join(VIEWS)}")
    # A trailing zero would give the generator of (seed, index) itself, so the streams count from 1.
    p = Patient.sample(np.random.default_rng([seed, index, 1]))
    rng = np.random.default_rng([seed, index, 2 + list(VIEWS).index(projection)])
    columns, rows = _grid(image_size)
    cos, sin = math.cos(p.tilt), math.sin(p.tilt)
    a = (cos * (columns - p.shift) + sin * rows) / p.width
    y = cos * rows - sin * (columns - p.shift)
    attenuation = _chest(p, factors, VIEWS[projection], a, y, rng) + 1.5 * draw(p, [_marker(p)], image_size)
    return _expose(p, attenuation, rng)
