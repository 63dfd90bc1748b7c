"""What the training loop and `m3ae evaluate` need of a task."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any, Protocol, Self, TypeVar

import torch
from accelerate import Accelerator

from m3ae.training.batches import TrainingSamples, TrainingStream

ModelT = TypeVar("ModelT", bound=torch.nn.Module)


class Task(Protocol[ModelT]):
    """A model with its samples, its metrics and the files that it writes.

    A run calls `from_config`, which checks the splits; for every step `step_inputs`, and `collate` for its batches; at
    every validation `evaluate`, and `save` if the model is the best so far; at the end `report`, `save` and
    `illustrate`, once each. `m3ae evaluate` calls `from_config`, `has`, `check` and `measure`, and does not train.

    Measuring methods are called in every process, without gradient, with the model in evaluation mode.
    """

    model: ModelT  # `model(**batch)` has a scalar `.loss` and `.losses`, its named scalar terms

    @classmethod
    def from_config(cls, config: Any, *, for_training: bool = True) -> Self:
        """Open data and model; to evaluate, the head and the labels of the saved model are used.

        Raises:
            FileNotFoundError: The prepared folder is missing and the config does not say how to make it.
            ValueError: Data, model and config do not fit together.
        """

    @property
    def train_dataset(self) -> TrainingSamples | TrainingStream:
        """The training samples."""

    def has(self, split: str) -> bool:
        """Return whether the prepared data have a split."""

    def check(self, split: str) -> None:
        """Make sure that a split can be trained or measured on; ValueError if its rows lack what the task needs."""

    def collate(self, samples: Sequence[Any], /) -> dict[str, Any]:
        """Join training samples into the keyword arguments of the model."""

    def step_inputs(self, step: int) -> dict[str, Any]:
        """Return further keyword arguments of the model in training, a function of the step alone, counted from 0."""

    def evaluate(self, model: ModelT, accelerator: Accelerator, split: str) -> dict[str, float]:
        """Return the metrics on a split, the same in every process."""

    def measure(self, model: ModelT, accelerator: Accelerator, split: str) -> dict[str, float]:
        """Return all metrics of a split, named `<split>/<metric>`, and write what the task reports about it."""

    def report(self, model: ModelT, accelerator: Accelerator) -> dict[str, float]:
        """Return the final metrics of the splits that the run measures, named `<split>/<metric>`."""

    def save(self, model: ModelT, folder: Path, metrics: dict[str, float]) -> None:
        """Write the model in hub format into an existing folder, with processor or tokenizer and a model card."""

    def illustrate(self, model: ModelT, folder: Path) -> list[Path]:
        """Write pictures of what the model does into an existing folder; return their paths."""
