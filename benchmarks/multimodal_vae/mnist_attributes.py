"""MNIST-A: do images drawn from some of four attributes show these, and all values of the others?

Published: coverage / correctness in per cent by the number of given attributes, for combinations drawn independently
(Vedantam et al. 2018; 250,000 steps of 64 on 595,000 images).

    given      4            3               2               1          4, unseen combinations
    TELBO      - / 82.08    91.14 / 81.63   90.32 / 82.03   90.94 / 83.67   - / 75.61
    JMVAE      - / 85.15    88.52 / 82.00   87.89 / 81.02   88.70 / 81.58   - / 76.86

Each image is a digit of MNIST (28 px). It is rotated by N(±45°, 10°) or not at all, scaled by N(.6, .1) or N(.9, .1),
and put near one of the corners of 64 × 64 pixels, which are 0 or 1. Training images come from the 60,000 digits of
training, those of the test from the other 10,000. `--combinations seen` keeps 24 of the 240 combinations for the test.

    python benchmarks/multimodal_vae/mnist_attributes.py --data MNIST --objective telbo --output runs/mnist_a_telbo

Coverage has a narrow range: with ten draws a perfect sampler has .94 on average, and one that draws one value .64.
"""

from __future__ import annotations

import argparse
import json
from itertools import combinations, product
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
from multimodal_vae.classifiers import Classifier, learn
from multimodal_vae.mnist import read_mnist
from numpy.typing import NDArray
from torch.nn import functional as F

import m3ae
from m3ae.data.collate import Collator
from m3ae.data.samples import Visit
from m3ae.metrics.disentanglement import correctness, coverage

VALUES = {
    "digit": [str(digit) for digit in range(10)],
    "size": ["small", "big"],
    "orientation": ["clockwise", "upright", "counter-clockwise"],
    "corner": ["upper left", "upper right", "lower left", "lower right"],
}
COUNTS = [len(values) for values in VALUES.values()]
SIDE = 64
DRAWS = 10  # images a query
LABEL = {"hidden_size": 256, "num_layers": 2, "weight": 50}
IMAGE = {"encoder": "cnn", "decoder": "cnn", "likelihood": "bernoulli", "hidden_size": 512, "num_layers": 4}
OBJECTIVES = {
    "telbo": {"objective": "telbo", "kind": "joint", "gamma": 50.0},
    "jmvae": {"objective": "jmvae", "kind": "joint", "alpha": 1.0},
}


class Images(NamedTuple):
    """Images (N, 1, 64, 64) uint8 of 0 and 1, and the classes (N, 4) of their attributes."""

    pixels: NDArray[np.uint8]
    classes: NDArray[np.int64]


def held_back(seed: int = 0) -> NDArray[np.bool_]:
    """Return which of the 240 combinations (10, 2, 3, 4) are the tenth that training does not see."""
    order = np.random.default_rng(seed).permutation(int(np.prod(COUNTS)))
    return (order < len(order) // 10).reshape(COUNTS)


def draw_images(
    digits: NDArray[np.floating], names: list[str], copies: int, seed: int, allowed: NDArray[np.bool_] | None = None
) -> Images:
    """Draw copies of digits (N, 1, 28, 28) with attributes at random, among the combinations that are allowed."""
    draw = np.random.default_rng(seed)
    count = copies * len(digits)
    classes = np.stack([np.tile(np.array(names, int), copies), *(draw.integers(0, n, count) for n in COUNTS[1:])], 1)
    keep = np.ones(count, bool) if allowed is None else allowed[tuple(classes.T)]
    _, size, orientation, corner = classes.T
    turned = orientation != 1
    angle = np.deg2rad(np.where(turned, draw.normal(45 * (1 - orientation), 10), 0))
    scale = draw.normal(np.array([0.6, 0.9])[size], 0.1).clip(0.2, 1.4)
    quarter, outwards = SIDE / 4, SIDE / 16
    centre = np.stack([corner % 2, corner // 2], 1) * 2 - 1.0  # (N, 2): x and y, −1 or 1
    place = centre * (quarter + outwards) + draw.normal(0, SIDE / 16, (count, 2))  # from the middle, in pixels
    # A pixel of the canvas at p shows the digit at R(−angle) (p − place) / scale.
    cosine, sine = np.cos(angle) / scale, np.sin(angle) / scale
    matrix = np.stack([np.stack([cosine, sine], 1), np.stack([-sine, cosine], 1)], 1)  # (N, 2, 2)
    offset = -(matrix @ place[..., None])[..., 0]
    theta = torch.from_numpy(np.concatenate([matrix * SIDE / 28, offset[..., None] * 2 / 28], 2)).float()
    pixels = np.empty((count, 1, SIDE, SIDE), np.uint8)
    for start in range(0, count, 1000):
        rows = slice(start, min(start + 1000, count))
        source = torch.from_numpy(digits[np.arange(rows.start, rows.stop) % len(digits)])
        grid = F.affine_grid(theta[rows], [len(source), 1, SIDE, SIDE], align_corners=False)
        pixels[rows] = F.grid_sample(source, grid, align_corners=False).numpy() > 0.5
    return Images(pixels[keep], classes[keep])


def dataset(images: Images) -> m3ae.ArrayDataset:
    """Return images and their four labels as modalities."""
    columns = zip(VALUES.items(), images.classes.T, strict=True)
    labels = {name: [values[number] for number in column] for (name, values), column in columns}
    options = {"image": IMAGE, **{name: {**LABEL, "labels": values} for name, values in VALUES.items()}}
    return m3ae.ArrayDataset({"image": images.pixels.astype(np.float32), **labels}, options)


@torch.no_grad()
def measure(
    model: m3ae.M3AEForGeneration, classifier: Classifier, classes: NDArray[np.int64], seed: int = 0
) -> dict[str, float]:
    """Return correctness and coverage by the number of given attributes, over all subsets, for queries (N, 4)."""
    names, result = list(VALUES), {}
    rows = dataset(Images(np.zeros((len(classes), 1, SIDE, SIDE), np.uint8), classes))
    batch = Collator(model.latent_head.modalities)([rows[Visit(row)] for row in range(len(rows))])
    generator = torch.Generator().manual_seed(seed)
    for count in range(4, 0, -1):
        right, covered = [], []
        for given in combinations(range(4), count):
            some = {names[column]: batch[names[column]] for column in given}
            means = model.generate_modalities(some, ["image"], DRAWS, generator=generator)["image"]
            drawn = torch.bernoulli(means, generator=generator).flatten(0, 1)
            shown = classifier.read(drawn)[0].reshape(DRAWS, len(classes), 4).transpose(1, 0, 2)
            right.append(correctness(shown[..., given], classes[:, given]))
            if others := [column for column in range(4) if column not in given]:
                covered.append(coverage(shown[..., others], [COUNTS[column] for column in others]))
        result[f"correctness given {count}"] = float(np.mean(right))
        if covered:
            result[f"coverage given {count}"] = float(np.mean(covered))
    return result


def main() -> None:
    """Make the images, train classifier and model, measure, print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, required=True, help="folder of MNIST")
    parser.add_argument("--objective", choices=OBJECTIVES, default="telbo")
    parser.add_argument("--combinations", choices=("all", "seen"), default="all", help="what training sees")
    parser.add_argument("--output", type=Path, required=True, help="folder of the run")
    parser.add_argument("--copies", type=int, default=1, help="images of each digit; the paper has 10")
    parser.add_argument("--digits", type=int, default=60_000, help="digits of training")
    parser.add_argument("--steps", type=int, default=20_000)
    parser.add_argument("--batch-size", type=int, default=64)
    parser.add_argument("--lr", type=float, default=5e-4)
    parser.add_argument("--seed", type=int, default=0)
    options = parser.parse_args()
    unseen = held_back()
    digits, names = read_mnist(options.data, "train")
    digits, names = digits[: options.digits], names[: options.digits]
    allowed = ~unseen if options.combinations == "seen" else None
    learnt = draw_images(digits, names, options.copies, options.seed, allowed)
    everything = learnt if allowed is None else draw_images(digits, names, options.copies, options.seed)
    classifier = learn(everything.pixels.astype(np.float32), everything.classes)
    test = draw_images(*read_mnist(options.data, "t10k"), 1, options.seed + 1)
    read = classifier.read(test.pixels.astype(np.float32))[0] == test.classes
    result = {f"classifier, {name}": float(right) for name, right in zip(VALUES, read.mean(0), strict=True)}
    print(json.dumps(result, indent=2), flush=True)
    model = m3ae.train_generation(
        dataset(learnt),
        options.output,
        steps=options.steps,
        batch_size=options.batch_size,
        lr=options.lr,
        seed=options.seed,
        resume=options.output.exists(),
        size=10,
        free_bits=0.0,
        beta_warmup=0.0,
        **OBJECTIVES[options.objective],
    )
    queries = np.array(list(product(*map(range, COUNTS))))
    if allowed is not None:
        queries = queries[unseen[tuple(queries.T)]]
    result |= measure(model, classifier, queries)
    (options.output / "attributes.json").write_text(json.dumps(vars(options) | result, default=str, indent=2))
    print(json.dumps(result, indent=2))


if __name__ == "__main__":
    main()
