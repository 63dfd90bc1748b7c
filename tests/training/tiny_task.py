"""Pre-training of a tiny model on made-up pairs, half of them without an image."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from accelerate import Accelerator
from torch import Tensor

from m3ae import M3AEForPreTraining
from m3ae.data.samples import Visit
from tests.models.tiny import tiny_batch, tiny_model

SAMPLES = 12
NO_DROPOUT = {"hidden_dropout_prob": 0.0, "attention_probs_dropout_prob": 0.0}


class TinyPreTraining:
    def __init__(self, **overrides: Any) -> None:
        self.model = tiny_model(**NO_DROPOUT, text_config=NO_DROPOUT, **overrides)
        ids = torch.arange(SAMPLES)
        self.samples = tiny_batch(SAMPLES) | {"image_ids": ids, "text_ids": ids, "image_present": ids % 2 == 0}

    @property
    def train_dataset(self) -> "TinyPreTraining":
        return self

    def __len__(self) -> int:
        return SAMPLES

    def __getitem__(self, visit: Visit) -> int:
        return visit.index

    def collate(self, samples: Sequence[int]) -> dict[str, Tensor]:
        return {name: values[list(samples)] for name, values in self.samples.items()}

    def step_inputs(self, step: int) -> dict[str, Any]:
        return {}

    def evaluate(self, model: M3AEForPreTraining, accelerator: Accelerator, split: str) -> dict[str, float]:
        own = range(accelerator.process_index, SAMPLES - 1, accelerator.num_processes)  # some have one more
        found = [model(**self.collate([index, 0])).loss for index in own]
        return {"loss": accelerator.reduce(torch.stack(found).sum(), reduction="sum").item()}

    def report(self, model: M3AEForPreTraining, accelerator: Accelerator) -> dict[str, float]:
        return {f"validation/{name}": value for name, value in self.evaluate(model, accelerator, "validation").items()}

    def save(self, model: M3AEForPreTraining, folder: Path, metrics: dict[str, float]) -> None:
        model.save_pretrained(folder)

    def illustrate(self, model: M3AEForPreTraining, folder: Path) -> list[Path]:
        return []
