"""Pre-training as a task of the training loop: model, data, evaluation, pictures, and what is saved."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from accelerate import Accelerator, PartialState
from accelerate.utils import parse_flag_from_env, send_to_device, set_seed
from transformers import PreTrainedTokenizerBase, RobertaConfig

from m3ae.data.pairs import PairCollator, PairDataset
from m3ae.data.prepare import prepare
from m3ae.data.prepared import load_manifest
from m3ae.data.tokenizer import load_tokenizer, train_tokenizer
from m3ae.models.configuration import M3AEConfig, M3AEImageConfig
from m3ae.models.pretraining import M3AEForPreTraining
from m3ae.models.processing import M3AEImageProcessor, M3AEProcessor
from m3ae.tasks.model_card import write_model_card
from m3ae.tasks.pretraining_evaluation import PreTrainingEvaluator
from m3ae.tasks.reconstruction import plot_reconstructions
from m3ae.training.config import RunConfig


class PreTraining:
    """Masked-image modelling, masked-language modelling and image-text matching on a prepared folder.

    Args:
        config: The run.
        model: Built by `build_model`.
        processor: Of that model.
    """

    def __init__(self, config: RunConfig, model: M3AEForPreTraining, processor: M3AEProcessor) -> None:
        self.config, self.model, self.processor = config, model, processor
        self.train_dataset = self._dataset("train")
        assert isinstance(model.config.image_config, M3AEImageConfig)
        num_patches, length = model.config.image_config.num_patches, config.data.max_text_length
        self.collate = PairCollator(processor, num_patches, length, config.data.crop_scale)
        self.evaluation_collate = PairCollator(processor, num_patches, length)
        self.splits = list(load_manifest(config.data.path).splits)

    @classmethod
    def from_config(cls, config: RunConfig) -> PreTraining:
        """Prepare the data if the config says how, and build tokenizer and model.

        Raises:
            FileNotFoundError: The prepared folder is missing and the config does not say how to make it.
            ValueError: Data, tokenizer and model do not fit together.
        """
        if config.data.prepare is not None:
            # `PartialState`, unlike `Accelerator`, does not read this, and would take each process for the only one.
            state = PartialState(cpu=parse_flag_from_env("ACCELERATE_USE_CPU"))
            if state.is_local_main_process:
                prepare(output=config.data.path, **config.data.prepare)
            state.wait_for_everyone()
        if config.model.path is not None:
            model, processor = load_pretrained(config.model.path, config.model.overrides)
            return cls(config, model, processor)
        tokenizer = build_tokenizer(config)
        model = build_model(config, tokenizer)
        assert isinstance(model.config.image_config, M3AEImageConfig)
        image_processor = M3AEImageProcessor.for_size(model.config.image_config.image_size)
        return cls(config, model, M3AEProcessor(image_processor, tokenizer))

    def evaluate(self, model: M3AEForPreTraining, accelerator: Accelerator, split: str) -> dict[str, float]:
        """Return losses and accuracies on a split, with own images."""
        evaluator = self._evaluator(accelerator, split)
        return evaluator.masked_metrics(model, shuffled=False) | self._word_accuracy(evaluator, model, shuffled=False)

    def report(self, model: M3AEForPreTraining, accelerator: Accelerator) -> dict[str, float]:
        """Return everything that is measured at the end, on validation and test: names are `<split>/<metric>`.

        `shuffled_<metric>` is measured with each text given another sample's image.
        """
        metrics: dict[str, float] = {}
        for split in ("validation", "test"):
            if split not in self.splits:
                continue
            evaluator = self._evaluator(accelerator, split)
            found = self.evaluate(model, accelerator, split)
            shuffled = evaluator.masked_metrics(model, shuffled=True)
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
        """Draw masked reconstructions of validation images."""
        dataset = self._dataset("validation")
        spread = range(0, len(dataset), max(1, len(dataset) // 6))
        pairs = [pair for index in spread if (pair := dataset.first(index, index)).image is not None][:6]
        batch = send_to_device(self.evaluation_collate(pairs), model.device)
        path = folder / "reconstructions.png"
        plot_reconstructions(path, model, batch, [pair.text for pair in pairs], self.processor.image_processor)
        return [path]

    def _evaluator(self, accelerator: Accelerator, split: str) -> PreTrainingEvaluator:
        batch_size = self.config.evaluation.batch_size or self.config.training.batch_size
        return PreTrainingEvaluator(self._dataset(split), self.evaluation_collate, accelerator, batch_size)

    def _word_accuracy(
        self, evaluator: PreTrainingEvaluator, model: M3AEForPreTraining, *, shuffled: bool
    ) -> dict[str, float]:
        groups = self.config.evaluation.word_groups
        return evaluator.word_accuracy(model, groups, shuffled=shuffled) if groups else {}

    def _dataset(self, split: str) -> PairDataset:
        data = self.config.data
        limit = data.max_validation_samples if split == "validation" else None
        return PairDataset(data.path, split, data.image_columns, data.text_column, limit)


def build_tokenizer(config: RunConfig) -> PreTrainedTokenizerBase:
    """Load the run's tokenizer, or train it on the training texts."""
    if config.tokenizer.path is not None:
        return load_tokenizer(config.tokenizer.path)
    data = config.data
    texts = PairDataset(data.path, "train", data.image_columns, data.text_column).texts()
    return train_tokenizer(texts, config.tokenizer.vocab_size)


def build_model(config: RunConfig, tokenizer: PreTrainedTokenizerBase) -> M3AEForPreTraining:
    """Build a model of the named size with the tokenizer's vocabulary, from fresh weights drawn with the run's seed.

    Raises:
        ValueError: The overrides do not make a model, or its position table is too short for `data.max_text_length`.
    """
    overrides = dict(config.model.overrides)
    vocabulary = {
        "vocab_size": len(tokenizer),
        "pad_token_id": tokenizer.pad_token_id,
        "bos_token_id": tokenizer.bos_token_id,
        "eos_token_id": tokenizer.eos_token_id,
    }
    overrides["text_config"] = vocabulary | overrides.get("text_config", {})
    model_config = M3AEConfig.named(config.model.size, mask_token_id=tokenizer.mask_token_id, **overrides)
    check_text_length(model_config, config.data.max_text_length)
    set_seed(config.training.seed)
    return M3AEForPreTraining(model_config)


def load_pretrained(path: str, overrides: dict[str, Any]) -> tuple[M3AEForPreTraining, M3AEProcessor]:
    """Load a saved pre-training model and its processor, some options of the configuration replaced.

    Raises:
        ValueError: There is no such model, or its weights have other shapes than the configuration asks for.
    """
    try:
        options = M3AEConfig.from_pretrained(path).to_dict()
        processor = M3AEProcessor.from_pretrained(path)
    except OSError as error:
        raise ValueError(f"model.path: no saved M3AE model in {path!r} ({str(error).splitlines()[0]}).") from error
    for key, value in overrides.items():
        options[key] = {**options.get(key, {}), **value} if isinstance(value, dict) else value
    options.pop("architectures", None)
    try:
        model = M3AEForPreTraining.from_pretrained(path, config=M3AEConfig(**options))
    except RuntimeError as error:
        if "mismatch" not in str(error):
            raise
        raise ValueError(
            f"The weights in {path!r} have other sizes than the configuration asks for: model.overrides {overrides} "
            "change the shape of parameters. Leave those overrides out, or start a new model with model.size."
        ) from error
    return model, processor


def check_text_length(config: M3AEConfig, max_text_length: int) -> None:
    """Raise if the position table cannot hold texts of `max_text_length` tokens."""
    text = config.text_config
    assert isinstance(text, RobertaConfig)
    longest = text.max_position_embeddings - (text.pad_token_id or 0) - 1
    if max_text_length > longest:
        raise ValueError(
            f"data.max_text_length must be at most {longest}, got {max_text_length}: the model's position table has "
            f"{text.max_position_embeddings} rows. Set model.overrides.text_config.max_position_embeddings."
        )
