"""Classifiers of real data, and linear probes of latents."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest

from m3ae.evaluation.probes import Probes, ProblemReader, RealDataClassifier
from m3ae.metrics.classification import UNKNOWN
from m3ae.training.config import ProblemsConfig
from tests.data.small_folder import write_splits

TRAIN = [["normal"], ["normal"], ["effusion", "nodule"], ["effusion", "device"], ["normal"], [], None]
TEST = [["nodule"], None, ["effusion", "unheard of"]]


def blobs(count: int, seed: int) -> tuple[np.ndarray, np.ndarray]:
    draw = np.random.default_rng(seed)
    classes = np.arange(count) % 3
    images = 0.1 * draw.random((count, 1, 6, 6), np.float32)
    images[np.arange(count), 0, 2 * classes, 2 * classes] = 1
    return images, classes


def test_it_tells_classes_of_images_that_are_shifted_by_a_pixel() -> None:
    values, classes = blobs(30, 0)
    classifier = RealDataClassifier(values, classes[:, None])
    others, truth = blobs(30, 1)
    assert (classifier.predict(others) == truth[:, None]).all()
    assert (classifier.predict(np.roll(others, 1, 3)) == truth[:, None]).all()


def test_several_labels_are_learnt_from_what_is_known_of_them() -> None:
    values, classes = blobs(30, 0)
    nothing = np.full(30, UNKNOWN)
    targets = np.stack([classes == 0, classes != 2, 5 * classes, np.ones(30), nothing], 1).astype(int)
    targets[::7, 0] = UNKNOWN
    others, truth = blobs(30, 1)
    classifier = RealDataClassifier(values, targets)
    odds, predicted = classifier.log_odds(others), classifier.predict(others)
    for column, has in zip(odds.T, (truth == 0, truth != 2), strict=False):
        assert column[has].min() > 0 > column[~has].max()
    assert not odds[:, 3:].any(), "of both classes only one was seen, or none"
    np.testing.assert_array_equal(
        predicted, np.stack([truth == 0, truth != 2, 5 * truth, np.ones(30), nothing], 1).astype(int)
    )


def test_repeated_values_are_learnt_once() -> None:
    values, classes = blobs(12, 0)
    once, again = (RealDataClassifier(np.tile(values, (n, 1, 1, 1)), np.tile(classes, n)[:, None]) for n in (1, 3))
    np.testing.assert_array_equal(once.features(values), again.features(values))


def test_features_are_what_the_classes_are_read_from() -> None:
    values, classes = blobs(12, 0)
    sequences = values[:, 0]
    classifier = RealDataClassifier(sequences, 10 * classes[:, None])
    features = classifier.features(sequences)
    scores = features @ classifier._output.weight.detach().double().numpy().T
    scores += classifier._output.bias.detach().numpy()
    assert features.shape == (12, 256)
    np.testing.assert_array_equal(10 * scores.argmax(1), classifier.predict(sequences)[:, 0])


def test_a_probe_is_linear() -> None:
    points = np.array([[0.0, 0.0], [1.0, 1.0], [0.0, 1.0], [1.0, 0.0]] * 5, np.float32)
    classes = {"first": points[:, 0], "differ": points[:, 0] != points[:, 1], "all one": np.ones(20)}
    classes = {name: numbers.astype(int) for name, numbers in classes.items()}
    probes = Probes(points, classes)
    accuracies = [probes.accuracy(label, points, numbers) for label, numbers in classes.items()]
    assert accuracies[0] == 1 and accuracies[1] <= 0.75 and accuracies[2] is None
    assert probes.accuracy("first", points, np.full(20, -1)) is None


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    def rows(split: str, labels: list[Any]) -> list[dict[str, Any]]:
        return [{"id": f"{split}{row}", "labels": names, "kind": "film"} for row, names in enumerate(labels)]

    return write_splits(tmp_path / "studies", train=rows("train", TRAIN), test=rows("test", TEST))


def test_the_most_frequent_problems_of_training_rows(folder: Path) -> None:
    reader = ProblemReader(folder, ProblemsConfig(num_labels=3))
    assert reader.names == ["normal", "effusion", "device"]
    assert reader.targets("train", ["train6", "train3", "train5"]).tolist() == [[-100] * 3, [0, 1, 1], [0, 0, 0]]
    assert reader.targets("test", ["test0", "test2"]).tolist() == [[0, 0, 0], [0, 1, 0]]


def test_a_column_of_single_names_will_do(folder: Path) -> None:
    assert ProblemReader(folder, ProblemsConfig(column="kind")).names == ["film"]


def test_another_column_is_explained(folder: Path) -> None:
    with pytest.raises(ValueError, match=r"problems.column: expected a column of names in .*, got 'tags'.* labels"):
        ProblemReader(folder, ProblemsConfig(column="tags"))


def test_probes_rank_rows_by_their_latents() -> None:
    latents = np.array([[-2.0, 0.3], [-1.0, -0.2], [1.0, 0.1], [2.0, -0.4]], np.float32)
    learnt = np.array([[0, 1, 0, -100], [0, 0, 0, -100], [1, 1, 0, 0], [1, 0, 0, 1]])
    judged = np.array([[1, 0, 0, 0], [0, 0, 1, -100], [1, 0, 0, 0], [-100, 0, 0, 0]])
    names = ["right", "not here", "never learnt", "one kind"]
    probes = Probes(latents, {}, learnt)
    result = probes.rank(latents, judged, names)
    # Of the rows with "right" at −2 and 1, the other one at −1 lies between: one pair of two is in order.
    assert result.auroc["right"] == result.macro_auroc == 0.5
    assert all(np.isnan(result.auroc[name]) for name in names[1:])
    assert probes.rank(latents, np.flip(learnt, 0), names).auroc["right"] == 0
