"""Fine-tuning for reports on images, and what the reports are worth.

Beside the model stand controls. The most frequent training report and a random one do not look at the image. The
training report of the most similar image, by the mean of the model's fused tokens, looks at the image, and is not
written. The model itself writes with a blank image, and with that of another sample.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from functools import cache, cached_property, partial
from pathlib import Path
from typing import Any, NamedTuple, Self

import numpy as np
import torch
from accelerate import Accelerator, PartialState
from numpy.typing import NDArray
from torch import Tensor
from torch.nn import functional as F

from m3ae.data.phantom.report import Factors
from m3ae.data.samples import Sample, SampleDataset, evenly
from m3ae.figures import Strip, draw_retrieval, save_figure
from m3ae.inference.inputs import pictures
from m3ae.metrics.aggregation import bootstrap
from m3ae.metrics.reports import FACTORS, REPORT_METRICS, ReportJudge, ReportScores
from m3ae.metrics.text import distinct
from m3ae.models.modalities.text import texts_of, tokenize
from m3ae.models.reports import IGNORED, M3AEForReportGeneration, Memory, token_costs
from m3ae.tasks.controls import LabelReader, majority
from m3ae.tasks.data import check_used_splits, is_filled, open_data
from m3ae.tasks.finetuning import (
    IMAGE_CONTROLS,
    FineTuning,
    Images,
    in_main_process,
    limits,
    open_split,
    validation_limit,
)
from m3ae.tasks.models import open_model, saved_config
from m3ae.training.config import ProblemsConfig, ReportGenerationRun

STRIPS = 6  # images whose reports are drawn


class Reports(NamedTuple):
    """What a model writes about n samples.

    Attributes:
        texts: The reports.
        costs: (n, 2) negative log-likelihood of the right report in nats, and its number of tokens.
        features: (n, D) float32, the mean of what each report is written from.
        images: A number for the image of each sample, the same for the same image.
    """

    texts: list[str]
    costs: NDArray[np.float64]
    features: Tensor
    images: list[int]

    def loss(self, rows: Any = slice(None)) -> float:
        """Return the negative log-likelihood of a token of the right reports of some samples, in nats."""
        nats, tokens = self.costs[rows].sum(0)
        return float(nats / tokens)


class ReportGeneration(FineTuning[M3AEForReportGeneration, ReportGenerationRun]):
    """Reports in the words of the model's tokenizer; the target of a sample is the list of its reports."""

    main_metrics = (
        "all_factors",
        *(f"{name}_accuracy" for name in FACTORS),
        "label_macro_f1",
        "label_micro_f1",
        "bleu_1",
        "bleu_4",
        "chrf",
        "rouge_l",
        "cider_d",
    )

    @classmethod
    def from_config(cls, config: ReportGenerationRun, *, for_training: bool = True) -> Self:
        """Open data and model; a new decoder is drawn unless the saved model writes reports."""
        open_data(config, for_training=for_training)
        dataset = cache(partial(open_reports, config))
        path, name = config.model.path, M3AEForReportGeneration.__name__
        inputs = {"image": config.data.image_columns, "text": config.data.text_column}
        model, processor = open_model(
            config,
            M3AEForReportGeneration,
            lambda: [text for sample in dataset("train").samples for text in sample.target],
            {"input_streams": [stream for stream, columns in inputs.items() if columns]} if for_training else {},
            new_head=for_training and (path is None or saved_config(path).architectures != [name]),
        )
        options = {"max_new_tokens": config.data.max_text_length - 1} | config.report_generation.options
        model.generation_config.update(**options)
        task = cls(config, model, processor, dataset)
        return check_used_splits(task) if for_training else task

    @cached_property
    def train_dataset(self) -> SampleDataset:
        """The training rows with a report; a visit draws one of a row's reports."""
        return self.dataset("train")

    def labels(self, samples: Sequence[Sample]) -> dict[str, Tensor]:
        """Return the tokens (B, L) of one report of each sample; −100 = padding."""
        texts = [sample.target[(sample.seed >> 32) % len(sample.target)] for sample in samples]
        encoded = tokenize(self.processor.tokenizer, texts, self.config.data.max_text_length)
        return {"labels": encoded["input_ids"].masked_fill(encoded["attention_mask"] == 0, IGNORED)}

    def check(self, split: str) -> None:
        """Make sure that a row of a split has an image, or a further text, to write from."""
        _, *columns = self.dataset(split).columns.names
        if not is_filled(self.config.data.path, split, columns):
            raise ValueError(
                f"no row of {self.config.data.path}, {split}, has an image or a text in {', '.join(columns)}; set "
                "data.image_columns"
            )

    def metrics(
        self, model: M3AEForReportGeneration, accelerator: Accelerator, split: str, *, at_length: bool
    ) -> dict[str, float]:
        """Return the loss and what `ReportJudge` compares; at length with intervals and controls."""
        dataset = self.dataset(split)
        reports = self.write(model, accelerator, dataset)
        judge = self.judge(split)
        scores = in_main_process(accelerator, lambda: judge.score(reports.texts, registered=at_length))
        metrics = {"loss": reports.loss(), "distinct": distinct(reports.texts)} | scores.metrics()
        if not at_length:
            return metrics
        texts, written = dict[str, list[str]](), {"own": reports}
        if self.config.evaluation.controls:
            texts = self.control_texts(model, accelerator, dataset, reports)
            for name, images in IMAGE_CONTROLS.items():
                written[name] = self.write(model, accelerator, dataset, images)
                texts[name] = written[name].texts
        if accelerator.is_main_process:
            self.write_predictions(split, self._describe_predictions(dataset, reports.texts, texts))
        return metrics | in_main_process(accelerator, lambda: self._compare(judge, scores, texts, written))

    def write(
        self,
        model: M3AEForReportGeneration,
        accelerator: Accelerator,
        dataset: SampleDataset,
        images: Images = "original",
    ) -> Reports:
        """Write a report on each sample, in every process, from the images that `predict` takes."""

        def of_batch(batch: dict[str, Tensor]) -> list[tuple[str, float, int, Tensor]]:
            labels, memory = batch.pop("labels"), model.encode(**batch)
            costs = token_costs(model.decode(memory, labels.clamp(min=0)), labels)
            written = model.generate(memory=memory)
            texts = [text.strip() for text in self.processor.batch_decode(written, skip_special_tokens=True)]
            counts = (labels[:, 1:] != IGNORED).sum(1)
            rows = (texts, costs.sum(1).tolist(), counts.tolist(), _features(memory))
            return [*zip(*rows, strict=True)]

        rows, image_ids = self.compute(accelerator, dataset, of_batch, images)
        texts, costs, counts, features = zip(*rows, strict=True)
        return Reports([*texts], np.stack([costs, counts], 1).astype(np.float64), torch.stack(features), image_ids)

    def inputs(self, samples: Sequence[Sample]) -> dict[str, Tensor]:
        """Return images, further texts and the tokens of the reports as keyword arguments."""
        return super().inputs(samples) | self.labels(samples)

    def judge(self, split: str) -> ReportJudge:
        """Return what compares reports on a split with those that are right."""
        dataset, section = self.dataset(split), self.config.report_generation
        references = [sample.target for sample in dataset.samples]
        if self.manifest.source == "phantom":
            cells = [dict(row) for row in dataset.rows()]
            rows = [cells[sample.row] for sample in dataset.samples]
            return ReportJudge(references, factors=[Factors(**{name: row[name] for name in FACTORS}) for row in rows])
        if self._label_reader is None:
            return ReportJudge(references)
        labels = self._problems.targets(split, dataset.ids)
        reader = self._label_reader
        assert section.label_column is not None
        return ReportJudge(references, read_labels=lambda texts: reader.scores(texts) >= 0.5, labels=labels)

    @cached_property
    def _problems(self) -> Any:
        from m3ae.evaluation.probes import ProblemReader

        section = self.config.report_generation
        assert section.label_column is not None
        options = ProblemsConfig(column=section.label_column, num_labels=section.num_labels)
        return ProblemReader(self.config.data.path, options)

    @cached_property
    def _label_reader(self) -> LabelReader | None:
        """The classifier of reports, learnt from the training reports."""
        if self.config.report_generation.label_column is None or not self.has("train"):
            return None
        samples = self.train_dataset.samples
        texts = [text for sample in samples for text in sample.target]
        targets = self._problems.targets("train", self.train_dataset.ids)
        repeated = np.repeat(targets, [len(sample.target) for sample in samples], axis=0)
        return LabelReader(texts, repeated, tf_idf=True)

    def control_texts(
        self, model: M3AEForReportGeneration, accelerator: Accelerator, dataset: SampleDataset, reports: Reports
    ) -> dict[str, list[str]]:
        """Return the reports of each control that the model does not write."""
        texts = {"real": [sample.target[0] for sample in dataset.samples]}
        if self.has("train"):
            train = [sample.target[0] for sample in self.train_dataset.samples]
            texts["frequent"] = [majority(train)] * len(dataset)
            drawn = np.random.default_rng(self.config.training.seed).integers(len(train), size=len(dataset))
            texts["random"] = [train[row] for row in drawn]
            rows, _ = self.compute(
                accelerator, self.train_dataset, lambda batch: _features(model.encode(**_read(batch)))
            )
            texts["nearest"] = [train[row] for row in _nearest(reports.features, torch.stack(rows))]
        return texts

    def _compare(
        self, judge: ReportJudge, scores: ReportScores, texts: dict[str, list[str]], written: dict[str, Reports]
    ) -> dict[str, float]:
        """Return intervals over images, the main metrics of each control, and what the image adds: over another's.

        `written` has what the model writes from its own images, `own`, and from others.
        """
        controls = {name: judge.score(column) for name, column in texts.items()}
        names, judged = {*self.main_metrics, *REPORT_METRICS}, {"label_macro_f1", "label_micro_f1"}

        def measure(rows: Any) -> dict[str, float]:
            metrics = {name: value for name, value in scores.metrics(rows).items() if name in names}
            for control, of_control in controls.items():
                kept = judged if control == "real" else names  # the words of real reports are the references
                others = {name: value for name, value in of_control.metrics(rows).items() if name in kept}
                metrics |= {f"{control}_{name}": value for name, value in others.items()}
                if control == "shuffled":
                    metrics |= {f"gain_{name}": metrics[name] - value for name, value in others.items()}
            losses = {name: reports.loss(rows) for name, reports in written.items()}
            own_loss = losses.pop("own")
            metrics |= {f"{name}_loss": loss for name, loss in losses.items()}
            return metrics | ({"gain_loss": losses["shuffled"] - own_loss} if "shuffled" in losses else {})

        images = written["own"].images
        resamples = self.config.evaluation.resamples
        metrics = measure(np.arange(len(images)))
        if resamples:
            metrics |= limits(bootstrap(measure, len(images), groups=images, resamples=resamples))
        return metrics

    def describe(self) -> dict[str, Any]:
        """Return what the results depend on, the way to write among it."""
        return super().describe() | {"generation": self.model.generation_config.to_diff_dict()}

    def illustrate(self, model: M3AEForReportGeneration, folder: Path) -> list[Path]:
        """Draw images with the report that the model wrote and the right one."""
        split = "test" if self.has("test") else "validation"
        dataset, lines = self.dataset(split), self.read_predictions(split)
        strips = []
        for index in evenly(len(dataset), STRIPS):
            sample, line = dataset.first(index), lines[index]
            if sample.images:
                (image,) = pictures(self.processor, [sample.picture])
                strips.append(Strip(image, [line["prediction"], line["truth"][0]], ["written", "right"]))
        return [save_figure(draw_retrieval(strips), folder / "reports.png")] if strips else []

    def _describe_predictions(
        self, dataset: SampleDataset, texts: Sequence[str], controls: dict[str, list[str]]
    ) -> Iterator[dict[str, Any]]:
        for number, (sample, text) in enumerate(zip(dataset.samples, texts, strict=True)):
            line = {**self.reference(dataset, sample), "prediction": text, "truth": [*sample.target]}
            yield line | {name: controls[name][number] for name in ("nearest", "shuffled") if name in controls}


def open_reports(config: ReportGenerationRun, split: str) -> SampleDataset:
    """Open the rows of a split that have a report; the target of a sample is the list of its reports.

    At most `data.max_validation_samples` rows of validation are used. Rows without a report are left out, and counted
    in a message.

    Raises:
        FileNotFoundError: There is no such prepared folder.
        ValueError: It lacks the split or a column, or no row has a report.
    """
    column, dataset = config.report_generation.report_column, open_split(config, split)
    if column not in dataset.features:
        raise ValueError(
            f"report_generation.report_column: {config.data.path} has no column {column!r}; it has "
            f"{', '.join(dataset.features)}"
        )
    targets = [(cells["id"], texts_of([cells[column]])) for cells in dataset.rows()]
    samples = [Sample(id, {}, target=texts, row=row) for row, (id, texts) in enumerate(targets) if texts]
    if len(samples) < len(dataset):
        left_out = len(dataset) - len(samples)
        PartialState().print(f"{left_out} rows of {config.data.path}, {split}, have no report: left out")
    if not samples:
        raise ValueError(f"no row of {config.data.path}, {split}, has a report in {column!r}")
    return dataset.of(samples, validation_limit(config, split))


def _read(batch: dict[str, Tensor]) -> dict[str, Tensor]:
    return {name: tensor for name, tensor in batch.items() if name != "labels"}


def _features(memory: Memory) -> Tensor:
    return memory.mean().float().cpu()


def _nearest(queries: Tensor, features: Tensor) -> list[int]:
    """Return for each query (n, D) the row of the features (m, D) with the largest cosine."""
    nearest: list[int] = (F.normalize(queries, dim=1) @ F.normalize(features, dim=1).T).argmax(1).tolist()
    return nearest
