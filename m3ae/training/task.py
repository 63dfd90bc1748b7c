"""What the training loop needs of a task."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any, Protocol, TypeVar

import torch
from accelerate import Accelerator

from m3ae.training.batches import TrainingSamples, TrainingStream

ModelT = TypeVar("ModelT", bound=torch.nn.Module)


class Task(Protocol[ModelT]):
    """A model with its samples, its metrics and what it leaves behind.

    A run calls `collate` for every batch and `step_inputs` for every step; at each validation `evaluate`, and `save`
    if the model is the best so far; at the end `report`, `save` and `illustrate`, once each.
    """

    @property
    def model(self) -> ModelT:
        """The model: `model(**batch)` has a scalar `.loss` and `.losses`, its named scalar parts."""

    @property
    def train_dataset(self) -> TrainingSamples | TrainingStream:
        """The training samples."""

    def collate(self, samples: Sequence[Any]) -> dict[str, Any]:
        """Join samples into the keyword arguments of the model."""

    def step_inputs(self, step: int) -> dict[str, Any]:
        """Return further keyword arguments of the model in training, a function of the step alone, counted from 0."""

    def evaluate(self, model: ModelT, accelerator: Accelerator, split: str) -> dict[str, float]:
        """Return the metrics on a split, the same in every process; the model is in evaluation mode, without grad."""

    def report(self, model: ModelT, accelerator: Accelerator) -> dict[str, float]:
        """Return the final metrics, named `<split>/<metric>`; called like `evaluate`, once at the end."""

    def save(self, model: ModelT, folder: Path, metrics: dict[str, float]) -> None:
        """Write the model in hub format into an existing folder, with what it needs to be used, and a model card."""

    def illustrate(self, model: ModelT, folder: Path) -> list[Path]:
        """Write pictures of what the model does into an existing folder; return their paths."""
