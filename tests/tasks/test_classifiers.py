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
    classifier = RealDataClassifier(values, classes)
    others, truth = blobs(30, 1)
    assert (classifier.predict(others) == truth).all()
    assert (classifier.predict(np.roll(others, 1, 3)) == truth).all()


def test_several_classes_at_once_are_learnt_from_what_is_known_of_them() -> None:
    values, classes = blobs(30, 0)
    targets = np.stack([classes == 0, classes != 2], 1).astype(int)
    targets[::7, 0] = UNKNOWN
    others, truth = blobs(30, 1)
    scores = RealDataClassifier(values, targets).scores(others)
    for own, has in zip(scores.T, (truth == 0, truth != 2), strict=True):
        assert own[has].min() > own[~has].max()


def test_repeated_values_are_learnt_once() -> None:
    values, classes = blobs(12, 0)
    once, again = (RealDataClassifier(np.tile(values, (n, 1, 1, 1)), np.tile(classes, n)) for n in (1, 3))
    np.testing.assert_array_equal(once.features(values), again.features(values))


def test_features_are_what_the_classes_are_read_from() -> None:
    values, classes = blobs(12, 0)
    sequences = values[:, 0]
    classifier = RealDataClassifier(sequences, 10 * classes)
    features = classifier.features(sequences)
    scores = features @ classifier._output.weight.detach().double().numpy().T
    scores += classifier._output.bias.detach().numpy()
    assert features.shape == (12, 256)
    np.testing.assert_array_equal(10 * scores.argmax(1), classifier.predict(sequences))


def test_the_probe_is_linear() -> None:
    points = np.array([[0.0, 0.0], [1.0, 1.0], [0.0, 1.0], [1.0, 0.0]] * 5, np.float32)
    assert linear_probe(points, (points[:, 0] > 0).astype(int)).score(points, points[:, 0] > 0) == 1
    assert (
        linear_probe(points, (points[:, 0] != points[:, 1]).astype(int)).score(points, points[:, 0] != points[:, 1])
        <= 0.75
    )
