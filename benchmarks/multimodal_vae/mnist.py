"""JMVAE and MVAE on MNIST images and labels: the image's log-likelihood with z from the joint posterior.

Published (Suzuki et al. 2017): log p(image) ≥ −86.86 nats for JMVAE with K = 1000 importance samples of q(z | image,
label). Networks, size of z and binarisation are the paper's; it trains for 500 epochs, of which 200 raise β.

    python benchmarks/multimodal_vae/mnist.py --data MNIST --objective jmvae --output runs/mnist_jmvae

MNIST is a folder with the four files `train-images-idx3-ubyte.gz` and so on. Started again, the command continues.
"""

from __future__ import annotations

import argparse
import gzip
import json
from pathlib import Path

import numpy as np
import torch

import m3ae
from m3ae.data.collate import Collator
from m3ae.data.samples import Sample, Visit
from m3ae.models import bounds
from m3ae.models.modalities import BatchOptions

IMAGE = {"encoder": "mlp", "decoder": "mlp", "likelihood": "bernoulli", "hidden_size": 512, "num_layers": 2}
LABEL = {"hidden_size": 512, "num_layers": 2}
OBJECTIVES = {
    "jmvae": {"objective": "jmvae", "kind": "joint", "alpha": 0.1},
    "mvae": {"objective": "subset_elbos", "kind": "poe"},
}


class Binarised(m3ae.ArrayDataset):
    """Images whose pixels are drawn anew, 0 or 1, at every visit (Salakhutdinov & Murray 2008)."""

    def __getitem__(self, visit: Visit) -> Sample:
        """Return the row `visit.index`."""
        sample = super().__getitem__(visit)
        draw = np.random.default_rng([visit.index, visit.seed])
        pixels = (draw.random(sample.cells["image"].shape) < sample.cells["image"]).astype(np.float32)
        return sample._replace(cells={**sample.cells, "image": pixels})


def read_mnist(folder: Path, split: str) -> tuple[np.ndarray, list[str]]:
    """Return images (N, 1, 28, 28) in [0, 1] and the names of their digits."""
    with gzip.open(folder / f"{split}-images-idx3-ubyte.gz") as file:
        images = np.frombuffer(file.read(), np.uint8, offset=16).reshape(-1, 1, 28, 28)
    with gzip.open(folder / f"{split}-labels-idx1-ubyte.gz") as file:
        digits = np.frombuffer(file.read(), np.uint8, offset=8)
    return images.astype(np.float32) / 255, [str(digit) for digit in digits]


def dataset(folder: Path, split: str, rows: int | None = None) -> Binarised:
    """Return the first rows of a split."""
    images, digits = read_mnist(folder, split)
    return Binarised({"image": images[:rows], "label": digits[:rows]}, {"image": IMAGE, "label": LABEL})


@torch.no_grad()
def measure(model: m3ae.M3AEForGeneration, rows: Binarised, samples: int, seed: int = 0) -> dict[str, float]:
    """Return the mean log p(image) of z from the joint posterior, its standard error, and negative ELBOs by subset."""
    collate = Collator(model.latent_head.modalities, BatchOptions())
    generator, values = torch.Generator().manual_seed(seed), []
    sums = {"image + label": 0.0, "image": 0.0, "label": 0.0}
    for start in range(0, len(rows), 100):
        batch = collate([rows[Visit(index)] for index in range(start, min(start + 100, len(rows)))])
        q, inferred, _ = model.infer_latent(batch)
        image = {"image": model.log_likelihoods(batch, inferred)["image"]}
        values.append(bounds.importance_log_likelihood(q, image, samples, chunk_size=20, generator=generator))
        for names in sums:
            some = {name: batch[name] for name in names.split(" + ")}
            sums[names] -= float(model.elbo(some, generator=generator).bound.sum()) / len(rows)
    joined = torch.cat(values)
    result = {"log p(image)": float(joined.mean()), "standard error": float(joined.std() / len(joined) ** 0.5)}
    return result | {f"negative ELBO of {names}": value for names, value in sums.items()}


def main() -> None:
    """Train, measure, print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, required=True, help="folder of MNIST")
    parser.add_argument("--objective", choices=OBJECTIVES, default="jmvae")
    parser.add_argument("--output", type=Path, required=True, help="folder of the run")
    parser.add_argument("--steps", type=int, default=234_000, help="steps of 128 images; 234,000 are 500 epochs")
    parser.add_argument("--warmup", type=float, default=0.4, help="share of the steps that raise β")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--samples", type=int, default=1000, help="importance samples K")
    parser.add_argument("--rows", type=int, default=10_000, help="test rows")
    options = parser.parse_args()
    latent = {"size": 64, "free_bits": 0.0, "beta_warmup": options.warmup, **OBJECTIVES[options.objective]}
    model = m3ae.train_generation(
        dataset(options.data, "train"),
        options.output,
        steps=options.steps,
        seed=options.seed,
        resume=options.output.exists(),
        **latent,
    )
    result = measure(model, dataset(options.data, "t10k", options.rows), options.samples)
    (options.output / "likelihood.json").write_text(json.dumps(vars(options) | result, default=str, indent=2))
    print(json.dumps(result, indent=2))


if __name__ == "__main__":
    main()
