"""Generation from arrays in memory: `m3ae.train_generation`."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from accelerate.utils import set_seed

from m3ae.data.arrays import ArrayDataset
from m3ae.data.prepared import Manifest, SplitInfo
from m3ae.models.configuration import M3AEConfig
from m3ae.models.generation import M3AEForGeneration
from m3ae.tasks.generation import Generation
from m3ae.training.config import GenerationRun
from m3ae.training.loop import train


class ArrayGeneration(Generation):
    """The latent head on arrays.

    Args:
        config: The run.
        model: The model.
        splits: Name → samples; `train` is trained on.
    """

    def __init__(self, config: GenerationRun, model: M3AEForGeneration, splits: dict[str, ArrayDataset]) -> None:
        self.splits = splits
        super().__init__(config, model, None)

    def dataset(self, split: str) -> ArrayDataset:  # type: ignore[override]  # all that the loop needs of one
        """Return the samples of a split."""
        return self.splits[split]

    def read_manifest(self) -> Manifest:
        """Describe the arrays as far as a model card does."""
        infos = {split: SplitInfo(len(samples), {}, None, 0, {}) for split, samples in self.splits.items()}
        return Manifest("arrays in memory", {}, "", infos, {}, {})


def train_generation(
    dataset: ArrayDataset,
    output_dir: str | Path,
    *,
    validation: ArrayDataset | None = None,
    steps: int = 2000,
    batch_size: int = 128,
    lr: float = 1e-3,
    missing_rate: float = 0.0,
    seed: int = 0,
    resume: bool = False,
    **latent: Any,
) -> M3AEForGeneration:
    """Train a multimodal VAE on arrays, and leave it in `output_dir/model` with metrics and figures.

    Args:
        dataset: The training samples.
        output_dir: A new folder, or one of an interrupted run.
        validation: Samples for the validation loss, which is measured ten times and at the end.
        steps: Optimiser steps.
        batch_size: Samples of a step, at most the number of training samples.
        lr: Learning rate after warm-up, which falls to 0.
        missing_rate: Share of the present modalities that are hidden from training.
        seed: Seed of the weights, of the order of the samples and of all noise.
        resume: Whether to continue an interrupted run in `output_dir`.
        latent: Options of `LatentConfig`, such as `kind="mopoe"`, `size=16`, `objective="dreg", num_samples=8`.

    Returns:
        The model, in evaluation mode.

    Raises:
        FileExistsError: The folder holds another run.
        ValueError: An option does not exist, or does not fit the arrays.
    """
    options = {"modalities": dataset.modalities, **latent}
    optimizer = {"lr": lr, "betas": (0.9, 0.999), "weight_decay": 0.0, "lr_multipliers": {}, "schedule": "cosine"}
    training = {"max_steps": steps, "batch_size": min(batch_size, len(dataset)), "seed": seed, "tracker": "none"}
    validate_every = None if validation is None else max(1, steps // 10)
    config = GenerationRun.model_validate(
        {
            "task": "generation",
            "output_dir": Path(output_dir),
            "data": {"path": Path(output_dir)},
            "model": {"size": "small", "overrides": {"latent": options}},
            "optimizer": optimizer,
            "training": {**training, "validate_every": validate_every},
            "generation": {"missing_rate": missing_rate, "prior_components": min(10, len(dataset))},
        }
    )
    set_seed(seed)
    model = M3AEForGeneration(M3AEConfig.named(config.model.size, latent=options))
    splits = {"train": dataset} | ({} if validation is None else {"validation": validation})
    train(config, ArrayGeneration(config, model, splits), resume=resume)
    model.eval()
    return model
