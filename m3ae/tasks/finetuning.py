"""What the fine-tuning tasks share: weights that learn, exact prediction over processes, controls, results."""

from __future__ import annotations

import json
import math
from abc import abstractmethod
from collections.abc import Callable, Iterable, Mapping, Sequence
from functools import partial
from importlib.util import find_spec
from pathlib import Path
from typing import Any, Generic, Literal, NamedTuple, TypeVar, cast

import torch
from accelerate import Accelerator, PartialState
from accelerate.utils import broadcast_object_list, send_to_device
from torch import Tensor, nn
from torch.utils.data import DataLoader, Dataset
from tqdm import tqdm

from m3ae.data.prepared import load_manifest
from m3ae.data.samples import Sample, SampleDataset, Visit, trunk_columns
from m3ae.files import replacing, write_text
from m3ae.metrics.aggregation import Interval, bootstrap_means, gather_rows
from m3ae.models.modeling import TRUNK, M3AEPreTrainedModel
from m3ae.models.processing import M3AEProcessor
from m3ae.tasks.data import trunk_collator
from m3ae.tasks.model_card import write_model_card
from m3ae.tasks.models import ModelT
from m3ae.training.config import FineTuningRun
from m3ae.training.finetuning_sections import LoraConfig
from m3ae.training.run_folder import RunFolder
from m3ae.training.safety import ignore_stop_signals
from m3ae.training.task import Task

PREDICTIONS = "predictions.jsonl"
RESULTS = "results.json"
IMAGE_INPUTS = ("pixel_values", "pixel_mask", "image_present")
TEXT_INPUTS = ("input_ids", "attention_mask", "text_present")
Images = Literal["original", "blank", "other"]
IMAGE_CONTROLS: dict[str, Images] = {"blank": "blank", "shuffled": "other"}  # what precedes the names of metrics
TOP = 5
ResultT = TypeVar("ResultT")
RunT = TypeVar("RunT", bound=FineTuningRun)


class Prediction(NamedTuple):
    """What a model says about n samples, in their order.

    Attributes:
        logits: (n, A) float32, on the CPU.
        images: A number for the image of each sample, the same for the same image: the sampling unit of intervals.
    """

    logits: Tensor
    images: list[int]


class FineTuning(Task[ModelT], Generic[ModelT, RunT]):
    """What the fine-tuning tasks share; a task adds `from_config`, `train_dataset`, `labels`, `metrics` and `check`.

    The model that is measured at the end, saved in `model/` and drawn is the one that was best on validation by
    `training.best_metric`, not the last, unless the run does not validate; the test split is looked at only then.

    Args:
        config: The run.
        model: The model, as `m3ae.tasks.models.open_model` makes it.
        processor: The processor of that model.
        dataset: Opens the samples of a split to measure on.
    """

    main_metrics: tuple[str, ...] = ()  # metrics that are reported for controls, too

    def __init__(
        self, config: RunT, model: ModelT, processor: M3AEProcessor, dataset: Callable[[str], SampleDataset]
    ) -> None:
        self.config, self.model, self.processor, self.dataset = config, model, processor, dataset
        self.folder, self.manifest = RunFolder(config.output_dir), load_manifest(config.data.path)
        self.training_collator = trunk_collator(config.data, model.config, processor, training=True)
        self.evaluation_collator = trunk_collator(config.data, model.config, processor, training=False)
        freeze(model, config.finetuning.frozen)
        if config.finetuning.lora is not None:
            add_adapters(model, config.finetuning.lora)

    @abstractmethod
    def labels(self, samples: Sequence[Sample]) -> dict[str, Tensor]:
        """Return what the model takes beside images and texts to compute its loss."""

    @abstractmethod
    def metrics(self, model: ModelT, accelerator: Accelerator, split: str, *, at_length: bool) -> dict[str, float]:
        """Return `loss` and the metrics on a split; at length with controls and intervals, the predictions written."""

    def evaluate(self, model: ModelT, accelerator: Accelerator, split: str) -> dict[str, float]:
        """Return `loss` and the metrics on a split, the same in every process."""
        return self.metrics(model, accelerator, split, at_length=False)

    def collate(self, samples: Sequence[Sample]) -> dict[str, Tensor]:
        """Join training samples into the keyword arguments of the model."""
        batch = self.training_collator(samples)
        self._mask_tokens(batch)
        return self._chosen(batch) | self.labels(samples)

    def step_inputs(self, step: int) -> dict[str, Any]:
        """Return nothing: a fine-tuned model does not know the step."""
        return {}

    def inputs(self, samples: Sequence[Sample]) -> dict[str, Tensor]:
        """Return images and texts as keyword arguments, without a modality that the config leaves out."""
        return self._chosen(self.evaluation_collator.inputs(samples))

    def _chosen(self, batch: Mapping[str, Tensor]) -> dict[str, Tensor]:
        data = self.config.data
        names = (IMAGE_INPUTS if data.image_columns else ()) + (TEXT_INPUTS if data.text_column else ())
        return {name: value for name, value in batch.items() if name in names}

    def _mask_tokens(self, batch: dict[str, Tensor]) -> None:
        noise = batch["text_noise"][..., 0]
        share = 2 * self.config.finetuning.token_dropout * noise[:, :1]  # the first token, a special one, needs none
        masked = noise < share
        masked &= ~batch["special_tokens_mask"].bool()
        batch["input_ids"] = batch["input_ids"].masked_fill(masked, self.processor.tokenizer.mask_token_id)

    def predict(
        self, model: ModelT, accelerator: Accelerator, dataset: SampleDataset, images: Images = "original"
    ) -> Prediction:
        """Compute the logits of all samples, in every process; each sample is computed by exactly one process.

        Args:
            model: The model, in evaluation mode.
            accelerator: The accelerator, with device, autocast and the other processes.
            dataset: The n samples.
            images: The `original` images, `blank` ones (the mean of the normalisation), or those of `other` samples.
        """
        rows, image_ids = self.compute(accelerator, dataset, lambda batch: model(**batch).logits.float().cpu(), images)
        return Prediction(torch.stack(rows), image_ids)

    def compute(
        self,
        accelerator: Accelerator,
        dataset: SampleDataset,
        function: Callable[[dict[str, Tensor]], Iterable[ResultT]],
        images: Images = "original",
    ) -> tuple[list[ResultT], list[int]]:
        """Return what a function makes of each sample of a batch, and a number for its image, as `predict` does."""
        source = dataset.with_other_images() if images == "other" else dataset
        indices = range(accelerator.process_index, len(dataset), accelerator.num_processes)
        computed: list[tuple[ResultT, int]] = []
        batches = self._batches(source, indices, partial(self._evaluation_batch, blank=images == "blank"))
        silent = None if accelerator.is_main_process else True  # None: silent where nobody looks
        title = f"{dataset.split}, {images} images"
        for batch in tqdm(batches, desc=title, unit="batch", disable=silent, leave=False):
            image_ids = batch.pop("image_ids").tolist()
            with accelerator.autocast():
                results = function(send_to_device(batch, accelerator.device))
            computed += zip(results, image_ids, strict=True)
        rows = gather_rows(computed)
        return [row for row, _ in rows], [image or -i for i, (_, image) in enumerate(rows)]

    def controls(
        self,
        model: ModelT,
        accelerator: Accelerator,
        dataset: SampleDataset,
        *,
        without_model: Callable[[], dict[str, ResultT]],
        read: Callable[[Tensor], ResultT],
        score: Callable[[ResultT], dict[str, float]],
    ) -> dict[str, float]:
        """Return the main metrics `<control>_<metric>` without the model, and with blank and shuffled images.

        Args:
            model: The model.
            accelerator: The accelerator.
            dataset: The samples.
            without_model: Returns the results of each control that needs no model, in the main process alone.
            read: Turns logits (n, A) into results.
            score: Returns the metrics of results.
        """
        if not self.config.evaluation.controls:
            return {}
        results = in_main_process(accelerator, without_model)
        if self.config.data.image_columns:
            for name, images in IMAGE_CONTROLS.items():
                results[name] = read(self.predict(model, accelerator, dataset, images).logits)
        scores = {name: score(result) for name, result in results.items()}
        return {
            f"{name}_{metric}": metrics[metric]
            for name, metrics in scores.items()
            for metric in self.main_metrics
            if metric in metrics
        }

    def report(self, model: ModelT, accelerator: Accelerator) -> dict[str, float]:
        """Make the model the best one, and measure it on validation and, at length, on test."""
        self.use_best(model)
        metrics = self.evaluate(model, accelerator, "validation") if self.has("validation") else {}
        split = "test" if self.has("test") else "validation"
        return prefixed("validation", metrics) | self.measure(model, accelerator, split)

    def measure(self, model: ModelT, accelerator: Accelerator, split: str) -> dict[str, float]:
        """Return all metrics of a split, called `<split>/<metric>`, and write them to `results.json`."""
        metrics = prefixed(split, self.metrics(model, accelerator, split, at_length=True))
        if accelerator.is_main_process:
            self.folder.root.mkdir(parents=True, exist_ok=True)
            finite = {name: value if math.isfinite(value) else None for name, value in metrics.items()}
            text = json.dumps(self.describe() | {"metrics": finite}, indent=2, ensure_ascii=False) + "\n"
            write_text(self.folder.root / RESULTS, text)
        return metrics

    def describe(self) -> dict[str, Any]:
        """Return what the results depend on."""
        config = self.config
        return {
            "task": config.task,
            "data": {"source": self.manifest.source, "options": self.manifest.options},
            "model": config.model.path,
            "from_scratch": config.model.from_scratch or config.model.path is None,
            "frozen": config.finetuning.frozen,
            "lora": config.finetuning.lora and config.finetuning.lora.model_dump(),
            "seed": config.training.seed,
            "max_steps": config.training.max_steps,
            "selected_by": config.training.best_metric if self.has_best else None,
        }

    def use_best(self, model: ModelT) -> None:
        """Load the weights that were best on validation, without adapters; without any such, keep the last ones."""
        merge_adapters(model)
        if self.has_best:
            model.load_state_dict(type(model).from_pretrained(self.folder.best).state_dict())
        elif self.config.training.validate_every:
            metric = self.config.training.best_metric
            PartialState().print(f"{metric} was undefined in every validation: the last model is measured and saved")

    @property
    def has_best(self) -> bool:
        """Whether the run has kept a model that was best on validation."""
        return (self.folder.best / "config.json").is_file()

    def save(self, model: ModelT, folder: Path, metrics: dict[str, float]) -> None:
        """Write model, processor and model card in hub format."""
        model.save_pretrained(folder, state_dict=merged_weights(model))
        self.processor.save_pretrained(folder)
        write_model_card(folder, self.config, model, self.manifest, metrics)

    def has(self, split: str) -> bool:
        """Return whether the prepared data have this split."""
        return split in self.manifest.splits

    def intervals(self, values: Mapping[str, Sequence[float]], images: Sequence[int]) -> dict[str, float]:
        """Return the limits of 95 % intervals of metrics that are means, `<name>_low` and `<name>_high`.

        Args:
            values: The values of the samples by metric; NaN does not count.
            images: The images of the samples: samples with the same image are drawn together.
        """
        resamples = self.config.evaluation.resamples
        return limits(bootstrap_means(values, groups=images, resamples=resamples)) if resamples else {}

    def predictions_file(self, split: str) -> Path:
        """Return the file of a split's predictions: that of test is `predictions.jsonl`."""
        return self.folder.root / (PREDICTIONS if split == "test" else f"{split}_{PREDICTIONS}")

    def write_predictions(self, split: str, rows: Iterable[Mapping[str, Any]]) -> None:
        """Write one JSON object a line."""
        self.folder.root.mkdir(parents=True, exist_ok=True)
        with replacing(self.predictions_file(split)) as temporary, temporary.open("w", encoding="utf-8") as file:
            file.writelines(json.dumps(row, ensure_ascii=False) + "\n" for row in rows)

    def read_predictions(self, split: str) -> list[dict[str, Any]]:
        """Read what `write_predictions` wrote."""
        with self.predictions_file(split).open(encoding="utf-8") as file:
            return [json.loads(line) for line in file]

    def reference(self, dataset: SampleDataset, sample: Sample) -> dict[str, Any]:
        """Return how a line of predictions refers to its input, which itself may not be passed on."""
        return {"id": sample.id, "input": {"split": dataset.split, "row": sample.row}}

    def _evaluation_batch(self, samples: Sequence[Sample], *, blank: bool) -> dict[str, Tensor]:
        batch = self.inputs(samples) | {"image_ids": torch.tensor([sample.image_id for sample in samples])}
        if blank and "pixel_values" in batch:
            batch["pixel_values"].zero_()
            batch.pop("pixel_mask", None)
        return batch

    def _batches(self, dataset: SampleDataset, indices: Sequence[int], collate: Any) -> Iterable[dict[str, Tensor]]:
        size = self.config.evaluation.batch_size or self.config.training.batch_size
        visits = [Visit(index, seed=0) for index in indices]
        return DataLoader(
            cast(Dataset[Sample], dataset),
            batch_sampler=[visits[start : start + size] for start in range(0, len(visits), size)],
            collate_fn=collate,
            num_workers=self.config.data.num_workers,
            worker_init_fn=ignore_stop_signals,
        )


def open_split(config: FineTuningRun, split: str, *, texts: bool = True) -> SampleDataset:
    """Open a split of the prepared data with the columns that the config names; without its texts if they are made."""
    data = config.data
    columns = trunk_columns(data.image_columns, data.text_column if texts else None, data.view_names)
    return SampleDataset(data.path, split, columns)


def validation_limit(config: FineTuningRun, split: str) -> int | None:
    """Return the number of samples of a split that are used; None for all."""
    return config.data.max_validation_samples if split == "validation" else None


def freeze(model: M3AEPreTrainedModel, frozen: Literal["nothing", "encoders", "trunk"]) -> None:
    """Leave the encoders, or everything but the head, as they are."""
    groups = {"nothing": (), "encoders": ("encoder.image", "encoder.text"), "trunk": TRUNK}[frozen]
    for name, parameter in model.named_parameters():
        if model.parameter_group(name) in groups:
            parameter.requires_grad_(False)


def add_adapters(model: M3AEPreTrainedModel, settings: LoraConfig) -> None:
    """Put low-rank adapters on every linear layer of encoders and fusion; only they and the head learn from now on.

    A weight becomes W + (alpha / rank)·B·A, where A (rank, in) and B (out, rank) learn and B starts at zero (Hu et al.
    2022, LoRA). Checkpoints hold the adapters, saved models the sums, which load without peft.

    Raises:
        ValueError: peft is not installed.
    """
    if find_spec("peft") is None:
        raise ValueError("finetuning.lora: needs peft, which is not installed; pip install 'm3ae[lora]'")
    import peft

    layers = [name for name, layer in model.named_modules() if isinstance(layer, nn.Linear)]
    trunk = [name for name in layers if model.parameter_group(name) in TRUNK]
    peft.inject_adapter_in_model(
        peft.LoraConfig(
            r=settings.rank, lora_alpha=settings.alpha, lora_dropout=settings.dropout, target_modules=trunk
        ),
        model,
    )
    for name, parameter in model.named_parameters():
        if model.parameter_group(name) not in TRUNK:
            parameter.requires_grad_(True)


def merged_weights(model: nn.Module) -> dict[str, Tensor]:
    """Return the weights of a model with its adapters added, under the names that they have without adapters."""
    weights = {
        name.replace(".base_layer.", "."): weight
        for name, weight in model.state_dict().items()
        if ".lora_" not in name
    }
    for name, layer in _adapted(model).items():
        weights[f"{name}.weight"] = weights[f"{name}.weight"] + layer.get_delta_weight("default")
    return weights


def merge_adapters(model: nn.Module) -> None:
    """Add the adapters of a model to its weights and take them out of it."""
    weights = merged_weights(model)
    for name, layer in _adapted(model).items():
        model.set_submodule(name, layer.base_layer)
    model.load_state_dict(weights)


def _adapted(model: nn.Module) -> dict[str, Any]:
    return {name: layer for name, layer in model.named_modules() if hasattr(layer, "get_delta_weight")}


def in_main_process(accelerator: Accelerator, compute: Callable[[], ResultT]) -> ResultT:
    """Compute something that can be pickled in the main process alone, and give it to all."""
    shared: list[Any] = [compute() if accelerator.is_main_process else None]
    broadcast_object_list(shared)
    result: ResultT = shared[0]
    return result


def best_of(names: Sequence[str], scores: Tensor) -> list[dict[str, Any]]:
    """Return the `TOP` names with the highest scores (A,), the highest first, as `{"label": …, "score": …}`.

    Of equal scores, which bf16 gives, the first comes first, as in `argmax`, by which answers are measured.
    """
    best = scores.sort(descending=True, stable=True)
    pairs = zip(best.indices[:TOP].tolist(), best.values[:TOP].tolist(), strict=True)
    return [{"label": names[column], "score": round(score, 5)} for column, score in pairs]


def limits(intervals: Mapping[str, Interval]) -> dict[str, float]:
    """Return the limits of confidence intervals as metrics, `<name>_low` and `<name>_high`."""
    return {
        f"{name}_{side}": getattr(interval, side) for name, interval in intervals.items() for side in ("low", "high")
    }


def prefixed(split: str, metrics: Mapping[str, float]) -> dict[str, float]:
    """Return metrics called `<split>/<metric>`."""
    return {f"{split}/{name}": value for name, value in metrics.items()}
