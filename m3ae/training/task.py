"""What the training loop needs of a task."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any, Protocol, TypeVar

import torch
from accelerate import Accelerator

from m3ae.training.loader import TrainingSamples, TrainingStream

ModelT = TypeVar("ModelT", bound=torch.nn.Module)


class Task(Protocol[ModelT]):
    """A model with its samples, its metrics and what it leaves behind.

    If it has `step_inputs(step)`, that returns further keyword arguments of the model in training: a pure function of
    the optimiser step, counted from 0.
    """

    @property
    def model(self) -> ModelT:
        """The model: `model(**batch)` has a scalar `.loss` and `.losses`, its named scalar parts."""

    @property
    def train_dataset(self) -> TrainingSamples | TrainingStream:
        """The training samples."""

    def collate(self, samples: Sequence[Any]) -> dict[str, Any]:
        """Join samples into the keyword arguments of the model."""

    def evaluate(self, model: ModelT, accelerator: Accelerator, split: str) -> dict[str, float]:
        """Return the metrics on a split, the same in every process; the model is in evaluation mode, without grad."""

    def report(self, model: ModelT, accelerator: Accelerator) -> dict[str, float]:
        """Return the final metrics, named `<split>/<metric>`; called like `evaluate`, once at the end."""

    def save(self, model: ModelT, folder: Path, metrics: dict[str, float]) -> None:
        """Write the model in hub format into an existing folder, with what it needs to be used, and a model card."""

    def illustrate(self, model: ModelT, folder: Path) -> list[Path]:
        """Write pictures of what the model does into an existing folder; return their paths."""
