"""Fine-tuning for classes of images, of texts, or of both: one class a sample, or any number of labels.

`data.image_columns` and `data.text_column` name the inputs. The threshold of each of several labels and, if wanted, a
temperature are chosen on validation and saved with the model; decisions on test are measured with them. Controls stand
beside the model: the most frequent class, logistic regression on the words of the text, and the model with a blank
image and with the image of another sample.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from functools import cache, cached_property, partial
from pathlib import Path
from typing import Any, NamedTuple, Self

import numpy as np
import torch
from accelerate import Accelerator, PartialState
from numpy.typing import NDArray
from torch import Tensor

from m3ae.data.samples import Sample, SampleDataset
from m3ae.figures import draw_reliability, draw_roc, save_figure
from m3ae.metrics.aggregation import bootstrap
from m3ae.metrics.calibration import calibration_error, choose_threshold, fit_temperature, reliability
from m3ae.metrics.classification import UNKNOWN, multi_label_f1, multi_label_metrics, single_label_metrics
from m3ae.models.finetuned import M3AEForClassification, class_loss, multi_label_loss
from m3ae.tasks.controls import bag_of_words, bag_of_words_scores, majority
from m3ae.tasks.data import check_used_splits, is_filled, open_data
from m3ae.tasks.finetuning import (
    FineTuning,
    Prediction,
    best_of,
    in_main_process,
    limits,
    open_split,
    validation_limit,
)
from m3ae.tasks.models import has_labels, label_names, open_model
from m3ae.training.config import ClassificationRun
from m3ae.training.finetuning_sections import ClassificationConfig

UNCERTAIN = "labels_uncertain"
CURVES = 16  # labels whose ROC curve is drawn
PROBLEM_TYPES = {False: "single_label_classification", True: "multi_label_classification"}
UNCERTAIN_VALUES = {"ignore": UNKNOWN, "zero": 0, "one": 1}


class Labels(NamedTuple):
    """The labels that a sample has, and the labels that are uncertain."""

    present: tuple[str, ...]
    uncertain: tuple[str, ...] = ()


class Classification(FineTuning[M3AEForClassification, ClassificationRun]):
    """Classes in the model's `config.id2label`.

    Of several labels, those that a row names are 1, the uncertain ones what the config says, all others 0. With one
    class a sample, training leaves out rows of a class that is not in the list; measuring counts them as wrong.
    """

    main_metrics = ("accuracy", "macro_f1", "macro_auroc", "macro_average_precision")

    @classmethod
    def from_config(cls, config: ClassificationRun, *, for_training: bool = True) -> Self:
        """Open data and model; a new head is drawn unless the saved model has one for the same classes."""
        open_data(config, for_training=for_training)
        dataset = cache(partial(open_labelled, config))
        options: dict[str, Any] = {}
        names: list[str] = []
        if for_training:
            samples, section = dataset("train").samples, config.classification
            inputs = {"image": config.data.image_columns, "text": config.data.text_column}
            names = choose_classes(samples, section)
            options = {
                "id2label": dict(enumerate(names)),
                "problem_type": PROBLEM_TYPES[section.multi_label],
                "class_weights": class_weights(samples, names, section),
                "decision_thresholds": None,
                "calibration_temperature": 1.0,
                "input_streams": [name for name, columns in inputs.items() if columns],
            }
        model, processor = open_model(
            config,
            M3AEForClassification,
            lambda: dataset("train").texts() or names,  # a model of images has a tokenizer, too
            options,
            new_head=for_training and not has_labels(config.model.path, M3AEForClassification, names),
        )
        wanted = PROBLEM_TYPES[config.classification.multi_label]
        if (model.config.problem_type or PROBLEM_TYPES[False]) != wanted:
            raise ValueError(
                f"classification.multi_label: the model in {config.model.path!r} is for {model.config.problem_type}, "
                f"the config asks for {wanted}"
            )
        task = cls(config, model, processor, dataset)
        return check_used_splits(task) if for_training else task

    @cached_property
    def classes(self) -> list[str]:
        """Names of the classes, in the order of the model's columns."""
        return label_names(self.model.config)

    @cached_property
    def train_dataset(self) -> SampleDataset:
        """The training rows with a class in the list."""
        dataset, names = self.dataset("train"), set(self.classes)
        if self.config.classification.multi_label:
            return dataset
        return dataset.of([sample for sample in dataset.samples if not names.isdisjoint(sample.target.present)])

    def labels(self, samples: Sequence[Sample]) -> dict[str, Tensor]:
        """Return the class of each sample (B,), or which labels it has (B, A); −100 = unknown."""
        return {"labels": torch.from_numpy(encode(samples, self.classes, self.config.classification))}

    def metrics(
        self, model: M3AEForClassification, accelerator: Accelerator, split: str, *, at_length: bool
    ) -> dict[str, float]:
        """Return the loss; accuracy and macro F1, or AUROC and average precision of each label and macro.

        Measured at length, other splits than validation have `ece`, and F1 of several labels by their thresholds.
        """
        dataset = self.dataset(split)
        samples, prediction = dataset.samples, self.predict(model, accelerator, dataset)
        metrics = self._loss(dataset, prediction.logits) | self.score(samples, prediction.logits.numpy())
        if not at_length:
            if split == "validation":
                self.choose_decisions(samples, prediction.logits)
            return metrics
        if split != "validation":  # on which thresholds and temperature are chosen
            metrics |= self.judge_decisions(samples, prediction.logits)
        if accelerator.is_main_process:
            self.write_predictions(split, self._describe_predictions(dataset, prediction.logits))
        metrics |= in_main_process(accelerator, lambda: self.score_intervals(samples, prediction))
        return metrics | self.controls(
            model,
            accelerator,
            dataset,
            without_model=lambda: self.scores_without_model(dataset),
            read=Tensor.numpy,
            score=partial(self.score, samples),
        )

    def score(self, samples: Sequence[Sample], scores: NDArray[Any]) -> dict[str, float]:
        """Return the metrics of scores (n, A)."""
        if self.config.classification.multi_label:
            truth = encode(samples, self.classes, self.config.classification)
            return multi_label_metrics(scores, truth.astype(np.float64), self.classes)
        truth = _numbers(samples, self.classes)
        ceiling = float((truth < len(self.classes)).mean())
        return single_label_metrics(scores.argmax(1), truth) | {"ceiling": ceiling}

    def choose_decisions(self, samples: Sequence[Sample], logits: Tensor) -> None:
        """Set the model's temperature and thresholds by the logits (n, A) of the validation samples."""
        section, config = self.config.classification, self.model.config
        labels = torch.from_numpy(encode(samples, self.classes, section))
        if section.calibrate:
            loss = multi_label_loss if section.multi_label else class_loss
            config.calibration_temperature = fit_temperature(lambda scaled: loss(scaled, labels), logits)
        if section.multi_label and section.thresholds is not None:
            columns = zip(self.model.probabilities(logits).numpy().T, labels.numpy().T, strict=True)
            config.decision_thresholds = [choose_threshold(p, truth, section.thresholds) for p, truth in columns]

    def judge_decisions(self, samples: Sequence[Sample], logits: Tensor) -> dict[str, float]:
        """Return `ece`, of several labels the mean over labels, and F1 of several labels."""
        probabilities = self.model.probabilities(logits)
        if not self.config.classification.multi_label:
            confidences, predictions = (values.numpy() for values in probabilities.max(-1))
            return {"ece": calibration_error(confidences, predictions == _numbers(samples, self.classes))}
        truth = encode(samples, self.classes, self.config.classification)
        known = truth != UNKNOWN
        columns = zip(probabilities.numpy().T, truth.T, known.T, strict=True)
        errors = [calibration_error(values[rows], right[rows]) for values, right, rows in columns if rows.any()]
        return {"ece": float(np.mean(errors))} | multi_label_f1(self.model.decide(probabilities).numpy(), truth)

    def score_intervals(self, samples: Sequence[Sample], prediction: Prediction) -> dict[str, float]:
        """Return the limits of 95 % intervals of the main metrics, samples with the same image drawn together."""
        resamples, scores = self.config.evaluation.resamples, prediction.logits.numpy()
        if not resamples:
            return {}

        def measure(rows: NDArray[np.intp]) -> dict[str, float]:
            metrics = self.score([samples[row] for row in rows], scores[rows])
            return {name: metrics[name] for name in self.main_metrics if name in metrics}

        return limits(bootstrap(measure, len(samples), groups=prediction.images, resamples=resamples))

    def scores_without_model(self, dataset: SampleDataset) -> dict[str, NDArray[Any]]:
        """Return the scores (n, A) of majority and bag of words; nothing if there are no training rows."""
        train, section = self.train_dataset.samples if self.has("train") else [], self.config.classification
        if not train:
            return {}
        texts, measured = ([(*row, "")[0] for row in rows.texts_of("text")] for rows in (self.train_dataset, dataset))
        reads = self.config.data.text_column is not None
        if section.multi_label:  # the most frequent labels rank no sample before another
            targets = encode(train, self.classes, section)
            return {"bag_of_words": bag_of_words_scores(texts, targets, measured)} if reads else {}
        names = [sample.target.present[0] for sample in train]
        predictions = {"majority": [majority(names)] * len(measured)}
        if reads:
            predictions["bag_of_words"] = bag_of_words(texts, names, measured)
        return {
            control: np.array([[label == name for name in self.classes] for label in labels])
            for control, labels in predictions.items()
        }

    def check(self, split: str) -> None:
        """Make sure that a row of a split has an input, and one a label that is one of the classes."""
        dataset = self.dataset(split)
        _, *columns = dataset.columns.names
        if not is_filled(self.config.data.path, split, columns):
            raise ValueError(
                f"no row of {self.config.data.path}, {split}, has an image or a text in {', '.join(columns)}; set "
                "data.image_columns and data.text_column"
            )
        labels = list(dict.fromkeys(name for sample in dataset.samples for name in sample.target.present))
        if not set(labels) & set(self.classes):
            raise ValueError(
                f"no row of {self.config.data.path}, {split}, has one of the model's {len(self.classes)} classes "
                f"({_some(self.classes)}); its labels are {_some(labels)}. Choose "
                "classification.label_column, or a model with these classes."
            )

    def describe(self) -> dict[str, Any]:
        """Return what the results depend on, the classes and the thresholds among it."""
        return super().describe() | {
            "classes": self.classes,
            "uncertain": self.config.classification.uncertain,
            "thresholds": self.model.config.decision_thresholds,
            "temperature": self.model.config.calibration_temperature,
        }

    def save(self, model: M3AEForClassification, folder: Path, metrics: dict[str, float]) -> None:
        """Write model, processor and model card."""
        model.config = self.model.config  # a sharded engine's copy lacks what was chosen on validation
        super().save(model, folder, metrics)

    def illustrate(self, model: M3AEForClassification, folder: Path) -> list[Path]:
        """Draw reliability and, of several labels a sample, the ROC curves of the most frequent ones."""
        split = "test" if self.has("test") else "validation"
        rows = self.read_predictions(split)
        if not self.config.classification.multi_label:
            confidences, right = np.array([(row["top"][0]["score"], row["correct"]) for row in rows]).T
            return [save_figure(draw_reliability(reliability(confidences, right)), folder / "reliability.png")]
        truth = encode(self.dataset(split).samples, self.classes, self.config.classification)
        shown = np.argsort(-(truth == 1).sum(0), kind="stable")[:CURVES]
        names = [self.classes[column] for column in shown]
        scores = np.array([[row["scores"][name] for name in self.classes] for row in rows])
        known = truth != UNKNOWN
        return [
            save_figure(draw_roc(scores[:, shown], truth[:, shown], names), folder / "roc.png"),
            save_figure(draw_reliability(reliability(scores[known], truth[known])), folder / "reliability.png"),
        ]

    def _loss(self, dataset: SampleDataset, logits: Tensor) -> dict[str, float]:
        """Return the loss, the classes not weighted."""
        loss = multi_label_loss if self.config.classification.multi_label else class_loss
        return {"loss": float(loss(logits, self.labels(dataset.samples)["labels"]))}

    def _describe_predictions(self, dataset: SampleDataset, logits: Tensor) -> Iterator[dict[str, Any]]:
        multi_label = self.config.classification.multi_label
        scores = self.model.probabilities(logits)
        for sample, row, decided in zip(dataset.samples, scores, self.model.decide(scores).tolist(), strict=True):
            top, truth, line = best_of(self.classes, row), sample.target, self.reference(dataset, sample)
            if multi_label:
                by_name = dict(zip(self.classes, row.tolist(), strict=True))
                yield line | {
                    "prediction": [name for name, has_label in zip(self.classes, decided, strict=True) if has_label],
                    "top": top,
                    "truth": [*truth.present],
                    "uncertain": [*truth.uncertain],
                    "scores": {name: round(score, 5) for name, score in by_name.items()},
                }
            else:
                name, (label,) = top[0]["label"], truth.present
                yield line | {"prediction": name, "top": top, "truth": label, "correct": name == label}


def open_labelled(config: ClassificationRun, split: str) -> SampleDataset:
    """Open the rows of a split that have labels; the target of a sample is its `Labels`.

    At most `data.max_validation_samples` rows of validation are used. Rows without a label (a null; an empty list is a
    row that has none of the labels) are left out, and counted in a message.

    Raises:
        FileNotFoundError: There is no such prepared folder.
        ValueError: It lacks the split or a column, no row has labels, or one has several where it should have one.
    """
    section, dataset = config.classification, open_split(config, split)
    if section.label_column not in dataset.features:
        raise ValueError(
            f"classification.label_column: {config.data.path} has no column {section.label_column!r}; it has "
            f"{', '.join(dataset.features)}"
        )
    samples = []
    for row, cells in enumerate(dataset.rows()):
        labels = labels_of(cells, section)
        if labels is not None:
            samples.append(Sample(cells["id"], {}, target=labels, row=row))
    if len(samples) < len(dataset):
        unlabelled = len(dataset) - len(samples)
        PartialState().print(f"{unlabelled} rows of {config.data.path}, {split}, have no label: left out")
    if not samples:
        raise ValueError(f"no row of {config.data.path}, {split}, has a label in {section.label_column!r}")
    return dataset.of(samples, validation_limit(config, split))


def choose_classes(samples: Sequence[Sample], section: ClassificationConfig) -> list[str]:
    """Return the names of the classes: those of the config, or the most frequent of the training rows.

    Raises:
        ValueError: A class of the config occurs in no training row, or there are too few.
    """
    counts = Counter(name for sample in samples for name in sample.target.present)
    frequent = sorted(counts, key=lambda name: (-counts[name], name))
    if unknown := [name for name in section.labels or [] if name not in counts]:
        raise ValueError(
            f"classification.labels: {_some(unknown)} in no training row, expected some of {_some(frequent)}"
        )
    names = list(section.labels or frequent[: section.num_labels])
    if len(names) < (1 if section.multi_label else 2):
        raise ValueError(
            f"classification.labels: got {names} from column {section.label_column!r} of the training rows, expected "
            f"at least {'one label' if section.multi_label else 'two classes'}"
        )
    return names


def class_weights(
    samples: Sequence[Sample], names: Sequence[str], section: ClassificationConfig
) -> list[float] | None:
    """Return the weight of each class in the loss, or None for none.

    Balanced weights are n / (A·n_a) for the n_a rows of one of A classes, so that classes weigh the same in all; for
    several labels they are negatives over positives, so that a label's positives weigh as much as its negatives.

    Raises:
        ValueError: There is not one weight for each class.
    """
    weights = section.class_weights
    if weights is None or isinstance(weights, list):
        if weights is not None and len(weights) != len(names):
            raise ValueError(
                f"classification.class_weights: got {len(weights)} weights, expected one for each of the {len(names)} "
                f"classes ({_some(names)})"
            )
        return weights
    targets = encode(samples, names, section)
    if section.multi_label:
        positives, negatives = (targets == 1).sum(0), (targets == 0).sum(0)
        return [float(value) for value in negatives / positives.clip(1)]
    counts = np.bincount(targets[targets != UNKNOWN], minlength=len(names))
    return [float(value) for value in counts.sum() / (len(names) * counts)]


def encode(samples: Sequence[Sample], names: Sequence[str], section: ClassificationConfig) -> NDArray[np.int64]:
    """Return the number of each sample's class (n,), or which of A labels it has (n, A); −100 = unknown."""
    if not section.multi_label:
        numbers = _numbers(samples, names)
        return np.where(numbers < len(names), numbers, UNKNOWN)
    columns = {name: column for column, name in enumerate(names)}
    encoded = np.zeros((len(samples), len(names)), dtype=np.int64)
    for row, sample in zip(encoded, samples, strict=True):
        for labels, value in (
            (sample.target.uncertain, UNCERTAIN_VALUES[section.uncertain]),
            (sample.target.present, 1),
        ):
            row[[columns[name] for name in labels if name in columns]] = value
    return encoded


def _numbers(samples: Sequence[Sample], names: Sequence[str]) -> NDArray[np.int64]:
    """Return the number of each sample's class (n,); classes that are not in the list are numbered after it."""
    numbers = {name: number for number, name in enumerate(names)}
    return np.array([numbers.setdefault(sample.target.present[0], len(numbers)) for sample in samples])


def labels_of(cells: Mapping[str, Any], section: ClassificationConfig) -> Labels | None:
    """Return the labels of a row, or None if they are not known."""
    cell = cells[section.label_column]
    if cell is None:
        return None
    names = (cell,) if isinstance(cell, str) else tuple(cell)
    if section.multi_label:
        return Labels(names, tuple(cells.get(UNCERTAIN) or ()))
    if len(names) > 1:
        raise ValueError(
            f"classification.multi_label: row {cells['id']!r} has {len(names)} labels ({_some(names)}), expected one; "
            "set classification.multi_label to true"
        )
    return Labels(names) if names else None


def _some(names: Sequence[str]) -> str:
    return ", ".join(map(repr, names[:5])) + (f" and {len(names) - 5} more" if len(names) > 5 else "")
