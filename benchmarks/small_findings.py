"""How often a nodule of each size is still recognised after a latent model has drawn the phantom again.

    m3ae prepare phantom --factors independent --num-studies 16000 --image-size 64 --output data/phantom-factors
    m3ae train phantom_factors
    python benchmarks/small_findings.py --model runs/phantom_factors/model [--json figures.json]

A classifier learns finding and size from the real training images. It then reads the test images and their
reconstructions, from the mean of z or from a sample. The table says for each size what share of the nodules the
classifier calls nodules.
"""

import argparse
import json
from pathlib import Path
from typing import Any

import numpy as np
import torch
from multimodal_vae.classifiers import Classifier, learn
from numpy.typing import NDArray

from m3ae.data.prepared import load_split
from m3ae.images.files import StoredImage
from m3ae.inference import load_generator
from m3ae.models.generation import M3AEForGeneration

FINDINGS, SIZES = ("nodule", "opacity"), ("large", "moderate", "small")
BATCH = 200


def main() -> None:
    """Run the command line."""
    parser = argparse.ArgumentParser(description="Nodules that are recognised in drawn phantoms, by size.")
    parser.add_argument("--model", required=True, help="a latent model with the image `frontal`")
    parser.add_argument("--data", type=Path, default=Path("data/phantom-factors"), help="prepared phantoms")
    parser.add_argument("--epochs", type=int, default=6, help="of the classifier")
    parser.add_argument("--json", type=Path, help="write the figures here too")
    arguments = parser.parse_args()
    classifier = learn(*read(arguments.data, "train"), epochs=arguments.epochs)
    images, classes = read(arguments.data, "test")
    figures = {"real images": recognised(classifier, images, classes)}
    model = load_generator(arguments.model)[0]
    for name, temperature in (("reconstructions", 0.0), ("reconstructions, z sampled", 1.0)):
        figures[name] = recognised(classifier, reconstruct(model, images, temperature), classes)
    print(report(figures))
    if arguments.json:
        arguments.json.write_text(json.dumps(figures, indent=2) + "\n")


def read(folder: Path, split: str) -> tuple[NDArray[np.uint8], NDArray[np.integer]]:
    """Return the images (N, 1, S, S), and the indices (N, 2) of finding and size, of a split."""
    rows = load_split(folder, split)
    images = [np.asarray(StoredImage(row["frontal"]["bytes"], row["id"]).decode().convert("L")) for row in rows]
    pairs = zip(rows["finding"], rows["size"], strict=True)
    classes = [(FINDINGS.index(finding), SIZES.index(size)) for finding, size in pairs]
    return np.stack(images)[:, None], np.array(classes)


@torch.no_grad()
def reconstruct(
    model: M3AEForGeneration, images: NDArray[np.uint8], temperature: float, seed: int = 0
) -> torch.Tensor:
    """Return images (N, 1, S, S) drawn from the latents of images alone."""
    generator, drawn = torch.Generator().manual_seed(seed), []
    for chunk in torch.as_tensor(images).split(BATCH):
        given = {"frontal": {"pixel_values": chunk.float() / 255}}
        drawn.append(model.generate_modalities(given, ["frontal"], 1, temperature, generator)["frontal"][0])
    return torch.cat(drawn).clamp(0, 1)


def recognised(
    classifier: Classifier, images: NDArray[np.uint8] | torch.Tensor, classes: NDArray[np.integer]
) -> dict[str, float]:
    """Return the share of nodules that are called nodules by size, and the share of right findings."""
    found, truth = classifier.read(images)[0][:, 0], classes[:, 0]
    nodules = {
        f"{size} nodules": float(np.mean(found[(truth == 0) & (classes[:, 1] == number)] == 0))
        for number, size in enumerate(SIZES)
    }
    return nodules | {"all findings": float(np.mean(found == truth))}


def report(figures: dict[str, dict[str, Any]]) -> str:
    """Return the figures as a table."""
    names = list(next(iter(figures.values())))
    lines = [f"| | {' | '.join(names)} |", f"|---|{'---:|' * len(names)}"]
    for name, row in figures.items():
        lines.append(f"| {name} | {' | '.join(f'{100 * row[key]:.1f} %' for key in names)} |")
    return "\n".join(lines)


if __name__ == "__main__":
    main()
