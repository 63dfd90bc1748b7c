"""What judges drawn images: small convolutional classifiers, and the budget of a training."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn
from torch.nn import functional as F

BATCH = 256


class Classifier(nn.Module):
    """Images (B, C, H, W) → features (B, 128), and logits (B, classes) of each of several attributes."""

    def __init__(self, shape: Sequence[int], counts: Sequence[int]) -> None:
        super().__init__()
        channels, height, width = shape
        size = 32 * (height // 4) * (width // 4)
        self.features = nn.Sequential(
            nn.Conv2d(channels, 16, 5, padding=2),
            nn.ReLU(),
            nn.MaxPool2d(2),
            nn.Conv2d(16, 32, 5, padding=2),
            nn.ReLU(),
            nn.MaxPool2d(2),
            nn.Flatten(),
            nn.Dropout(0.5),
            nn.Linear(size, 128),
            nn.ReLU(),
        )
        self.heads = nn.ModuleList(nn.Linear(128, count) for count in counts)

    def loss(self, images: Tensor, classes: Tensor) -> Tensor:
        """Return the mean cross-entropy over the attributes (B, A)."""
        features = self.features(images)
        losses = [F.cross_entropy(head(features), classes[:, column]) for column, head in enumerate(self.heads)]
        return torch.stack(losses).mean()

    @torch.no_grad()
    def read(self, images: NDArray[np.generic] | Tensor) -> tuple[NDArray[np.integer], NDArray[np.float64]]:
        """Return the classes (N, A) and features (N, 128) of images (N, C, H, W) in [0, 1] or of 8 bits."""
        classes, features = [], []
        for chunk in torch.as_tensor(images).split(BATCH):
            features.append(self.features(_floats(chunk)))
            classes.append(torch.stack([head(features[-1]).argmax(1) for head in self.heads], 1))
        return torch.cat(classes).numpy(), torch.cat(features).double().numpy()


def learn(images: NDArray[np.generic], classes: NDArray[np.integer], epochs: int = 3, seed: int = 0) -> Classifier:
    """Train a classifier on images (N, C, H, W) in [0, 1] or of 8 bits, and their classes (N, A)."""
    torch.manual_seed(seed)
    model = Classifier(images.shape[1:], [int(column.max()) + 1 for column in classes.T])
    steps = epochs * -(-len(images) // BATCH)
    optimizer = torch.optim.Adam(model.parameters(), 1e-3)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, 2e-3, total_steps=steps)
    targets = torch.as_tensor(classes).long()
    for _ in range(epochs):
        for rows in torch.randperm(len(images)).split(BATCH):
            optimizer.zero_grad()
            model.loss(_floats(torch.as_tensor(images[rows.numpy()])), targets[rows]).backward()
            optimizer.step()
            schedule.step()
    return model.eval()


def _floats(images: Tensor) -> Tensor:
    return images.float() / 255 if images.dtype == torch.uint8 else images.float()


def affordable(train: Callable[[int], object], minutes: float, few: int, many: int) -> tuple[int, float]:
    """Return how many units (steps) of `train(units)` fit into processor minutes, and the minutes that they take.

    Two short runs tell the time of a unit, so that what a run does once (building, saving, figures) does not count.
    """
    seconds = []
    for units in (few, many):
        start = time.process_time()
        train(units)
        seconds.append(time.process_time() - start)
    each = (seconds[1] - seconds[0]) / (many - few)
    units = max(1, round(60 * minutes / each))
    return units, units * each / 60
