"""Pre-training as a task of the training loop: model, data, evaluation, pictures, and what is saved."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from accelerate import Accelerator, PartialState

from m3ae.data.prepared import load_manifest
from m3ae.data.samples import trunk_columns
from m3ae.evaluation.pretraining import PreTrainingEvaluator
from m3ae.figures import save_figure
from m3ae.inference.drawing import draw_samples
from m3ae.inference.reconstruction import reconstruct
from m3ae.models.gaussians import beta_schedule
from m3ae.models.latent_configuration import LatentConfig
from m3ae.models.pretraining import M3AEForPreTraining
from m3ae.models.processing import M3AEProcessor
from m3ae.tasks.model_card import write_model_card
from m3ae.tasks.models import check_model, open_model
from m3ae.tasks.pretraining_data import (
    check_splits,
    evaluation_samples,
    is_filled,
    prepare_sets,
    refuse_test_rows,
    training_samples,
    trunk_collator,
)
from m3ae.training.config import PreTrainingRun

BYTES = ("0",)  # what the tokenizer of images without texts is trained on: it knows every byte, and no word


class PreTraining:
    """Masked-image modelling, masked-language modelling and image-text matching on a prepared folder.

    Args:
        config: The run.
        model: As `m3ae.tasks.models.open_model` makes it.
        processor: Of that model.
    """

    def __init__(self, config: PreTrainingRun, model: M3AEForPreTraining, processor: M3AEProcessor) -> None:
        self.config, self.model, self.processor = config, model, processor
        self.train_dataset = training_samples(config)
        self.collate = trunk_collator(config.data, model.config, processor, training=True)
        self.evaluation_collate = trunk_collator(config.data, model.config, processor, training=False)
        self.splits = list(load_manifest(config.data.path).splits)

    @classmethod
    def from_config(cls, config: PreTrainingRun) -> PreTraining:
        """Prepare the data if the config says how, and build tokenizer and model.

        Raises:
            FileNotFoundError: The prepared folder is missing and the config does not say how to make it.
            ValueError: Data, tokenizer and model do not fit together, or a training image is in a held-out split.
        """
        check_model(config)
        prepare_sets(config.data)
        check_splits(config, needed=("train", "validation") if config.training.validate_every else ("train",))
        refuse_test_rows(config.data)
        model, processor = open_model(config, M3AEForPreTraining, lambda: training_samples(config).texts() or BYTES)
        task = cls(config, model, processor)
        task.check()
        return task

    def check(self) -> None:
        """Make sure that the training samples have what the model's objectives learn from.

        Raises:
            ValueError: They have only images, or only texts, and no objective is of these alone; or words are to be
                reported, and the tokenizer does not know where they are.
        """
        sets, config = self.config.data.sets, self.model.config
        images = any(is_filled(own.path, "train", own.image_columns) for own in sets)
        texts = any(is_filled(own.path, "train", trunk_columns([], own.text_column).text_columns) for own in sets)
        if not (images or texts):
            raise ValueError(f"no training row of {self.config.data.path} has an image or a text; choose others")
        if not (images and texts):
            present, absent, weight = ("images", "texts", "mim") if images else ("texts", "images", "mlm")
            if not getattr(config, f"{weight}_weight") and config.latent is None:
                raise ValueError(
                    f"model.overrides.{weight}_weight: got 0 for training rows without {absent}, expected more than "
                    f"0: nothing else is learnt from {present} alone"
                )
            PartialState().print(f"the training rows have no {absent}: what is masked in {present} is learnt")
        if self.config.evaluation.word_groups and not self.processor.tokenizer.is_fast:
            raise ValueError(
                f"evaluation.word_groups: got them with {type(self.processor.tokenizer).__name__}, which does not "
                "know which tokens make a word: use a tokenizer with tokenizer.json, or leave them out"
            )

    def step_inputs(self, step: int) -> dict[str, Any]:
        """Return β of the latent pass at an optimiser step, if the model has a latent head."""
        latent = self.model.config.latent
        if not isinstance(latent, LatentConfig):
            return {}
        beta = beta_schedule(step, self.config.training.max_steps, latent.beta_warmup, latent.beta)
        return {"beta": torch.tensor(beta)}

    def evaluate(self, model: M3AEForPreTraining, accelerator: Accelerator, split: str) -> dict[str, float]:
        """Return losses and accuracies on a split, with own images."""
        evaluator = self._evaluator(accelerator, split)
        return evaluator.masked_metrics(model, shuffled=False) | self._word_accuracy(evaluator, model, shuffled=False)

    def report(self, model: M3AEForPreTraining, accelerator: Accelerator) -> dict[str, float]:
        """Return everything that is measured at the end, on validation and test: names are `<split>/<metric>`.

        `shuffled_<metric>` is measured with each text given another sample's image.
        """
        metrics: dict[str, float] = {}
        draws = self.config.evaluation.mask_draws
        for split in ("validation", "test"):
            if split not in self.splits:
                continue
            evaluator = self._evaluator(accelerator, split)
            found = evaluator.masked_metrics(model, shuffled=False, draws=draws)
            found |= self._word_accuracy(evaluator, model, shuffled=False)
            shuffled = evaluator.masked_metrics(model, shuffled=True, draws=draws)
            shuffled |= self._word_accuracy(evaluator, model, shuffled=True)
            found |= {f"shuffled_{name}": value for name, value in shuffled.items() if not name.endswith("_chance")}
            if self.config.evaluation.retrieval_pairs and model.config.itm_weight:
                found |= evaluator.retrieval(model, self.config.evaluation.retrieval_pairs)
            metrics |= {f"{split}/{name}": value for name, value in found.items()}
        return metrics

    def save(self, model: M3AEForPreTraining, folder: Path, metrics: dict[str, float]) -> None:
        """Write model, processor and model card in hub format."""
        model.save_pretrained(folder)
        self.processor.save_pretrained(folder)
        write_model_card(folder, self.config, model, load_manifest(self.config.data.path), metrics)

    def illustrate(self, model: M3AEForPreTraining, folder: Path) -> list[Path]:
        """Draw masked reconstructions of images, of validation if there is that split, if there are any."""
        split = next(split for split in ("validation", "test", "train") if split in self.splits)
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
        batch_size = self.config.evaluation.batch_size or self.config.training.batch_size
        return PreTrainingEvaluator(
            evaluation_samples(self.config, split), self.evaluation_collate, accelerator, batch_size
        )

    def _word_accuracy(
        self, evaluator: PreTrainingEvaluator, model: M3AEForPreTraining, *, shuffled: bool
    ) -> dict[str, float]:
        groups = self.config.evaluation.word_groups
        return evaluator.word_accuracy(model, groups, shuffled=shuffled) if groups else {}
