"""Classifiers of real data that say what generated data show.

Shapes: N rows of the split, n of them that are judged, A problems.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np

from m3ae.metrics.generation import all_right, frechet_distance
from m3ae.tasks.classifiers import RealDataClassifier
from m3ae.tasks.latent_passes import Array, Rows
from m3ae.tasks.latent_problems import Problems, rank_problems


class Judge:
    """Judges values of the modalities of a split by classifiers that learn from training rows.

    Args:
        learnt: Training rows.
        rows: The split, against which is judged.
        images: The modalities that are images.
        problems: Of both; None for no such classifiers.
        seed: Of the classifiers.

    Attributes:
        labels: Names of the labels.
        classifiers: Modality → classifier of the labels.
        problem_classifiers: Image → classifier of the problems.
    """

    def __init__(
        self, learnt: Rows, rows: Rows, images: Sequence[str], problems: Problems | None = None, seed: int = 0
    ) -> None:
        self.rows, self.images, self.problems = rows, images, problems
        self.labels, self.classifiers = list(rows.classes), dict[str, RealDataClassifier]()
        if self.labels:
            classes = np.stack([*learnt.classes.values()], 1)
            for name, values in learnt.values.items():
                valid = learnt.known([name], classes.max(1))
                if valid.any():
                    self.classifiers[name] = RealDataClassifier(values[valid], classes[valid], seed)
        self.problem_classifiers: dict[str, RealDataClassifier] = {}
        if problems is not None:
            for name in images:
                there = learnt.having([name])
                self.problem_classifiers[name] = RealDataClassifier(
                    learnt.values[name][there], problems.learnt[there], seed
                )

    def classes_shown(self, values: Mapping[str, Array]) -> dict[str, dict[str, Array]]:
        """Return label → modality → the classes (n,) that its values (n, …) show."""
        shown = {name: classifier.predict(values[name]) for name, classifier in self.classifiers.items()}
        return {
            label: {name: own[:, column] for name, own in shown.items()} for column, label in enumerate(self.labels)
        }

    def accuracy_on_real_data(self, shown: Mapping[str, Mapping[str, Array]]) -> dict[str, dict[str, float]]:
        """Return by label and modality the accuracy on the split itself: what coherence cannot exceed by much.

        `all` is the share of the rows with every modality of which all classifiers are right.

        Args:
            shown: From `classes_shown`, of the split.
        """
        found: dict[str, dict[str, float]] = {}
        for label, own in shown.items():
            classes = self.rows.classes[label]
            right = {name: predicted == classes for name, predicted in own.items()}
            found[label] = {name: float(hit[self.rows.known([name], classes)].mean()) for name, hit in right.items()}
            complete = self.rows.known(list(right), classes)
            found[label]["all"] = float(np.all(list(right.values()), 0)[complete].mean())
        return found

    def all_labels_right(
        self, shown: Mapping[str, Mapping[str, Array]], rows: Array, asked: Mapping[str, Array]
    ) -> dict[str, list[float]]:
        """Return by modality `all_right` of the labels, if there are several, over the rows that have them all.

        Args:
            shown: From `classes_shown`, of n values of each modality.
            rows: (n,) numbers of their rows.
            asked: By modality that is judged, of which rows (N,) of the split.
        """
        found = {}
        for name in (name for name in self.rows.values if name in asked):
            labels = [label for label, own in shown.items() if name in own]
            if len(labels) < 2:
                continue
            classes = np.stack([self.rows.classes[label][rows] for label in labels], 1)
            known = (classes >= 0).all(1) & asked[name][rows]
            if known.any():
                found[name] = all_right((np.stack([shown[label][name] for label in labels], 1) == classes)[known])
        return found

    def problems_seen(self, values: Mapping[str, Array], rows: Array, asked: Mapping[str, Array]) -> dict[str, float]:
        """Return how well a classifier of real images sees the problems of the rows: by modality the macro AUROC.

        Args:
            values: (n, …) of each modality.
            rows: (n,) numbers of their rows.
            asked: By modality that is judged, of which rows (N,) of the split.
        """
        if self.problems is None:
            return {}
        found = {}
        for name in (name for name in self.problem_classifiers if name in asked):
            there = asked[name][rows]
            scores = self.problem_classifiers[name].log_odds(values[name][there])
            ranked = rank_problems(scores, self.problems.judged[rows][there], self.problems.names)
            found[name] = ranked["macro_auroc"]
        return found

    def frechet_distances(self, made: Mapping[str, Array], rows: Array) -> dict[str, float]:
        """Return the distances of images (n, …) to the real ones of rows (n,).

        Features are those of the classifier of the labels, or, without a label, of the problems.
        """
        distances, classifiers = {}, self.classifiers or self.problem_classifiers
        for name in self.images:
            valid = self.rows.present[name][rows]
            if name in classifiers and valid.sum() > 1:
                real = classifiers[name].features(self.rows.values[name][rows][valid])
                distances[name] = frechet_distance(real, classifiers[name].features(made[name]))
        return distances
