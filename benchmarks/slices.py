"""Slices that nobody has seen, from a few slices with poses: SSIM and cross-correlation by the number of given slices.

    python benchmarks/slices.py ellipsoids --output runs/slices_ellipsoids
    python benchmarks/slices.py brain --output runs/slices_brain       # needs pip install nilearn

A pose is two tilts and an offset of the plane. `ellipsoids` are random heads: a skull, two ventricles, and one to
three lesions, each an ellipsoid. `brain` is the MNI152 template of T1-weighted MR, whose 1 mm volume is a part of
nilearn. Every scene is that one brain, turned, stretched and warped at random: it shows what the model learns of one
real anatomy, and nothing about patients. Scenes of the test have other parameters than those of training.

Every test scene has eight slices that may be given, and eight others that the model is asked for by their poses.
Controls: no slice given; poses of the given slices, or of those asked for, exchanged within the scene; the given slice
whose pose is nearest; and the mean of all training slices.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Callable
from importlib.util import find_spec
from pathlib import Path

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as F

import m3ae
from m3ae.figures import new_figure, save_figure
from m3ae.metrics.generation import cross_correlation, ssim

LARGEST = torch.tensor([np.pi / 6, np.pi / 6, 0.6])  # two tilts, and the offset in half sides of the volume
SLICES, POOL = 16, 8  # of a scene; those of a test scene that may be given
COUNTS = (1, 2, 3, 4, 6, 8)
NETWORKS = {"encoder": "mlp", "decoder": "mlp", "hidden_size": 512, "num_layers": 1, "num_slices": 8}


def turns(angles: Tensor) -> Tensor:
    """Return rotations (N, 3, 3) by angles (N, 3) about the three axes, one after the other."""
    generators = torch.zeros(3, 3, 3)
    for axis, (row, column) in enumerate(((2, 1), (0, 2), (1, 0))):
        generators[axis, row, column], generators[axis, column, row] = 1, -1
    x, y, z = (torch.matrix_exp(angles[:, axis, None, None] * generators[axis]) for axis in range(3))
    return x @ y @ z


def planes(poses: Tensor, side: int) -> Tensor:
    """Return the points (N, side, side, 3) of planes with poses (N, 3), in half sides of the volume."""
    *_, offset = poses = (poses * LARGEST).T
    turned = turns(F.pad(poses[:2].T, (0, 1)))
    ruler = torch.linspace(-1, 1, side)
    rows, columns = torch.meshgrid(ruler, ruler, indexing="ij")
    size = (len(turned), side, side)
    flat = torch.stack([columns.expand(size), rows.expand(size), offset[:, None, None].expand(size)], -1)
    return torch.einsum("nij,nhwj->nhwi", turned, flat)


def ellipsoids(points: Tensor, draw: torch.Generator) -> Tensor:
    """Return the values (…,) of a random head at points (…, 3)."""

    def uniform(low: float, high: float, *size: int) -> Tensor:
        return low + (high - low) * torch.rand(size, generator=draw)

    turn, centre, axes = turns(uniform(-0.3, 0.3, 1, 3))[0], uniform(-0.1, 0.1, 3), uniform(0.5, 0.9, 3)
    inside = axes - uniform(0.06, 0.14, 1)
    parts = [(torch.zeros(3), axes, 1.0), (torch.zeros(3), inside, float(uniform(0.35, 0.5, 1)))]
    ventricle, apart, tone = uniform(0.1, 0.3, 3), float(uniform(0.1, 0.3, 1)), float(uniform(0.0, 0.15, 1))
    high = float(uniform(-0.2, 0.2, 1))
    parts += [(torch.tensor([side * apart, 0.0, high]), ventricle, tone) for side in (-1, 1)]
    for _ in range(int(torch.randint(1, 4, (), generator=draw))):
        parts.append((uniform(-0.6, 0.6, 3) * inside, uniform(0.08, 0.25, 3), float(uniform(0.65, 0.95, 1))))
    own, values = (points - centre) @ turn, torch.zeros(points.shape[:-1])
    for middle, radii, tone in parts:
        distance = (1 - ((own - middle) / radii).norm(dim=-1)) * radii.mean()  # about that to the surface
        values = torch.lerp(values, torch.full_like(values, tone), (distance * 40).sigmoid())
    return values


def read_brain() -> Tensor:
    """Return the MNI152 template (1, 1, 32, 32, 32) in [0, 1], its axes from left, back and below."""
    import nibabel

    package = find_spec("nilearn")
    if package is None or not package.submodule_search_locations:
        raise SystemExit("brain: needs the package nilearn, which holds the volume: pip install nilearn")
    folder = Path(package.submodule_search_locations[0]) / "datasets" / "data"
    image = nibabel.load(folder / "mni_icbm152_t1_tal_nlin_sym_09a_converted.nii.gz")
    volume = torch.from_numpy(np.asarray(image.dataobj, dtype=np.float32))
    sides = [max(volume.shape) - side for side in volume.shape]
    padding = [part for side in reversed(sides) for part in (side // 2, side - side // 2)]
    volume = F.interpolate(F.pad(volume, padding)[None, None], (32, 32, 32), mode="area")
    return volume / volume.max()


def brain(volume: Tensor, points: Tensor, draw: torch.Generator) -> Tensor:
    """Return the values (…,) at points (…, 3) of a volume (1, 1, D, D, D), turned, stretched and warped at random."""
    turn = turns((torch.rand(1, 3, generator=draw) - 0.5) * 0.6)[0]
    stretch = torch.diag(0.7 + 0.25 * torch.rand(3, generator=draw))
    coarse = (torch.rand(1, 3, 4, 4, 4, generator=draw) - 0.5) * 0.3
    moved = points @ turn @ stretch + (torch.rand(3, generator=draw) - 0.5) * 0.16
    grid = moved.reshape(1, 1, 1, -1, 3)
    warp = F.grid_sample(coarse, grid, align_corners=True, padding_mode="border").flatten(2)[0].T  # (…, 3)
    values = F.grid_sample(volume, (grid + warp.view(grid.shape)).flip(-1), align_corners=True)
    gamma = 0.75 + 0.5 * float(torch.rand((), generator=draw))
    return values.view(points.shape[:-1]).clamp(0, 1) ** gamma


def make_scenes(
    values: Callable[[Tensor, torch.Generator], Tensor], count: int, side: int, seed: int
) -> list[m3ae.Scene]:
    """Return scenes of 8 bits, each of SLICES planes at random poses."""
    scenes = []
    for number in range(count):
        draw = torch.Generator().manual_seed(seed * 10**6 + number)
        poses = torch.rand(SLICES, len(LARGEST), generator=draw) * 2 - 1
        images = (values(planes(poses, side), draw).clamp(0, 1) * 255).round().byte()
        scenes.append(m3ae.Scene(images[:, None].numpy(), poses.numpy()))
    return scenes


def measure(model: m3ae.M3AEForGeneration, scenes: list[m3ae.Scene], mean: Tensor) -> list[dict[str, object]]:
    """Return SSIM and cross-correlation of the slices that are asked for, mean and deviation over scenes."""
    images = torch.from_numpy(np.stack([scene.images for scene in scenes])).float() / 255
    poses = torch.from_numpy(np.stack([scene.poses for scene in scenes]))
    given, wanted = {"pixel_values": images[:, :POOL], "poses": poses[:, :POOL]}, poses[:, POOL:]
    real, rows = images[:, POOL:], []

    def add(name: str, count: int, made: Tensor) -> None:
        pair = made.clamp(0, 1).flatten(0, 1), real.flatten(0, 1)
        row: dict[str, object] = {"slices": name, "given": count}
        for metric in (ssim, cross_correlation):
            by_scene = metric(*pair).view(len(scenes), -1).mean(1)
            row[metric.__name__] = {"mean": float(by_scene.mean()), "sd": float(by_scene.std())}
        rows.append(row)

    def drawn(count: int, of: Tensor, asked: Tensor) -> Tensor:
        some = {"pixel_values": given["pixel_values"][:, :count], "poses": of[:, :count]}
        return model.generate_modalities({"scan": some}, {"scan": asked}, temperature=0.0)["scan"][0]

    add("mean of the training slices", 0, mean.expand_as(real))
    prior = model.decode(torch.zeros(len(scenes), model.latent.total_size), {"scan": wanted})["scan"]
    add("model", 0, prior)
    for count in COUNTS:
        add("model", count, drawn(count, given["poses"], wanted))
        if count > 1:
            add(
                "model, poses of the given ones exchanged",
                count,
                drawn(count, given["poses"][:, :count].roll(1, 1), wanted),
            )
        add("model, poses asked for exchanged", count, drawn(count, given["poses"], wanted.roll(1, 1)))
        nearest = torch.cdist(wanted, given["poses"][:, :count]).argmin(-1)
        add("nearest given slice", count, given["pixel_values"][torch.arange(len(scenes))[:, None], nearest])
    return rows


def draw(model: m3ae.M3AEForGeneration, scene: m3ae.Scene, path: Path) -> Path:
    """Draw the slices of a scene that are given and asked for, and what the model makes of 1, 2, 4 and 8."""
    images, poses = torch.from_numpy(scene.images).float() / 255, torch.from_numpy(scene.poses)
    lines = {"given": images[:POOL], "asked for": images[POOL:]}
    for count in (1, 2, 4, 8):
        some = {"pixel_values": images[None, :count], "poses": poses[None, :count]}
        made = model.generate_modalities({"scan": some}, {"scan": poses[POOL:]}, temperature=0.0)["scan"][0, 0]
        lines[f"from {count}"] = made
    figure = new_figure(POOL * 0.9 + 0.6, len(lines) * 0.9)
    for panels, (name, pictures) in zip(figure.subplots(len(lines), POOL), lines.items(), strict=True):
        for panel, picture in zip(panels, pictures, strict=True):
            panel.imshow(picture[0].numpy(), cmap="gray", vmin=0, vmax=1)
            panel.set_xticks([])
            panel.set_yticks([])
        panels[0].set_ylabel(name, fontsize=8)
    return save_figure(figure, path)


def main() -> None:
    """Train and measure, or measure what has been trained."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("scenes", choices=("ellipsoids", "brain"))
    parser.add_argument(
        "--output", type=Path, required=True, help="folder of the run; a trained one is measured again"
    )
    parser.add_argument("--json", type=Path, help="file for the figures")
    parser.add_argument("--train", type=int, default=5000, help="training scenes")
    parser.add_argument("--test", type=int, default=500, help="test scenes")
    parser.add_argument("--side", type=int, default=32, help="side of a slice in pixels")
    parser.add_argument("--steps", type=int, default=7000)
    parser.add_argument("--batch-size", type=int, default=16)
    parser.add_argument("--size", type=int, default=64, help="latent dimensions")
    parser.add_argument("--seed", type=int, default=0)
    options = parser.parse_args()
    values: Callable[[Tensor, torch.Generator], Tensor] = ellipsoids
    if options.scenes == "brain":
        volume = read_brain()
        values = lambda points, draw: brain(volume, points, draw)  # noqa: E731
    training, test = (
        make_scenes(values, count, options.side, 2 * options.seed + number)
        for number, count in enumerate((options.train, options.test))
    )
    mean = torch.from_numpy(np.stack([scene.images for scene in training]).mean((0, 1))).float() / 255
    folder = options.output / "model"
    if folder.is_dir():
        model = m3ae.M3AEForGeneration.from_pretrained(folder).eval()
    else:
        data = m3ae.ArrayDataset({"scan": training}, {"scan": NETWORKS})
        settings = {"steps": options.steps, "batch_size": options.batch_size, "seed": options.seed}
        model = m3ae.train_generation(
            data, options.output, resume=options.output.is_dir(), size=options.size, **settings
        )
    rows = measure(model, test, mean)
    draw(model, test[0], options.output / "slices.png")
    for row in rows:
        figures = " / ".join(
            f"{row[name]['mean']:.3f} ± {row[name]['sd']:.3f}" for name in ("ssim", "cross_correlation")
        )
        print(f"{row['slices']:45} {row['given']}  {figures}")
    if options.json is not None:
        settings = {name: str(value) for name, value in vars(options).items()}
        options.json.write_text(json.dumps({"options": settings, "rows": rows}, indent=2), encoding="utf-8")


if __name__ == "__main__":
    main()
