"""Classifiers of real data that judge generated data: which class does it show?

Shapes: N samples, K labels, A classes of one, F features.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np
import torch
from numpy.typing import NDArray
from sklearn.linear_model import LogisticRegression
from sklearn.pipeline import Pipeline, make_pipeline
from sklearn.preprocessing import StandardScaler
from torch import Tensor, nn

from m3ae.metrics.classification import UNKNOWN
from m3ae.models.latent_networks import cnn_encoder, mlp_encoder
from m3ae.models.losses import class_loss
from m3ae.models.modalities import ModalityConfig

EPOCHS, MIN_STEPS, MAX_STEPS = 30, 200, 1200
BATCH_SIZE, LEARNING_RATE, AT_ONCE = 128, 1e-3, 1000
FEATURES = 256


class RealDataClassifier:
    """A small network that learns the classes of a modality from real data, on the CPU: of images, convolutional.

    Equal values, which triplets of few recordings repeat, are learnt once; images also shifted by a pixel.

    Args:
        values: (N, …) images (C, S, S), sequences (T, F) or vectors.
        classes: (N, K) number of the class of each of K labels, negative = unknown.
        seed: Of its weights, and of the order of samples.
    """

    def __init__(self, values: NDArray[np.float32], classes: NDArray[np.int64], seed: int = 0) -> None:
        distinct = list({value.tobytes(): row for row, value in enumerate(values)}.values())
        images, classes = torch.from_numpy(values[distinct]), classes[distinct]
        known = [np.unique(own[own >= 0]) for own in classes.T]
        self._classes = [own if len(own) else np.array([UNKNOWN]) for own in known]  # what each output stands for
        targets = np.where(classes < 0, UNKNOWN, _places(classes, self._classes))
        self._is_image = values.ndim == 4
        over = None if self._is_image else 0
        self._mean = torch.from_numpy(np.asarray(images.numpy().mean(over)))
        self._std = torch.from_numpy(np.asarray(images.numpy().std(over))).clamp(min=1e-3)
        with torch.random.fork_rng(devices=[]), torch.enable_grad():
            torch.manual_seed(seed)
            shape = list(values.shape[1:])
            options = ModalityConfig("image" if self._is_image else "vector", hidden_size=FEATURES, dropout=0.2)
            self._encode = (cnn_encoder if self._is_image else mlp_encoder)(shape, options)
            self._output = nn.Linear(FEATURES, sum(map(len, self._classes)))
            self._learn(images, torch.from_numpy(targets))
        self._encode.eval()

    def predict(self, values: NDArray[np.float32]) -> NDArray[np.int64]:
        """Return the likeliest class of each label, (N, K), of values (N, …); unknown if none was ever known."""
        found = [own[scores.argmax(-1)] for own, scores in zip(self._classes, self._scores(values), strict=True)]
        return np.stack(found, 1)

    def log_odds(self, values: NDArray[np.float32]) -> NDArray[np.float32]:
        """Return log p(1) / p(0) for each of K labels that are 0 or 1, (N, K); 0 if only one of them was seen."""
        found = [own[:, -1] - own[:, 0] for own in self._scores(values)]
        return torch.stack(found, 1).numpy()

    def features(self, values: NDArray[np.float32]) -> NDArray[np.float64]:
        """Return what its last hidden layer says of values (N, …): (N, F)."""
        return self._features(torch.from_numpy(values)).double().numpy()

    @torch.no_grad()
    def _scores(self, values: NDArray[np.float32]) -> tuple[Tensor, ...]:
        return self._split(self._output(self._features(torch.from_numpy(values))))

    def _split(self, logits: Tensor) -> tuple[Tensor, ...]:
        """Return the logits (N, A) of each label."""
        parts: tuple[Tensor, ...] = logits.split([len(own) for own in self._classes], -1)
        return parts

    @torch.no_grad()
    def _features(self, values: Tensor) -> Tensor:
        parts = [self._encode(self._scaled(part)) for part in values.split(AT_ONCE)]
        return torch.cat(parts)

    def _scaled(self, values: Tensor) -> Tensor:
        return (values - self._mean) / self._std

    def _learn(self, values: Tensor, targets: Tensor) -> None:
        steps = min(MAX_STEPS, max(MIN_STEPS, EPOCHS * len(values) // BATCH_SIZE))
        parameters = [*self._encode.parameters(), *self._output.parameters()]
        optimizer = torch.optim.AdamW(parameters, LEARNING_RATE, weight_decay=0.01)
        for step in range(steps):
            for group in optimizer.param_groups:
                group["lr"] = LEARNING_RATE * 0.5 * (1 + math.cos(math.pi * step / steps))
            rows = torch.randint(len(values), (BATCH_SIZE,))
            batch = self._scaled(values[rows])
            if self._is_image:
                batch = batch.roll(torch.randint(-1, 2, (2,)).tolist(), (2, 3))
            logits = self._split(self._output(self._encode(batch)))
            losses = [class_loss(own, target) for own, target in zip(logits, targets[rows].T, strict=True)]
            optimizer.zero_grad()
            torch.stack(losses).sum().backward()
            optimizer.step()


def _places(classes: NDArray[np.int64], names: Sequence[NDArray[np.int64]]) -> NDArray[np.int64]:
    """Return where each class (N, K) stands among those of its label."""
    return np.stack([np.searchsorted(own, column) for own, column in zip(names, classes.T, strict=True)], 1)


def linear_probe(latents: NDArray[np.float32], classes: NDArray[np.int64]) -> Pipeline:
    """Fit a logistic regression on standardised posterior means (N, D)."""
    return make_pipeline(StandardScaler(), LogisticRegression(max_iter=1000)).fit(latents, classes)
