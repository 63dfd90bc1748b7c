"""PolyMNIST-style digits in five views: our models and MultiVae's, as many processor minutes of one core each.

A view shows a digit of the row's class in inverted colours on a crop of a background photograph, as in PolyMNIST
(Sutter et al. 2021). Backgrounds are the first five pictures of a folder, in alphabetical order. Figures compare
inside a table and not with published ones.

    python benchmarks/multimodal_vae/polymnist.py --data MNIST --backgrounds PICTURES --model mopoe --output runs/mopoe

`pip install multivae` adds `--model multivae-mopoe` and two others. `--split validation` is the last tenth of the
training rows: choose options on it.

- Conditional coherence: the mean image of a decoder shows the class of the row, by the number of given views, over all
  subsets and all views that are not given.
- Joint coherence: samples of which the classifiers of all five views read one class, from the own prior, and from ten
  Gaussians that are fitted to z.
- Probe: a logistic regression on the mean of z given all views, and given one view (mean over views).
- Fréchet distances on our classifiers' features, mean of views: samples of the own prior, and images given one view.
"""

from __future__ import annotations

import argparse
import json
import tempfile
from collections.abc import Callable, Collection, Sequence
from itertools import combinations
from pathlib import Path
from typing import Any, NamedTuple, Protocol

import numpy as np
import torch
from multimodal_vae.classifiers import Classifier, affordable, learn
from multimodal_vae.mnist import read_mnist
from numpy.typing import NDArray
from PIL import Image
from sklearn.linear_model import LogisticRegression
from sklearn.preprocessing import StandardScaler
from torch import Tensor

import m3ae
from m3ae.data.collate import Collator
from m3ae.metrics.generation import frechet_distance, joint_coherence

VIEWS = [f"view{number}" for number in range(5)]
CHUNK = 500
OPTIONS: dict[str, dict[str, Any]] = {
    "mvae": {"kind": "poe", "objective": "subset_elbos"},
    "mmvae": {"kind": "moe"},
    "mopoe": {"kind": "mopoe", "num_samples": 1},
    "mvtcae": {"kind": "poe", "objective": "mvtcae", "prior_expert": "never"},
}
PRIVATE = {"contrast": dict.fromkeys(VIEWS, 16)}  # private dimensions of each view
OPTIONS["contrast"] = {"kind": "moe", "objective": "dmvae", "contrast": 80.0, "flow_prior": "realnvp"}


class Rows(NamedTuple):
    """Views (N, 3, 28, 28) uint8 by name, and the digit (N,) of each row."""

    views: dict[str, NDArray[np.uint8]]
    digits: NDArray[np.int64]

    def part(self, rows: slice) -> Rows:
        """Return some of the rows."""
        return Rows({name: images[rows] for name, images in self.views.items()}, self.digits[rows])


class Drawn(Protocol):
    """What a trained model can do; images are (N, 3, 28, 28) in [0, 1], the means that a decoder gives."""

    def given(self, rows: Rows, subset: Sequence[str]) -> dict[str, Tensor]:
        """Return images of all views from some views of the rows."""

    def latents(self, rows: Rows, subset: Sequence[str]) -> Tensor:
        """Return the mean (N, D) of z given some views."""

    def sampled(self, count: int, *, fitted: bool) -> dict[str, Tensor]:
        """Return images of all views of samples of a prior."""


def make_rows(data: Path, backgrounds: Path, split: str, count: int, seed: int) -> Rows:
    """Make rows of MNIST's `train` or `t10k`, each view of another digit of the same class."""
    images, names = read_mnist(data, split)
    digits = np.array(names[:count], int)
    shapes = images[:count, 0] >= 128 / 255  # (N, 28, 28)
    views = {}
    for number, (view, path) in enumerate(zip(VIEWS, sorted(backgrounds.glob("*.jpg")), strict=False)):
        draw = np.random.default_rng([seed, number])
        with Image.open(path) as file:
            picture = np.asarray(file.convert("RGB"))
        partner = np.arange(len(digits))
        for digit in range(10):
            rows = np.flatnonzero(digits == digit)
            partner[rows] = draw.permutation(rows)
        top, left = (draw.integers(0, side - 27, len(digits)) for side in picture.shape[:2])
        crops = np.stack([picture[y : y + 28, x : x + 28] for y, x in zip(top, left, strict=True)])
        views[view] = np.where(shapes[partner][..., None], 255 - crops, crops).transpose(0, 3, 1, 2).copy()
    return Rows(views, digits)


class Ours:
    """One of our models."""

    def __init__(self, model: m3ae.M3AEForGeneration, seed: int) -> None:
        self.model, self.generator = model, torch.Generator().manual_seed(seed)
        self.collate = Collator(model.latent_head.modalities)

    @classmethod
    def train(cls, rows: Rows, name: str, size: int, output: Path, minutes: float, seed: int) -> tuple[Ours, float]:
        """Return a model and the processor minutes of its training."""
        image = {"encoder": "cnn", "decoder": "cnn", "hidden_size": 256, "num_layers": 2}
        image |= {"likelihood": "laplace", "scale": 0.75, "learn_scale": False}
        data = m3ae.ArrayDataset(
            rows.views, {view: image | {"private_size": PRIVATE.get(name, {}).get(view, 0)} for view in VIEWS}
        )
        latent = {"size": size, "beta": 2.5, "free_bits": 0.0, "beta_warmup": 0.2, **OPTIONS[name]}

        def run(steps: int, folder: Path | None = None) -> m3ae.M3AEForGeneration:
            with tempfile.TemporaryDirectory() as other:
                return m3ae.train_generation(data, folder or Path(other) / "run", steps=steps, seed=seed, **latent)

        steps, spent = affordable(run, minutes, 10, 40)
        ours = cls(run(steps, output), seed)
        parts = (rows.part(slice(start, start + CHUNK)) for start in range(0, min(len(rows.digits), 10_000), CHUNK))
        ours.model.fit_prior((ours._batch(part, VIEWS) for part in parts), 10, ours.generator)
        return ours, spent

    def _batch(self, rows: Rows, subset: Collection[str]) -> dict[str, dict[str, Tensor]]:
        pixels = {view: torch.from_numpy(rows.views[view]).float() / 255 for view in subset}
        ones = torch.ones(len(rows.digits), dtype=torch.bool)
        return {view: {"pixel_values": values, "present": ones} for view, values in pixels.items()}

    def given(self, rows: Rows, subset: Sequence[str]) -> dict[str, Tensor]:
        """Return images of all views from some views of the rows."""
        drawn = self.model.generate_modalities(self._batch(rows, subset), generator=self.generator)
        return {view: values[0] for view, values in drawn.items()}

    def latents(self, rows: Rows, subset: Sequence[str]) -> Tensor:
        """Return the mean (N, D) of z given some views."""
        with torch.no_grad():
            z = self.model.sample_latent(self._batch(rows, subset), temperature=0.0, generator=self.generator)
        return z[0, :, : self.model.latent.size]

    def sampled(self, count: int, *, fitted: bool) -> dict[str, Tensor]:
        """Return images of all views of samples of a prior."""
        return self.model.sample_prior(count, "fitted" if fitted else "own", generator=self.generator)


def by_chunks(rows: Rows, function: Callable[[Rows], dict[str, Tensor]]) -> dict[str, Tensor]:
    """Return the joined values of a function of chunks of rows."""
    parts = [function(rows.part(slice(start, start + CHUNK))) for start in range(0, len(rows.digits), CHUNK)]
    return {name: torch.cat([part[name] for part in parts]) for name in parts[0]}


def probe(model: Drawn, learnt: Rows, rows: Rows, subset: Sequence[str]) -> float:
    """Return the accuracy of a logistic regression on z."""
    points = [by_chunks(part, lambda some: {"z": model.latents(some, subset)})["z"].numpy() for part in (learnt, rows)]
    scaler = StandardScaler().fit(points[0])
    reader = LogisticRegression(max_iter=500).fit(scaler.transform(points[0]), learnt.digits)
    return float(reader.score(scaler.transform(points[1]), rows.digits))


def measure(model: Drawn, classifiers: dict[str, Classifier], learnt: Rows, rows: Rows) -> dict[str, float]:
    """Return what the table shows, of rows that nothing has learnt from."""
    result: dict[str, float] = {}
    real = {view: classifiers[view].read(rows.views[view])[1] for view in VIEWS}
    distances = []
    for count in range(1, 5):
        right = []
        for subset in combinations(VIEWS, count):
            images = by_chunks(rows, lambda some, subset=subset: model.given(some, subset))  # type: ignore[misc]
            for view in VIEWS:
                if view in subset:
                    continue
                classes, features = classifiers[view].read(images[view])
                right.append((classes[:, 0] == rows.digits).mean())
                if count == 1:
                    distances.append(frechet_distance(features, real[view]))
        result[f"coherence given {count}"] = float(np.mean(right))
    for kind in ("own", "fitted"):
        images = model.sampled(len(rows.digits), fitted=kind == "fitted")
        read = {view: classifiers[view].read(images[view]) for view in VIEWS}
        result[f"joint coherence, {kind} prior"] = joint_coherence(np.stack([read[view][0][:, 0] for view in VIEWS]))
        if kind == "own":
            result["Fréchet distance, own prior"] = float(
                np.mean([frechet_distance(read[view][1], real[view]) for view in VIEWS])
            )
    result["Fréchet distance given 1"] = float(np.mean(distances))
    result["probe given 5"] = probe(model, learnt, rows, VIEWS)
    result["probe given 1"] = float(np.mean([probe(model, learnt, rows, [view]) for view in VIEWS]))
    return result


def main() -> None:
    """Make the rows, train classifiers and a model, measure, print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, required=True, help="folder of MNIST")
    parser.add_argument("--backgrounds", type=Path, required=True, help="folder of five pictures or more, *.jpg")
    others = [f"multivae-{name}" for name in ("mopoe", "mvtcae", "mmvae+")]
    parser.add_argument("--model", choices=[*OPTIONS, *others], required=True)
    parser.add_argument("--minutes", type=float, default=10, help="processor minutes of training")
    parser.add_argument("--size", type=int, default=64, help="dimensions of z; 32 where views have private ones")
    parser.add_argument("--rows", type=int, default=20_000, help="training rows, of which a tenth is for validation")
    parser.add_argument("--split", choices=("validation", "test"), default="test")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--output", type=Path, required=True, help="a new folder")
    options = parser.parse_args()
    torch.set_num_threads(1)
    everything = make_rows(options.data, options.backgrounds, "train", options.rows, seed=0)
    first = options.rows - options.rows // 10
    learnt, rows = everything.part(slice(0, first)), everything.part(slice(first, None))
    if options.split == "test":
        rows = make_rows(options.data, options.backgrounds, "t10k", 2000, seed=1)
    classifiers = {view: learn(everything.views[view][:first], learnt.digits[:, None]) for view in VIEWS}
    result = {
        f"classifier, {view}": float((reader.read(rows.views[view])[0][:, 0] == rows.digits).mean())
        for view, reader in classifiers.items()
    }
    train: Any = Ours.train
    if options.model.startswith("multivae-"):
        from multimodal_vae.polymnist_multivae import train
    name = options.model.removeprefix("multivae-")
    model, result["processor minutes"] = train(
        learnt, name, options.size, options.output, options.minutes, options.seed
    )
    result |= measure(model, classifiers, learnt.part(slice(0, 5000)), rows)
    options.output.mkdir(parents=True, exist_ok=True)
    (options.output / "polymnist.json").write_text(json.dumps(vars(options) | result, default=str, indent=2))
    print(json.dumps(result, indent=2))


if __name__ == "__main__":
    main()
