"""The benchmark on MNIST, on images that are made here."""

import gzip
from pathlib import Path

import numpy as np
import pytest
import torch
from multimodal_vae.mnist import OBJECTIVES, dataset, measure

from m3ae import M3AEConfig, M3AEForGeneration
from m3ae.data.samples import Visit


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    draw = np.random.default_rng(0)
    images, digits = draw.integers(0, 256, (20, 784), np.uint8), np.arange(20, dtype=np.uint8) % 10
    for name, header, values in (("images-idx3", 16, images), ("labels-idx1", 8, digits)):
        with gzip.open(tmp_path / f"t10k-{name}-ubyte.gz", "wb") as file:
            file.write(bytes(header) + values.tobytes())
    return tmp_path


def test_pixels_are_drawn_anew_at_every_visit_and_alike_for_a_seed(folder: Path) -> None:
    rows = dataset(folder, "t10k", 12)
    first, again, other = (rows[Visit(3, seed)].cells["image"] for seed in (0, 0, 1))
    assert len(rows) == 12 and set(np.unique(first)) == {0, 1}
    assert (first == again).all() and (first != other).any()


@pytest.mark.parametrize("objective", OBJECTIVES)
def test_a_model_that_has_learnt_nothing_has_a_likelihood_in_closed_form(folder: Path, objective: str) -> None:
    rows = dataset(folder, "t10k")
    latent = {"modalities": rows.modalities, "size": 4, **OBJECTIVES[objective]}
    model = M3AEForGeneration(M3AEConfig.named("tiny", latent=latent)).eval()
    head = model.latent_head
    networks = [*head.decoders.values(), *head.experts.values(), *filter(None, [head.joint_expert])]
    for parameter in (parameter for network in networks for parameter in network.parameters()):
        torch.nn.init.zeros_(parameter)
    result = measure(model, rows, samples=3)
    # p(pixel) = 1/2 and q = p for a joint expert of zeros; a product of two with the prior has the precision 3.
    if objective == "jmvae":
        assert result["log p(image)"] == pytest.approx(-784 * np.log(2), rel=1e-5)
        assert result["standard error"] == pytest.approx(0, abs=1e-3)
    explained = 784 * np.log(2) + np.log(10)
    kl = 0.0 if objective == "jmvae" else 4 * 0.5 * (1 / 3 - 1 + np.log(3))
    assert result["negative ELBO of image + label"] == pytest.approx(explained + kl, rel=1e-5)
