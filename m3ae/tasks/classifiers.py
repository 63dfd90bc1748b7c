"""Classifiers of real data that judge generated data: which class does it show?

Shapes: N samples, A classes, F features.
"""

from __future__ import annotations

import math

import numpy as np
import torch
from numpy.typing import NDArray
from sklearn.linear_model import LogisticRegression
from sklearn.pipeline import Pipeline, make_pipeline
from sklearn.preprocessing import StandardScaler
from torch import Tensor, nn
from torch.nn import functional as F

from m3ae.metrics.classification import UNKNOWN
from m3ae.models.latent_configuration import ModalityConfig
from m3ae.models.latent_encoders import cnn_encoder, mlp_encoder

EPOCHS, MIN_STEPS, MAX_STEPS = 30, 200, 1200
BATCH_SIZE, LEARNING_RATE, AT_ONCE = 128, 1e-3, 1000
FEATURES = 256


class RealDataClassifier:
    """A small network that learns the classes of a modality from real data, on the CPU: of images, convolutional.

    Equal values, which triplets of few recordings repeat, are learnt once; images also shifted by a pixel.

    Args:
        values: (N, …) images (C, S, S), sequences (T, F) or vectors.
        classes: (N,) numbers, or (N, A) which of A classes a sample has: 1, 0, or `UNKNOWN`.
        seed: Of its weights, and of the order of samples.
    """

    def __init__(self, values: NDArray[np.float32], classes: NDArray[np.int64], seed: int = 0) -> None:
        distinct = list({value.tobytes(): row for row, value in enumerate(values)}.values())
        images, targets = torch.from_numpy(values[distinct]), classes[distinct]
        if targets.ndim == 1:
            self.classes, targets = np.unique(targets, return_inverse=True)
        else:
            self.classes = np.arange(targets.shape[1])
        self._is_image = values.ndim == 4
        over = None if self._is_image else 0
        self._mean = torch.from_numpy(np.asarray(images.numpy().mean(over)))
        self._std = torch.from_numpy(np.asarray(images.numpy().std(over))).clamp(min=1e-3)
        with torch.random.fork_rng(devices=[]), torch.enable_grad():
            torch.manual_seed(seed)
            shape = list(values.shape[1:])
            options = ModalityConfig("image" if self._is_image else "vector", hidden_size=FEATURES, dropout=0.2)
            self._encode = (cnn_encoder if self._is_image else mlp_encoder)(shape, options)
            self._output = nn.Linear(FEATURES, len(self.classes))
            self._learn(images, torch.from_numpy(targets))
        self._encode.eval()

    def predict(self, values: NDArray[np.float32]) -> NDArray[np.int64]:
        """Return the likeliest classes (N,) of values (N, …)."""
        found: NDArray[np.int64] = self.classes[self.scores(values).argmax(-1)]
        return found

    @torch.no_grad()
    def scores(self, values: NDArray[np.float32]) -> NDArray[np.float32]:
        """Return a logit of each class, (N, A), of values (N, …)."""
        logits: NDArray[np.float32] = self._output(self._features(torch.from_numpy(values))).numpy()
        return logits

    def features(self, values: NDArray[np.float32]) -> NDArray[np.float64]:
        """Return what its last hidden layer says of values (N, …): (N, F)."""
        return self._features(torch.from_numpy(values)).double().numpy()

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
            loss = _loss(self._output(self._encode(batch)), targets[rows])
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()


def _loss(logits: Tensor, targets: Tensor) -> Tensor:
    """Return the cross-entropy of classes (N,), or the binary ones of those (N, A) that are known."""
    if targets.dim() == 1:
        return F.cross_entropy(logits, targets)
    known = targets != UNKNOWN
    return F.binary_cross_entropy_with_logits(logits[known], targets[known].float())


def linear_probe(latents: NDArray[np.float32], classes: NDArray[np.int64]) -> Pipeline:
    """Fit a logistic regression on standardised posterior means (N, D)."""
    return make_pipeline(StandardScaler(), LogisticRegression(max_iter=1000)).fit(latents, classes)
