"""A task small enough to train in milliseconds: regression with dropout, per-visit noise, and faults on demand."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from accelerate import Accelerator
from safetensors.torch import save_file
from torch import nn

from m3ae.data.samples import Visit
from m3ae.training.config import RunConfig, make_config
from m3ae.training.trained_model import is_moment, read_tensors, stored_shapes


def checkpoint_weights(checkpoint: Path) -> dict[str, torch.Tensor]:
    shapes = {name: shape for name, shape in stored_shapes(checkpoint).items() if not is_moment(name)}
    tensors = {name: torch.empty(shape) for name, shape in shapes.items()}
    read_tensors(tensors, checkpoint)
    return tensors


class Killed(BaseException):
    """Stands in for a kill: nothing may catch it."""


@dataclass
class ToyOutput:
    loss: torch.Tensor
    losses: dict[str, torch.Tensor]


class ToyModel(nn.Module):
    def __init__(self, width: int = 8, dropout: float = 0.5) -> None:
        super().__init__()
        self.body = nn.Linear(4, width)
        self.dropout = nn.Dropout(dropout)
        self.head = nn.Linear(width, 1)

    def parameter_group(self, name: str) -> str:
        return "heads" if name.startswith("head.") else "encoder"

    def forward(self, x: torch.Tensor, y: torch.Tensor) -> ToyOutput:
        error = self.head(self.dropout(torch.relu(self.body(x)))).squeeze(1) - y
        losses = {"square": error.square().mean(), "absolute": error.abs().mean()}
        return ToyOutput(losses["square"] + losses["absolute"], losses)


class ToyTask:
    """`kill_at` and `nan_at` count the micro-batches of this process from 0."""

    def __init__(
        self,
        *,
        width: int = 8,
        dropout: float = 0.5,
        samples: int = 10,
        kill_at: int | None = None,
        nan_at: Sequence[int] = (),
    ) -> None:
        torch.manual_seed(1)
        self.model = ToyModel(width, dropout)
        self.samples, self.kill_at, self.nan_at = samples, kill_at, nan_at
        self.visits: list[list[Visit]] = []

    @property
    def train_dataset(self) -> "ToyTask":
        return self

    def __len__(self) -> int:
        return self.samples

    def __getitem__(self, visit: Visit) -> tuple[Visit, np.ndarray]:
        return visit, np.random.default_rng(visit.index).normal(size=4) + np.random.default_rng(visit.seed).normal()

    def collate(self, samples: Sequence[tuple[Visit, np.ndarray]]) -> dict[str, torch.Tensor]:
        number = len(self.visits)
        if number == self.kill_at:
            raise Killed
        self.visits.append([visit for visit, _ in samples])
        x = torch.tensor(np.stack([x for _, x in samples]), dtype=torch.float32)
        return {"x": x, "y": x.sum(dim=1) * (float("nan") if number in self.nan_at else 1.0)}

    def step_inputs(self, step: int) -> dict[str, Any]:
        return {}

    def evaluate(self, model: nn.Module, accelerator: Accelerator, split: str) -> dict[str, float]:
        assert split == "validation" and not model.training and not torch.is_grad_enabled()
        x = torch.randn(64, 4)  # draws from the global generator, which training must not notice
        return {"loss": model(x, x.sum(dim=1)).loss.item(), "size": len(x)}

    def report(self, model: nn.Module, accelerator: Accelerator) -> dict[str, float]:
        return {f"validation/{name}": value for name, value in self.evaluate(model, accelerator, "validation").items()}

    def save(self, model: nn.Module, folder: Path, metrics: dict[str, float]) -> None:
        save_file(
            model.state_dict(), folder / "model.safetensors", metadata={name: f"{metrics[name]}" for name in metrics}
        )

    def illustrate(self, model: nn.Module, folder: Path) -> list[Path]:
        (folder / "toy.txt").write_text(f"{torch.rand(1).item()}", encoding="utf-8")
        return [folder / "toy.txt"]


def toy_config(folder: Path, optimizer: dict[str, Any] | None = None, **training: Any) -> RunConfig:
    return make_config(
        {
            "task": "pretraining",
            "output_dir": folder,
            "data": {"path": "unused"},
            "optimizer": {"lr": 0.01, "lr_multipliers": {"heads": 5}} | (optimizer or {}),
            "training": {
                "max_steps": 8,
                "batch_size": 3,
                "gradient_accumulation_steps": 2,
                "validate_every": 4,
                "checkpoint_every": 3,
                "log_every": 2,
                "mixed_precision": "no",
                "tracker": "none",
            }
            | training,
        }
    )
