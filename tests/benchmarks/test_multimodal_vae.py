"""The benchmarks on MNIST, on images that are made here."""

import gzip
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from multimodal_vae import mnist_attributes, pixelcnn, polymnist
from multimodal_vae.classifiers import affordable, learn
from multimodal_vae.mnist import OBJECTIVES, dataset, measure, read_mnist
from PIL import Image
from torch import Tensor

from m3ae import M3AEConfig, M3AEForGeneration
from m3ae.data.samples import Visit
from m3ae.models.modalities import build_modalities

EMPTY = mnist_attributes.Images(np.zeros((1, 1, 64, 64), np.uint8), np.zeros((1, 4), int))
ATTRIBUTES = build_modalities(
    M3AEConfig.named("tiny", latent={"modalities": mnist_attributes.dataset(EMPTY).modalities})
)


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


def test_digits_lie_where_and_as_their_attributes_say() -> None:
    bar = np.zeros((1, 1, 28, 28), np.float32)
    bar[..., 4:24, 12:16] = 1  # upright: 20 × 4 pixels
    images = mnist_attributes.draw_images(np.repeat(bar, 3000, 0), ["1"] * 3000, 1, seed=0)
    pixels, classes = images.pixels[:, 0].astype(float), images.classes
    assert (classes[:, 0] == 1).all() and (classes.max(0) == [1, 1, 2, 3]).all()
    rows, columns = np.mgrid[:64, :64] - 31.5
    mass = pixels.sum((1, 2))
    y, x = (pixels * rows).sum((1, 2)) / mass, (pixels * columns).sum((1, 2)) / mass
    corner, size, orientation = classes[:, 3], classes[:, 1], classes[:, 2]
    assert ((x > 0) == (corner % 2 == 1)).mean() > 0.99 and ((y > 0) == (corner // 2 == 1)).mean() > 0.99
    assert mass[size == 1].mean() / mass[size == 0].mean() == pytest.approx((0.9**2 + 0.01) / (0.6**2 + 0.01), rel=0.1)
    # The covariance of a bar that is turned clockwise, on a screen whose y points down, is that of a falling line.
    slope = (pixels * (rows - y[:, None, None]) * (columns - x[:, None, None])).sum((1, 2)) / mass
    assert (slope[orientation == 0] < 0).mean() > 0.95 and (slope[orientation == 2] > 0).mean() > 0.95
    assert np.abs(slope[orientation == 1]).max() < 2


def test_combinations_that_are_held_back_are_a_tenth_and_training_sees_none() -> None:
    held = mnist_attributes.held_back()
    assert held.sum() == 24 and (held == mnist_attributes.held_back()).all()
    digits = np.ones((200, 1, 28, 28), np.float32)
    seen = mnist_attributes.draw_images(digits, [str(n % 10) for n in range(200)], 3, 0, ~held)
    assert 0 < len(seen.classes) < 600 and not held[tuple(seen.classes.T)].any()


class AsAsked:
    """Draws attributes as pixels: the given ones, of the others all values in turn, one more at every draw."""

    latent_head = SimpleNamespace(modalities=ATTRIBUTES)

    def generate_modalities(
        self, given: dict[str, dict[str, Tensor]], targets: list[str], count: int, generator: object
    ) -> dict[str, Tensor]:
        rows = len(next(iter(given.values()))["labels"])
        images = torch.zeros(count, rows, 1, 4, 10)
        for column, name in enumerate(mnist_attributes.VALUES):
            asked = given[name]["labels"] if name in given else torch.zeros(rows, dtype=torch.long)
            for draw in range(count):
                value = asked if name in given else asked + draw % mnist_attributes.COUNTS[column]
                images[draw, torch.arange(rows), 0, column, value] = 1
        return {"image": images}

    def read(self, images: Tensor) -> tuple[np.ndarray, None]:
        return images[:, 0].argmax(-1).numpy(), None


def test_attributes_that_are_shown_are_right_and_those_left_open_are_covered() -> None:
    queries, model = np.array([[3, 1, 2, 0], [9, 0, 1, 3]]), AsAsked()
    result = mnist_attributes.measure(model, model, queries)
    assert [result[f"correctness given {count}"] for count in (4, 3, 2, 1)] == [1, 1, 1, 1]
    # Ten draws of 10 and of 2 values in turn are uniform; 4, 3, 3 of three and 3, 3, 2, 2 of four are nearly so.
    even = [1, 1, 1 - jensen_shannon([4, 3, 3]), 1 - jensen_shannon([3, 3, 2, 2])]
    assert result["coverage given 3"] == pytest.approx(np.mean(even))
    assert result["coverage given 1"] == pytest.approx(np.mean(even))
    assert "coverage given 4" not in result


def jensen_shannon(counts: list[int]) -> float:
    p, q = np.array(counts) / 10, np.full(len(counts), 1 / len(counts))
    middle = (p + q) / 2
    return float((p * np.log(p / middle) + q * np.log(q / middle)).sum() / 2)


def test_a_view_shows_a_digit_of_its_class_in_inverted_colours(folder: Path, tmp_path: Path) -> None:
    backgrounds = tmp_path / "backgrounds"
    backgrounds.mkdir()
    for number in range(5):
        Image.new("RGB", (40, 30), (10 * number, 20, 30)).save(backgrounds / f"{number}.jpg", quality=100)
    rows = polymnist.make_rows(folder, backgrounds, "t10k", 20, seed=0)
    images, digits = read_mnist(folder, "t10k")[0][:, 0], rows.digits
    assert [images.shape for images in rows.views.values()] == [(20, 3, 28, 28)] * 5
    for number, views in enumerate(rows.views.values()):
        red = views[:, 0].astype(int)
        shapes = np.abs(red - (255 - 10 * number)) < np.abs(red - 10 * number)
        for digit in range(10):  # two digits of each class, in one or the other order
            expected = {(images[row] >= 128 / 255).tobytes() for row in np.flatnonzero(digits == digit)}
            assert {shapes[row].tobytes() for row in np.flatnonzero(digits == digit)} == expected


class Copies:
    """A model that shows the digit of the first given view, and of the prior always the same one."""

    def __init__(self, rows: polymnist.Rows) -> None:
        self.rows = rows

    def given(self, rows: polymnist.Rows, subset: list[str]) -> dict[str, Tensor]:
        return {view: torch.from_numpy(rows.views[subset[0]]).float() / 255 for view in polymnist.VIEWS}

    def latents(self, rows: polymnist.Rows, subset: list[str]) -> Tensor:
        return torch.nn.functional.one_hot(torch.from_numpy(rows.digits), 10).float()

    def sampled(self, count: int, *, fitted: bool) -> dict[str, Tensor]:
        return {view: torch.from_numpy(self.rows.views[view]).float() / 255 for view in polymnist.VIEWS}


def test_a_perfect_model_of_squares_is_coherent() -> None:
    digits = np.arange(100) % 10
    squares = np.zeros((100, 3, 28, 28), np.uint8)
    for row, digit in enumerate(digits):
        squares[row, :, 2 * digit : 2 * digit + 8, 2 * digit : 2 * digit + 8] = 255
    rows = polymnist.Rows(dict.fromkeys(polymnist.VIEWS, squares), digits)
    reader = learn(squares, digits[:, None], epochs=60)
    result = polymnist.measure(Copies(rows), dict.fromkeys(polymnist.VIEWS, reader), rows, rows)
    assert all(value == 1 for name, value in result.items() if "Fréchet" not in name)
    assert result["Fréchet distance, own prior"] == pytest.approx(0, abs=0.05)


def test_what_fits_into_a_time_follows_from_two_runs(monkeypatch: pytest.MonkeyPatch) -> None:
    clock = [0.0]
    monkeypatch.setattr("time.process_time", lambda: clock[0])

    def train(units: int) -> None:
        clock[0] += 7 + 0.5 * units  # seven seconds whatever it does

    assert affordable(train, 2, 10, 40) == (240, 2)


def test_an_autoregressive_decoder_of_zeros_has_a_likelihood_in_closed_form(folder: Path) -> None:
    rows = pixelcnn.dataset(folder, "t10k")
    model = M3AEForGeneration(M3AEConfig.named("tiny", latent={"modalities": rows.modalities, "size": 4})).eval()
    head = model.latent_head
    for parameter in (parameter for part in (head.decoders, head.experts) for parameter in part.parameters()):
        torch.nn.init.zeros_(parameter)
    result = pixelcnn.measure(model, rows)
    assert result["KL"] == pytest.approx(4 * 0.5 * (0.5 - 1 + np.log(2)), rel=1e-4)  # the expert and the prior
    assert result["negative ELBO"] == pytest.approx(784 * np.log(2) + result["KL"], rel=1e-5)
