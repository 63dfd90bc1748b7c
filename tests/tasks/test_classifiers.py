import numpy as np

from m3ae.metrics.classification import UNKNOWN
from m3ae.tasks.classifiers import RealDataClassifier, linear_probe


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
    odds, found = classifier.log_odds(others), classifier.predict(others)
    for own, has in zip(odds.T, (truth == 0, truth != 2), strict=False):
        assert own[has].min() > 0 > own[~has].max()
    assert not odds[:, 3:].any(), "of both classes only one was seen, or none"
    np.testing.assert_array_equal(
        found, np.stack([truth == 0, truth != 2, 5 * truth, np.ones(30), nothing], 1).astype(int)
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


def test_the_probe_is_linear() -> None:
    points = np.array([[0.0, 0.0], [1.0, 1.0], [0.0, 1.0], [1.0, 0.0]] * 5, np.float32)
    assert linear_probe(points, (points[:, 0] > 0).astype(int)).score(points, points[:, 0] > 0) == 1
    assert (
        linear_probe(points, (points[:, 0] != points[:, 1]).astype(int)).score(points, points[:, 0] != points[:, 1])
        <= 0.75
    )
