"""Fine-tuning for classes of images, of texts, or of both: one class a sample, or any number of labels.

Which inputs there are is said by `data.image_columns` and `data.text_column`. Beside the model stand what is reached
by the most frequent class, by logistic regression on the words of the text, and by the model with a blank image and
with that of another sample.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from functools import cache, cached_property, partial
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from accelerate import Accelerator, PartialState
from numpy.typing import NDArray
from torch import Tensor

from m3ae.data.samples import Sample, SampleDataset
from m3ae.figures import draw_roc, save_figure
from m3ae.metrics.aggregation import bootstrap
from m3ae.metrics.classification import UNKNOWN, multi_label_metrics, single_label_metrics
from m3ae.models.finetuned import M3AEForClassification, class_loss, multi_label_loss
from m3ae.models.processing import M3AEProcessor
from m3ae.tasks.controls import bag_of_words, bag_of_words_scores, majority
from m3ae.tasks.finetuning import (
    IMAGE_CONTROLS,
    FineTuning,
    Prediction,
    best_of,
    in_main_process,
    limits,
    open_data,
    open_split,
    prefixed,
    validation_limit,
)
from m3ae.tasks.models import has_labels, label_names, open_model
from m3ae.tasks.pretraining_data import is_filled
from m3ae.training.config import ClassificationConfig, ClassificationRun

UNCERTAIN = "labels_uncertain"
CURVES = 16  # labels whose ROC curve is drawn
PROBLEM_TYPES = {False: "single_label_classification", True: "multi_label_classification"}
MAIN_METRICS = ("accuracy", "macro_f1", "macro_auroc", "macro_average_precision")
UNCERTAIN_VALUES = {"ignore": UNKNOWN, "zero": 0, "one": 1}


class Labels(NamedTuple):
    """The labels that a sample has, and those of which that is uncertain."""

    present: tuple[str, ...]
    uncertain: tuple[str, ...] = ()


class Classification(FineTuning[M3AEForClassification, ClassificationRun]):
    """Classes in the model's `config.id2label`.

    Of several labels, those that a row names are 1, the uncertain ones what the config says, all others 0. With one
    class a sample, training leaves out rows of a class that is not in the list; measuring counts them as wrong.

    Args:
        config: The run.
        model: With a head for the classes.
        processor: Of that model.
        rows: Opens the rows of a split that have labels.
    """

    def __init__(
        self,
        config: ClassificationRun,
        model: M3AEForClassification,
        processor: M3AEProcessor,
        rows: Callable[[str], SampleDataset],
    ) -> None:
        super().__init__(config, model, processor)
        self._rows = rows

    @classmethod
    def from_config(cls, config: ClassificationRun, *, for_training: bool = True) -> Classification:
        """Open data and model; a new head is drawn unless the saved model has one for the same classes.

        Raises:
            FileNotFoundError: The prepared folder is missing and the config does not say how to make it.
            ValueError: Data, model and config do not fit together.
        """
        open_data(config, for_training=for_training)
        rows = cache(partial(open_labelled, config))
        options: dict[str, Any] = {}
        names: list[str] = []
        if for_training:
            samples, section = rows("train").samples, config.classification
            names = choose_classes(samples, section)
            options = {
                "id2label": dict(enumerate(names)),
                "problem_type": PROBLEM_TYPES[section.multi_label],
                "class_weights": class_weights(samples, names, section),
            }
        model, processor = open_model(
            config,
            M3AEForClassification,
            lambda: rows("train").texts() or names,  # a model of images has a tokenizer, too
            options,
            new_head=for_training and not has_labels(config.model.path, M3AEForClassification, names),
        )
        wanted = PROBLEM_TYPES[config.classification.multi_label]
        if (model.config.problem_type or PROBLEM_TYPES[False]) != wanted:
            raise ValueError(
                f"classification.multi_label: the model in {config.model.path!r} is for {model.config.problem_type}, "
                f"the config asks for {wanted}"
            )
        task = cls(config, model, processor, rows)
        if for_training:
            task.check_splits()
        return task

    @cached_property
    def classes(self) -> list[str]:
        """Names of the classes, in the order of the model's columns."""
        return label_names(self.model.config)

    @cached_property
    def train_dataset(self) -> SampleDataset:
        """The training rows with a class in the list."""
        dataset, names = self._rows("train"), set(self.classes)
        if self.config.classification.multi_label:
            return dataset
        return dataset.of([sample for sample in dataset.samples if not names.isdisjoint(sample.target.present)])

    def labels(self, samples: Sequence[Sample]) -> dict[str, Tensor]:
        """Return the class of each sample (B,), or which labels it has (B, A); −100 = unknown."""
        return {"labels": torch.from_numpy(encode(samples, self.classes, self.config.classification))}

    def evaluate(self, model: M3AEForClassification, accelerator: Accelerator, split: str) -> dict[str, float]:
        """Return the loss; accuracy and macro F1, or AUROC and average precision of each label and macro."""
        dataset = self.dataset(split)
        logits = self.predict(model, accelerator, dataset).logits
        return self._loss(dataset, logits) | self.score(dataset.samples, logits.numpy())

    def final(self, model: M3AEForClassification, accelerator: Accelerator, split: str) -> dict[str, float]:
        """Return these with 95 % intervals over the images and the controls; write the predictions."""
        dataset = self.dataset(split)
        prediction = self.predict(model, accelerator, dataset)
        logits, samples = prediction.logits, dataset.samples
        metrics = self._loss(dataset, logits) | self.score(samples, logits.numpy())
        metrics |= in_main_process(accelerator, lambda: self.score_intervals(samples, prediction))
        if self.config.evaluation.controls:
            found = in_main_process(accelerator, lambda: self.scores_without_model(dataset))
            if self.config.data.image_columns:
                for name, images in IMAGE_CONTROLS.items():
                    found[name] = self.predict(model, accelerator, dataset, images).logits.numpy()
            for name, scores in found.items():
                metrics |= prefixed(name, _main(self.score(samples, scores)))
        if accelerator.is_main_process:
            self.write_predictions(split, self._describe_predictions(dataset, logits))
        return metrics

    def score(self, samples: Sequence[Sample], scores: NDArray[Any]) -> dict[str, float]:
        """Return the metrics of scores (n, A)."""
        if self.config.classification.multi_label:
            truth = encode(samples, self.classes, self.config.classification)
            return multi_label_metrics(scores, truth.astype(np.float64), self.classes)
        truth = _numbers(samples, self.classes)
        ceiling = float((truth < len(self.classes)).mean())
        return single_label_metrics(scores.argmax(1), truth) | {"ceiling": ceiling}

    def score_intervals(self, samples: Sequence[Sample], prediction: Prediction) -> dict[str, float]:
        """Return the limits of 95 % intervals of the main metrics, samples with the same image drawn together."""
        if not self.config.evaluation.resamples:
            return {}
        scores = prediction.logits.numpy()

        def measure(rows: NDArray[np.intp]) -> dict[str, float]:
            return _main(self.score([samples[row] for row in rows], scores[rows]))

        resamples = self.config.evaluation.resamples
        return limits(bootstrap(measure, len(samples), groups=prediction.images, resamples=resamples))

    def scores_without_model(self, dataset: SampleDataset) -> dict[str, NDArray[Any]]:
        """Return the scores (n, A) of majority and bag of words; nothing if there are no training rows."""
        train, section = self.train_dataset.samples if self.has("train") else [], self.config.classification
        if not train:
            return {}
        texts, asked = ([(*own, "")[0] for own in rows.texts_of("text")] for rows in (self.train_dataset, dataset))
        reads = self.config.data.text_column is not None
        if section.multi_label:  # the most frequent labels rank no sample before another
            targets = encode(train, self.classes, section)
            return {"bag_of_words": bag_of_words_scores(texts, targets, asked)} if reads else {}
        names = [sample.target.present[0] for sample in train]
        given = {"majority": [majority(names)] * len(asked)}
        if reads:
            given["bag_of_words"] = bag_of_words(texts, names, asked)
        return {
            key: np.array([[own == name for name in self.classes] for own in chosen]) for key, chosen in given.items()
        }

    def dataset(self, split: str) -> SampleDataset:
        """Open the rows of a split to measure on."""
        return self._rows(split)

    def check(self, split: str) -> None:
        """Make sure that a row of a split has an input, and one a label that is one of the classes."""
        dataset = self._rows(split)
        _, *columns = dataset.columns.names
        if not is_filled(self.config.data.path, split, columns):
            raise ValueError(
                f"no row of {self.config.data.path}, {split}, has an image or a text in {', '.join(columns)}; set "
                "data.image_columns and data.text_column"
            )
        found = Counter(name for sample in dataset.samples for name in sample.target.present)
        if not found.keys() & set(self.classes):
            raise ValueError(
                f"no row of {self.config.data.path}, {split}, has one of the model's {len(self.classes)} classes "
                f"({_some(self.classes)}); its labels are {_some(list(found))}. Choose "
                "classification.label_column, or a model with these classes."
            )

    def describe(self) -> dict[str, Any]:
        """Return what the results depend on, the classes among it."""
        return super().describe() | {"classes": self.classes, "uncertain": self.config.classification.uncertain}

    def illustrate(self, model: M3AEForClassification, folder: Path) -> list[Path]:
        """Draw the ROC curves of the labels, the most frequent ones first, if a sample may have several."""
        if not self.config.classification.multi_label:
            return []
        split = "test" if self.has("test") else "validation"
        truth = encode(self.dataset(split).samples, self.classes, self.config.classification)
        shown = np.argsort(-(truth == 1).sum(0), kind="stable")[:CURVES]
        names = [self.classes[column] for column in shown]
        scores = np.array([[row["scores"][name] for name in names] for row in self.read_predictions(split)])
        return [save_figure(draw_roc(scores, truth[:, shown], names), folder / "roc.png")]

    def _loss(self, dataset: SampleDataset, logits: Tensor) -> dict[str, float]:
        """Return the loss, the classes not weighted."""
        loss = multi_label_loss if self.config.classification.multi_label else class_loss
        return {"loss": float(loss(logits, self.labels(dataset.samples)["labels"]))}

    def _describe_predictions(self, dataset: SampleDataset, logits: Tensor) -> Iterator[dict[str, Any]]:
        multi_label = self.config.classification.multi_label
        scores = logits.sigmoid() if multi_label else logits.softmax(-1)
        for sample, own in zip(dataset.samples, scores, strict=True):
            top, truth = best_of(self.classes, own), sample.target
            line = self.reference(dataset, sample)
            if multi_label:
                chosen = [name for name, score in zip(self.classes, own.tolist(), strict=True) if score >= 0.5]
                scored = {name: round(score, 5) for name, score in zip(self.classes, own.tolist(), strict=True)}
                told = {"truth": [*truth.present], "uncertain": [*truth.uncertain]}
                yield {**line, "prediction": chosen, "top": top, **told, "scores": scored}
            else:
                name, (label,) = top[0]["label"], truth.present
                yield {**line, "prediction": name, "top": top, "truth": label, "correct": name == label}


def open_labelled(config: ClassificationRun, split: str) -> SampleDataset:
    """Open the rows of a split that have labels; the target of a sample is its `Labels`.

    Of the validation split they are as many as the config says. Rows without a label (a null; an empty list is a row
    that has none of the labels) are left out, and counted in a message.

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
    found = sorted(counts, key=lambda name: (-counts[name], name))
    if unknown := [name for name in section.labels or [] if name not in counts]:
        raise ValueError(
            f"classification.labels: {_some(unknown)} in no training row, expected some of {_some(found)}"
        )
    names = list(section.labels or found[: section.num_labels])
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
    given = section.class_weights
    if given is None or isinstance(given, list):
        if given is not None and len(given) != len(names):
            raise ValueError(
                f"classification.class_weights: got {len(given)} weights, expected one for each of the {len(names)} "
                f"classes ({_some(names)})"
            )
        return given
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


def _main(metrics: Mapping[str, float]) -> dict[str, float]:
    return {name: metrics[name] for name in MAIN_METRICS if name in metrics}


def _some(names: Sequence[str]) -> str:
    return ", ".join(map(repr, names[:5])) + (f" and {len(names) - 5} more" if len(names) > 5 else "")
