"""Pre-training as a task of the training loop: model, data, evaluation, pictures, and what is saved."""

from __future__ import annotations

from collections.abc import Sequence
from functools import cached_property
from pathlib import Path
from typing import Any, Self

import torch
from accelerate import Accelerator, PartialState
from torch import Tensor

from m3ae.data.prepared import load_manifest
from m3ae.data.samples import Sample, trunk_columns
from m3ae.data.sets import MixedDataset, SampleStream
from m3ae.evaluation.pretraining import PreTrainingEvaluator
from m3ae.figures import save_figure
from m3ae.inference.drawing import draw_samples
from m3ae.inference.reconstruction import reconstruct
from m3ae.models.gaussians import beta_schedule
from m3ae.models.generation import M3AEForGeneration
from m3ae.models.latent_configuration import LatentConfig
from m3ae.models.pretraining import M3AEForPreTraining
from m3ae.models.processing import M3AEProcessor
from m3ae.tasks.data import (
    evaluation_samples,
    is_filled,
    open_data,
    training_pairs,
    trunk_collator,
)
from m3ae.tasks.generation import Generation
from m3ae.tasks.model_card import write_model_card
from m3ae.tasks.models import open_model
from m3ae.training.config import GenerationConfig, GenerationRun, PreTrainingRun
from m3ae.training.sections import EvaluationConfig, MixedDataConfig
from m3ae.training.task import Task

LENGTHS = ("max_text_length", "max_validation_samples")  # options of all data that decide what is measured
BYTES = ("0",)  # what the tokenizer of images without texts is trained on: it knows every byte, and no word


class PreTraining(Task[M3AEForPreTraining]):
    """Masked-image modelling, masked-language modelling and image-text matching on a prepared folder.

    Args:
        config: The run.
        model: The model, as `m3ae.tasks.models.open_model` makes it.
        processor: The processor of that model.
    """

    def __init__(self, config: PreTrainingRun, model: M3AEForPreTraining, processor: M3AEProcessor) -> None:
        self.config, self.model, self.processor = config, model, processor
        self.manifest = load_manifest(config.data.path)
        self._training_collator = trunk_collator(config.data, model.config, processor, training=True)
        self.evaluation_collate = trunk_collator(config.data, model.config, processor, training=False)

    @classmethod
    def from_config(cls, config: PreTrainingRun, *, for_training: bool = True) -> Self:
        """Prepare the data if the config says how, and build tokenizer and model."""
        open_data(config, for_training=for_training)
        model, processor = open_model(config, M3AEForPreTraining, lambda: training_pairs(config).texts() or BYTES)
        task = cls(config, model, processor)
        if for_training:
            task.check("train")
        return task

    @cached_property
    def train_dataset(self) -> MixedDataset | SampleStream:
        """The training samples of all sets."""
        return training_pairs(self.config)

    def has(self, split: str) -> bool:
        """Return whether the prepared data have this split."""
        return split in self.manifest.splits

    def check(self, split: str) -> None:
        """Make sure that the samples of a split have what the model's objectives learn from.

        Raises:
            ValueError: They have only images, or only texts, and no objective is of these alone; or words are to be
                reported, and the tokenizer does not know where they are.
        """
        sets, config = self.config.data.sets if split == "train" else [self.config.data], self.model.config
        images = any(is_filled(rows.path, split, rows.image_columns) for rows in sets)
        texts = any(is_filled(rows.path, split, trunk_columns([], rows.text_column).text_columns) for rows in sets)
        rows = "training rows" if split == "train" else f"rows of {split}"
        if not (images or texts):
            raise ValueError(f"no {split} row of {self.config.data.path} has an image or a text; choose others")
        if not (images and texts):
            present, absent, weight = ("images", "texts", "mim") if images else ("texts", "images", "mlm")
            if not getattr(config, f"{weight}_weight") and config.latent is None:
                raise ValueError(
                    f"model.overrides.{weight}_weight: got 0 for {rows} without {absent}, expected more than "
                    f"0: nothing else is learnt from {present} alone"
                )
            PartialState().print(f"the {rows} have no {absent}: what is masked in {present} is learnt")
        if self.config.evaluation.word_groups and not self.processor.tokenizer.is_fast:
            raise ValueError(
                f"evaluation.word_groups: got groups with {type(self.processor.tokenizer).__name__}, which does not "
                "know which tokens make a word: use a tokenizer with tokenizer.json, or leave them out"
            )

    def collate(self, samples: Sequence[Sample], /) -> dict[str, Tensor]:
        """Join training samples into the keyword arguments of the model."""
        return self._training_collator(samples)

    def step_inputs(self, step: int) -> dict[str, Any]:
        """Return β of the latent pass at an optimiser step, if the model has a latent head."""
        latent = self.model.config.latent
        if not isinstance(latent, LatentConfig):
            return {}
        beta = beta_schedule(step, self.config.training.max_steps, latent.beta_warmup, latent.beta)
        return {"beta": torch.tensor(beta)}

    def evaluate(self, model: M3AEForPreTraining, accelerator: Accelerator, split: str) -> dict[str, float]:
        """Return losses and accuracies on a split, each text with its image."""
        return self._metrics(self._evaluator(accelerator, split), model, shuffled=False)

    def measure(self, model: M3AEForPreTraining, accelerator: Accelerator, split: str) -> dict[str, float]:
        """Return all metrics of a split, and write the report of the latent head, if there is one.

        `shuffled_<metric>` is measured with another sample's image for each text, `latent_<metric>` is of that report.
        """
        metrics = self._measure_masked(model, accelerator, split)
        if model.latent_head is not None:
            generation = self._latent_half(model)
            latent = generation.measure(generation.model, accelerator, split)
            metrics |= {name.replace("/", "/latent_", 1): value for name, value in latent.items()}
        return metrics

    def _latent_half(self, model: M3AEForPreTraining) -> Generation:
        """Return the task that measures the latent head on the main set."""
        config, data = self.config, self.config.data
        with torch.device(model.device):
            latent = M3AEForGeneration(model.config).eval()
        parameters = latent.state_dict().keys()
        latent.load_state_dict({name: value for name, value in model.state_dict().items() if name in parameters})
        streams = trunk_columns(data.image_columns, data.text_column, data.view_names).columns
        modalities = latent.latent_head.modalities
        columns = {
            name: streams.get(name) or streams[modality.stream or name] for name, modality in modalities.items()
        }
        run = GenerationRun(
            task="generation",
            output_dir=config.output_dir,
            data=MixedDataConfig(path=data.path, **{name: getattr(data, name) for name in LENGTHS}),
            model=config.model,
            training=config.training,
            evaluation=EvaluationConfig(batch_size=config.evaluation.batch_size),
            generation=GenerationConfig(**dict(config.evaluation.latent)),
        )
        return Generation(run, latent, self.processor.tokenizer, columns)

    def _measure_masked(self, model: M3AEForPreTraining, accelerator: Accelerator, split: str) -> dict[str, float]:
        evaluator, settings = self._evaluator(accelerator, split), self.config.evaluation
        metrics = self._metrics(evaluator, model, shuffled=False, draws=settings.mask_draws)
        shuffled = self._metrics(evaluator, model, shuffled=True, draws=settings.mask_draws)
        metrics |= {f"shuffled_{name}": value for name, value in shuffled.items() if not name.endswith("_chance")}
        if settings.retrieval_pairs and model.config.itm_weight:
            metrics |= evaluator.retrieval(model, settings.retrieval_pairs)
        return {f"{split}/{name}": value for name, value in metrics.items()}

    def report(self, model: M3AEForPreTraining, accelerator: Accelerator) -> dict[str, float]:
        """Return everything that is measured at the end, on validation and test."""
        splits = filter(self.has, ("validation", "test"))
        return {
            name: value for split in splits for name, value in self._measure_masked(model, accelerator, split).items()
        }

    def save(self, model: M3AEForPreTraining, folder: Path, metrics: dict[str, float]) -> None:
        """Write model, processor and model card in hub format."""
        model.save_pretrained(folder)
        self.processor.save_pretrained(folder)
        write_model_card(folder, self.config, model, self.manifest, metrics)

    def illustrate(self, model: M3AEForPreTraining, folder: Path) -> list[Path]:
        """Draw masked reconstructions of images, of validation if there is that split, if there are any."""
        split = next(split for split in ("validation", "test", "train") if self.has(split))
        dataset = evaluation_samples(self.config, split)
        spread = range(0, len(dataset), max(1, len(dataset) // 6))
        samples = [sample for index in spread if (sample := dataset.first(index, index)).images][:6]
        if not samples:
            return []
        fast = self.processor.tokenizer.is_fast  # others do not know which tokens make a word
        texts = [sample.text if fast else None for sample in samples]
        reconstructions = reconstruct(model, self.processor, [sample.picture for sample in samples], texts)
        return [save_figure(draw_samples(model, reconstructions, texts), folder / "reconstructions.png")]

    def _evaluator(self, accelerator: Accelerator, split: str) -> PreTrainingEvaluator:
        samples = evaluation_samples(self.config, split)
        batch_size = self.config.evaluation.batch_size or self.config.training.batch_size
        return PreTrainingEvaluator(samples, self.evaluation_collate, accelerator, batch_size)

    def _metrics(
        self, evaluator: PreTrainingEvaluator, model: M3AEForPreTraining, *, shuffled: bool, draws: int = 1
    ) -> dict[str, float]:
        metrics, groups = (
            evaluator.masked_metrics(model, shuffled=shuffled, draws=draws),
            self.config.evaluation.word_groups,
        )
        return metrics | (evaluator.word_accuracy(model, groups, shuffled=shuffled) if groups else {})
