"""Probes of latents, and classifiers of real data that judge generated data.

Shapes: N rows of the split, n of them, D shared latent dimensions, K labels, A classes of one or problems, F features.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import NamedTuple

import datasets
import numpy as np
import torch
from numpy.typing import NDArray
from sklearn.linear_model import LogisticRegression
from sklearn.pipeline import Pipeline, make_pipeline
from sklearn.preprocessing import StandardScaler
from torch import Tensor, nn

from m3ae.data.prepared import load_split
from m3ae.data.samples import Sample
from m3ae.evaluation.passes import Array, Rows
from m3ae.evaluation.report import ProblemResult
from m3ae.metrics.classification import UNKNOWN, multi_label_metrics
from m3ae.metrics.generation import all_right, frechet_distance
from m3ae.models.finetuned import class_loss
from m3ae.models.latent_networks import cnn_encoder, mlp_encoder
from m3ae.models.modalities import ModalityConfig
from m3ae.tasks.classification import UNCERTAIN, Labels, choose_classes, encode, labels_of
from m3ae.training.config import ProblemsConfig
from m3ae.training.finetuning_sections import ClassificationConfig

EPOCHS, MIN_STEPS, MAX_STEPS = 30, 200, 1200
BATCH_SIZE, LEARNING_RATE, PREDICTION_BATCH = 128, 1e-3, 1000
FEATURES = 256
Classes = NDArray[np.int64]


class Problems(NamedTuple):
    """Which rows have which of A problems, which the model has not learnt: 1 = yes, 0 = no, −100 = unknown."""

    names: list[str]
    learnt: Classes  # (N', A) of the training rows that probes learn from
    judged: Classes  # (N, A) of the rows that probes are measured on

    def shares(self) -> dict[str, float]:
        """Return the share of each problem among the judged rows of which it is known."""
        columns = zip(self.names, self.judged.T, strict=True)
        known = {name: column[column != UNKNOWN] for name, column in columns}
        return {name: float(targets.mean()) if len(targets) else np.nan for name, targets in known.items()}


class ProblemReader:
    """The most frequent problems of the training split, read as classification with several labels reads them.

    Args:
        folder: The prepared folder.
        options: The column of the names, and the number of problems.

    Attributes:
        names: Names of the problems, the most frequent first.

    Raises:
        ValueError: The column does not exist, or holds no names.
    """

    def __init__(self, folder: Path, options: ProblemsConfig) -> None:
        self._folder = folder
        self._section = ClassificationConfig(
            label_column=options.column, multi_label=True, num_labels=options.num_labels
        )
        self.names = choose_classes(list(self._read("train").values()), self._section)

    def read(self, learnt: Sequence[str], split: str, ids: Sequence[str]) -> Problems:
        """Return the problems of training rows and of rows of a split, by their ids."""
        return Problems(self.names, self.targets("train", learnt), self.targets(split, ids))

    def targets(self, split: str, ids: Sequence[str]) -> Classes:
        """Return the problems (n, A) of rows of a split."""
        samples, empty = self._read(split), Labels(())
        targets = encode([samples.get(row, Sample(row, {}, target=empty)) for row in ids], self.names, self._section)
        targets[[row not in samples for row in ids]] = UNKNOWN
        return targets

    def _read(self, split: str) -> dict[str, Sample]:
        """Return by id the labels of the rows that have some or are known to have none."""
        column, rows = self._section.label_column, load_split(self._folder, split)
        text = datasets.Value("string")
        texts = [name for name, feature in rows.features.items() if feature in (text, datasets.List(text))]
        if column not in texts:
            raise ValueError(
                f"problems.column: expected a column of names in {self._folder}, got {column!r}; those of "
                f"texts are {', '.join(texts)}."
            )
        cells = rows.select_columns([name for name in ("id", column, UNCERTAIN) if name in rows.features])
        labelled = ((row["id"], labels_of(row, self._section)) for row in cells)
        return {row: Sample(row, {}, target=labels) for row, labels in labelled if labels is not None}


class Probes:
    """Linear probes of latents: one for each label and problem of which at least two classes are known.

    Args:
        latents: (n, D) posterior means of training rows given some modalities.
        classes: Label → (n,) numbers of classes, negative = unknown.
        problems: (n, A) targets of problems, see `Problems`; None without problems.
    """

    def __init__(
        self, latents: NDArray[np.float32], classes: Mapping[str, Classes], problems: Classes | None = None
    ) -> None:
        self._labels = {label: _fit(latents, numbers) for label, numbers in classes.items()}
        self._problems = [_fit(latents, truth) for truth in problems.T] if problems is not None else []

    def accuracy(self, label: str, latents: NDArray[np.float32], classes: Classes) -> float | None:
        """Return the share of known classes (n,) that the probe of a label tells; None without probe or classes."""
        probe, known = self._labels[label], classes >= 0
        return float(probe.score(latents[known], classes[known])) if probe is not None and known.any() else None

    def rank(self, latents: NDArray[np.float32], targets: Classes, names: Sequence[str]) -> ProblemResult:
        """Return AUROCs of the problems: NaN for a problem without probe, or without rows of both kinds."""
        scores, truth = np.zeros(targets.shape), targets.copy()
        for column, probe in enumerate(self._problems):
            if probe is None:
                truth[:, column] = UNKNOWN
            else:
                scores[:, column] = probe.decision_function(latents)
        metrics = multi_label_metrics(scores, truth.astype(np.float64), names)
        return ProblemResult({name: metrics[f"{name}_auroc"] for name in names}, metrics["macro_auroc"])


def _fit(latents: NDArray[np.float32], classes: Classes) -> Pipeline | None:
    """Fit a logistic regression of known classes (n,) on standardised latents (n, D); None for a single class."""
    known = classes >= 0
    if len(np.unique(classes[known])) < 2:
        return None
    return make_pipeline(StandardScaler(), LogisticRegression(max_iter=1000)).fit(latents[known], classes[known])


class RealDataClassifier:
    """A small network that learns the classes of a modality from real data, on the CPU: of images, convolutional.

    Equal values, which triplets of few recordings repeat, are learnt once; images also shifted by a pixel.

    Args:
        values: (n, …) images (C, S, S), sequences (T, F) or vectors.
        classes: (n, K) number of the class of each of K labels, negative = unknown.
        seed: Seed of the weights and of the order of samples.
    """

    def __init__(self, values: NDArray[np.float32], classes: Classes, seed: int = 0) -> None:
        distinct = list({value.tobytes(): row for row, value in enumerate(values)}.values())
        images, classes = torch.from_numpy(values[distinct]), classes[distinct]
        known = [np.unique(column[column >= 0]) for column in classes.T]
        self._classes = [numbers if len(numbers) else np.array([UNKNOWN]) for numbers in known]  # of each output
        columns = zip(self._classes, classes.T, strict=True)
        indices = np.stack([np.searchsorted(numbers, column) for numbers, column in columns], 1)
        self._is_image = values.ndim == 4
        axis = None if self._is_image else 0
        self._mean = torch.from_numpy(np.asarray(images.numpy().mean(axis)))
        self._std = torch.from_numpy(np.asarray(images.numpy().std(axis))).clamp(min=1e-3)
        with torch.random.fork_rng(devices=[]), torch.enable_grad():
            torch.manual_seed(seed)
            options = ModalityConfig("image" if self._is_image else "vector", hidden_size=FEATURES, dropout=0.2)
            self._encode = (cnn_encoder if self._is_image else mlp_encoder)(list(values.shape[1:]), options)
            self._output = nn.Linear(FEATURES, sum(map(len, self._classes)))
            self._learn(images, torch.from_numpy(np.where(classes < 0, UNKNOWN, indices)))
        self._encode.eval()

    def predict(self, values: NDArray[np.float32]) -> Classes:
        """Return the likeliest class of each label, (n, K), of values (n, …); unknown if none was ever known."""
        scores = zip(self._classes, self._scores(values), strict=True)
        return np.stack([numbers[logits.argmax(-1)] for numbers, logits in scores], 1)

    def log_odds(self, values: NDArray[np.float32]) -> NDArray[np.float32]:
        """Return log p(1) / p(0) for each of K labels that are 0 or 1, (n, K); 0 if only one of them was seen."""
        return torch.stack([logits[:, -1] - logits[:, 0] for logits in self._scores(values)], 1).numpy()

    def features(self, values: NDArray[np.float32]) -> NDArray[np.float64]:
        """Return the last hidden layer (n, F) of values (n, …)."""
        return self._hidden(values).double().numpy()

    @torch.no_grad()
    def _hidden(self, values: NDArray[np.float32]) -> Tensor:
        batches = torch.from_numpy(values).split(PREDICTION_BATCH)
        return torch.cat([self._encode(self._scaled(batch)) for batch in batches])

    @torch.no_grad()
    def _scores(self, values: NDArray[np.float32]) -> tuple[Tensor, ...]:
        return self._split(self._output(self._hidden(values)))

    def _split(self, logits: Tensor) -> tuple[Tensor, ...]:
        """Return the logits (n, A) of each label."""
        split: tuple[Tensor, ...] = logits.split([len(numbers) for numbers in self._classes], -1)
        return split

    def _scaled(self, values: Tensor) -> Tensor:
        return (values - self._mean) / self._std

    def _learn(self, values: Tensor, targets: Tensor) -> None:
        steps = min(MAX_STEPS, max(MIN_STEPS, EPOCHS * len(values) // BATCH_SIZE))
        parameters = [*self._encode.parameters(), *self._output.parameters()]
        optimizer = torch.optim.AdamW(parameters, LEARNING_RATE, weight_decay=0.01)
        for step in range(steps):
            for group in optimizer.param_groups:
                group["lr"] = LEARNING_RATE * 0.5 * (1 + math.cos(math.pi * step / steps))
            rows = torch.randint(len(values), (BATCH_SIZE,))
            batch = self._scaled(values[rows])
            if self._is_image:
                batch = batch.roll(torch.randint(-1, 2, (2,)).tolist(), (2, 3))
            logits = self._split(self._output(self._encode(batch)))
            losses = [class_loss(scores, target) for scores, target in zip(logits, targets[rows].T, strict=True)]
            optimizer.zero_grad()
            torch.stack(losses).sum().backward()
            optimizer.step()


class Judge:
    """Judges values of the modalities of a split by classifiers that learn from training rows.

    Args:
        learnt: Training rows.
        rows: The split.
        problems: The problems of both; None without problems.
        seed: Seed of the classifiers.

    Attributes:
        classifiers: Modality → classifier of the labels.
        problem_classifiers: Image → classifier of the problems.
    """

    def __init__(self, learnt: Rows, rows: Rows, problems: Problems | None = None, seed: int = 0) -> None:
        self.rows, self.problems = rows, problems
        self.classifiers: dict[str, RealDataClassifier] = {}
        self.problem_classifiers: dict[str, RealDataClassifier] = {}
        if rows.classes:
            classes = np.stack([*learnt.classes.values()], 1)
            for name, values in learnt.values.items():
                known = learnt.known([name], classes.max(1))
                if known.any():
                    self.classifiers[name] = RealDataClassifier(values[known], classes[known], seed)
        for name in rows.images:
            if problems is not None and len(present := learnt.having([name])):
                values = learnt.values[name][present]
                self.problem_classifiers[name] = RealDataClassifier(values, problems.learnt[present], seed)

    def classes_shown(self, values: Mapping[str, Array]) -> dict[str, dict[str, Array]]:
        """Return label → modality → the classes (n,) that its values (n, …) show."""
        shown = {name: classifier.predict(values[name]) for name, classifier in self.classifiers.items()}
        return {
            label: {name: classes[:, column] for name, classes in shown.items()}
            for column, label in enumerate(self.rows.classes)
        }

    def accuracy_on_real_data(self, shown: Mapping[str, Mapping[str, Array]]) -> dict[str, dict[str, float]]:
        """Return by label and modality the accuracy on the split itself: what coherence cannot exceed by much.

        `all` is the share of the rows with every modality that all classifiers get right.

        Args:
            shown: The `classes_shown` of the split.
        """
        accuracies: dict[str, dict[str, float]] = {}
        for label, predicted in shown.items():
            truth = self.rows.classes[label]
            right = {name: classes == truth for name, classes in predicted.items()}
            accuracies[label] = {
                name: float(hits[self.rows.known([name], truth)].mean()) for name, hits in right.items()
            }
            if right:
                complete = self.rows.known(list(right), truth)
                accuracies[label]["all"] = float(np.all(list(right.values()), 0)[complete].mean())
        return accuracies

    def all_labels_right(
        self, shown: Mapping[str, Mapping[str, Array]], rows: Array, masks: Mapping[str, Array]
    ) -> dict[str, list[float]]:
        """Return by modality `all_right` of the labels, if there are several, over the rows that have them all.

        Args:
            shown: The `classes_shown` of n values of each modality.
            rows: (n,) numbers of their rows.
            masks: Modality that is judged → mask (N,) of the rows of the split that it is judged on.
        """
        shares = {}
        for name in (name for name in self.rows.values if name in masks):
            labels = [label for label, predicted in shown.items() if name in predicted]
            if len(labels) < 2:
                continue
            truth = np.stack([self.rows.classes[label][rows] for label in labels], 1)
            known = (truth >= 0).all(1) & masks[name][rows]
            if known.any():
                shares[name] = all_right((np.stack([shown[label][name] for label in labels], 1) == truth)[known])
        return shares

    def problems_seen(self, values: Mapping[str, Array], rows: Array, masks: Mapping[str, Array]) -> dict[str, float]:
        """Return by image the macro AUROC of the problems that a classifier of real images sees in it.

        Args:
            values: (n, …) of each modality.
            rows: (n,) numbers of their rows.
            masks: Modality that is judged → mask (N,) of the rows of the split that it is judged on.
        """
        areas: dict[str, float] = {}
        for name, classifier in self.problem_classifiers.items():
            if self.problems is None or name not in masks:
                continue
            mask = masks[name][rows]
            scores = classifier.log_odds(values[name][mask])
            targets = self.problems.judged[rows][mask].astype(np.float64)
            areas[name] = multi_label_metrics(scores, targets, self.problems.names)["macro_auroc"]
        return areas

    def frechet_distances(self, samples: Mapping[str, Array], rows: Array) -> dict[str, float]:
        """Return the distances of images (n, …) to the real ones of rows (n,).

        The features are those of the classifier of the labels, or, without a label, of the problems.
        """
        distances, classifiers = {}, self.classifiers or self.problem_classifiers
        for name in self.rows.images:
            present = self.rows.present[name][rows]
            if name in classifiers and present.sum() > 1:
                real = classifiers[name].features(self.rows.values[name][rows][present])
                distances[name] = frechet_distance(real, classifiers[name].features(samples[name]))
        return distances
