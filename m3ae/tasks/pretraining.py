"""Pre-training as a task of the training loop: model, data, evaluation, pictures, and what is saved."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from accelerate import Accelerator, PartialState
from accelerate.utils import send_to_device, set_seed
from transformers import PreTrainedTokenizerBase, RobertaConfig

from m3ae.conversion.encoders import Normalization, read_roberta_config
from m3ae.data.prepared import load_manifest
from m3ae.data.tokenizer import load_tokenizer, train_tokenizer
from m3ae.models.configuration import M3AEConfig, M3AEImageConfig
from m3ae.models.initialization import init_image_encoder, init_text_encoder, resize_images
from m3ae.models.pretraining import M3AEForPreTraining
from m3ae.models.processing import M3AEImageProcessor, M3AEProcessor
from m3ae.tasks.model_card import write_model_card
from m3ae.tasks.pretraining_data import collator, evaluation_pairs, prepare_sets, refuse_test_rows, training_pairs
from m3ae.tasks.pretraining_evaluation import PreTrainingEvaluator
from m3ae.tasks.reconstruction import plot_reconstructions
from m3ae.training.config import InitConfig, RunConfig


class PreTraining:
    """Masked-image modelling, masked-language modelling and image-text matching on a prepared folder.

    Args:
        config: The run.
        model: Built by `build_model`.
        processor: Of that model.
    """

    def __init__(self, config: RunConfig, model: M3AEForPreTraining, processor: M3AEProcessor) -> None:
        self.config, self.model, self.processor = config, model, processor
        self.train_dataset = training_pairs(config)
        self.collate = collator(config, model.config, processor, training=True)
        self.evaluation_collate = collator(config, model.config, processor, training=False)
        self.splits = list(load_manifest(config.data.path).splits)

    @classmethod
    def from_config(cls, config: RunConfig) -> PreTraining:
        """Prepare the data if the config says how, and build tokenizer and model.

        Raises:
            FileNotFoundError: The prepared folder is missing and the config does not say how to make it.
            ValueError: Data, tokenizer and model do not fit together, or a training image is in a held-out split.
        """
        prepare_sets(config.data)
        refuse_test_rows(config.data)
        if config.model.path is not None:
            model, processor = load_pretrained(config.model.path, config.model.overrides)
            return cls(config, model, processor)
        tokenizer = build_tokenizer(config)
        model = build_model(config, tokenizer)
        return cls(config, model, M3AEProcessor(start_encoders(model, config.model.init), tokenizer))

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
        dataset = evaluation_pairs(self.config, "validation")
        spread = range(0, len(dataset), max(1, len(dataset) // 6))
        pairs = [pair for index in spread if (pair := dataset.first(index, index)).image is not None][:6]
        batch = send_to_device(self.evaluation_collate(pairs), model.device)
        path = folder / "reconstructions.png"
        plot_reconstructions(path, model, batch, [pair.text for pair in pairs], self.processor.image_processor)
        return [path]

    def _evaluator(self, accelerator: Accelerator, split: str) -> PreTrainingEvaluator:
        batch_size = self.config.evaluation.batch_size or self.config.training.batch_size
        return PreTrainingEvaluator(
            evaluation_pairs(self.config, split), self.evaluation_collate, accelerator, batch_size
        )

    def _word_accuracy(
        self, evaluator: PreTrainingEvaluator, model: M3AEForPreTraining, *, shuffled: bool
    ) -> dict[str, float]:
        groups = self.config.evaluation.word_groups
        return evaluator.word_accuracy(model, groups, shuffled=shuffled) if groups else {}


def build_tokenizer(config: RunConfig) -> PreTrainedTokenizerBase:
    """Load the run's tokenizer, or that of the published text encoder, or train it on the training texts of all sets.

    Raises:
        ValueError: There is no such tokenizer, or the text encoder was trained with another vocabulary.
    """
    path, source = config.tokenizer.path, config.model.init.text_encoder
    if source is not None:
        vocab_size = read_roberta_config(source).vocab_size
        tokenizer = load_tokenizer(path or source)
        check_vocabulary(tokenizer, source, vocab_size)
        return tokenizer
    if path is not None:
        return load_tokenizer(path)
    return train_tokenizer(training_pairs(config).texts(), config.tokenizer.vocab_size)


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


def start_encoders(model: M3AEForPreTraining, init: InitConfig) -> M3AEImageProcessor:
    """Copy published encoders into a new model, print what was copied, and build the image processor that fits.

    Raises:
        ValueError: An encoder cannot be read or does not fit the model.
    """
    normalization = None
    if init.image_encoder is not None:
        report = init_image_encoder(model, init.image_encoder)
        normalization = report.normalization
        PartialState().print(report)
    if init.text_encoder is not None:
        PartialState().print(init_text_encoder(model, init.text_encoder))
    return image_processor_for(model, normalization)


def image_processor_for(model: M3AEForPreTraining, normalization: Normalization | None) -> M3AEImageProcessor:
    """Build the image processor of a model, with CLIP's normalisation if None is given."""
    assert isinstance(model.config.image_config, M3AEImageConfig)
    processor = M3AEImageProcessor.for_size(model.config.image_config.image_size)
    if normalization is not None:
        processor.image_mean, processor.image_std = normalization
    return processor


def load_pretrained(path: str, overrides: dict[str, Any]) -> tuple[M3AEForPreTraining, M3AEProcessor]:
    """Load a saved pre-training model and its processor, some options of the configuration replaced.

    Another image size interpolates the position table.

    Raises:
        ValueError: There is no such model, or its weights have other shapes than the configuration asks for.
    """
    try:
        saved = M3AEConfig.from_pretrained(path)
        processor = M3AEProcessor.from_pretrained(path)
    except OSError as error:
        raise ValueError(f"model.path: no saved M3AE model in {path!r} ({str(error).splitlines()[0]}).") from error
    options = saved.to_dict()
    for key, value in overrides.items():
        options[key] = {**options.get(key, {}), **value} if isinstance(value, dict) else value
    options.pop("architectures", None)
    wanted = M3AEConfig(**options)
    assert isinstance(wanted.image_config, M3AEImageConfig) and isinstance(saved.image_config, M3AEImageConfig)
    image_size, wanted.image_config.image_size = wanted.image_config.image_size, saved.image_config.image_size
    try:
        model = M3AEForPreTraining.from_pretrained(path, config=wanted)
    except RuntimeError as error:
        if "mismatch" not in str(error):
            raise
        raise ValueError(
            f"The weights in {path!r} have other sizes than the configuration asks for: model.overrides {overrides} "
            "change the shape of parameters. Leave those overrides out, or start a new model with model.size."
        ) from error
    if image_size != saved.image_config.image_size:
        resize_images(model, image_size)
        old = processor.image_processor
        processor.image_processor = image_processor_for(model, (old.image_mean, old.image_std))
    return model, processor


def check_vocabulary(tokenizer: PreTrainedTokenizerBase, text_encoder: str, vocab_size: int) -> None:
    """Raise if a published text encoder with `vocab_size` words was trained with others than the tokenizer's."""
    advice = f"Set tokenizer.path to the tokenizer that {text_encoder!r} was trained with."
    if len(tokenizer) != vocab_size:
        raise ValueError(
            f"The tokenizer in {tokenizer.name_or_path!r} has {len(tokenizer)} words, the text encoder in "
            f"{text_encoder!r} has {vocab_size}; a folder without a tokenizer's files gives an empty one. {advice}"
        )
    if tokenizer.name_or_path == text_encoder:
        return
    own = load_tokenizer(text_encoder).get_vocab()
    if len(own) == vocab_size and own != tokenizer.get_vocab():
        different = next(word for word, index in tokenizer.get_vocab().items() if own.get(word) != index)
        raise ValueError(
            f"The tokenizer in {tokenizer.name_or_path!r} numbers words otherwise than the text encoder in "
            f"{text_encoder!r}: {different!r} is {tokenizer.get_vocab()[different]} and {own.get(different)}. {advice}"
        )


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
