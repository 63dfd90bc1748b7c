"""An autoregressive decoder of images on binarised MNIST: the log-likelihood, of which z explains nothing.

Published (van den Oord et al. 2016): 81.30 nats for PixelCNN and 79.20 for PixelRNN; their images are binarised once.
Here the pixels are drawn anew at every visit, and the figure is a bound, the negative ELBO.

    python benchmarks/multimodal_vae/pixelcnn.py --data MNIST --output runs/pixelcnn --steps 700

MNIST is the folder of `mnist.py`. Started again, the command continues.
"""

from __future__ import annotations

import argparse
import json
import time
from pathlib import Path

import torch
from multimodal_vae.mnist import Binarised, read_mnist

import m3ae
from m3ae.data.collate import Collator
from m3ae.data.samples import Visit
from m3ae.models.modalities import BatchOptions

IMAGE = {
    "encoder": "mlp",
    "decoder": "autoregressive",
    "likelihood": "bernoulli",
    "hidden_size": 256,
    "num_layers": 1,
}


def dataset(folder: Path, split: str, rows: int | None = None) -> Binarised:
    """Return the first rows of a split."""
    return Binarised({"image": read_mnist(folder, split)[0][:rows]}, {"image": IMAGE})


@torch.no_grad()
def measure(model: m3ae.M3AEForGeneration, rows: Binarised) -> dict[str, float]:
    """Return the mean negative ELBO in nats, its standard error, and the KL."""
    collate, bounds, divergences = Collator(model.latent_head.modalities, BatchOptions()), [], []
    for start in range(0, len(rows), 100):
        batch = collate([rows[Visit(index)] for index in range(start, min(start + 100, len(rows)))])
        elbo = model.elbo(batch, generator=torch.Generator().manual_seed(start))
        bounds.append(-elbo.bound)
        divergences.append(elbo.kl.sum(-1))
    nats = torch.cat(bounds)
    error = float(nats.std() / len(nats) ** 0.5)
    return {"negative ELBO": float(nats.mean()), "standard error": error, "KL": float(torch.cat(divergences).mean())}


def main() -> None:
    """Train, measure, print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, required=True, help="folder of MNIST")
    parser.add_argument("--output", type=Path, required=True, help="folder of the run")
    parser.add_argument("--steps", type=int, default=10_000, help="steps of 64 images")
    parser.add_argument("--rows", type=int, default=10_000, help="test rows")
    parser.add_argument("--seed", type=int, default=0)
    options = parser.parse_args()
    started = time.process_time()
    model = m3ae.train_generation(
        dataset(options.data, "train"),
        options.output,
        steps=options.steps,
        batch_size=64,
        lr=2e-3,
        seed=options.seed,
        resume=options.output.exists(),
        size=4,
        free_bits=0.0,
    )
    result = {"seconds of the processor": time.process_time() - started}
    result |= measure(model, dataset(options.data, "t10k", options.rows))
    (options.output / "likelihood.json").write_text(json.dumps(vars(options) | result, default=str, indent=2))
    print(json.dumps(result, indent=2))


if __name__ == "__main__":
    main()
