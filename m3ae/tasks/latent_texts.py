"""Texts that a latent model writes given other modalities, against those that people wrote.

Shapes: N rows, A problems, Z all latent dimensions.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple, cast

import numpy as np
import torch
from accelerate.utils import send_to_device
from torch import Tensor

from m3ae.data.collate import Batch
from m3ae.data.samples import evenly
from m3ae.metrics.classification import multi_label_f1
from m3ae.metrics.generation import all_right
from m3ae.metrics.text import text_metrics, told_class
from m3ae.models.modalities import Label
from m3ae.tasks.controls import bag_of_words_scores
from m3ae.tasks.generation_evaluation import Density, GenerationEvaluator
from m3ae.tasks.latent_passes import Array

TOLD = 0.5  # share of the real texts that name their class of a label, from which on texts are judged by it


class Written(NamedTuple):
    """Texts (n,) that were written given some modalities."""

    given: list[str]
    texts: list[str]


class Texts(NamedTuple):
    """The texts of a modality.

    Attributes:
        learnt: Of each training row that classifiers learn from.
        real: Of each row of the split, any number.
    """

    learnt: list[list[str]]
    real: list[list[str]]


class TextEvaluator:
    """Writes texts from the mean of z for rows that have every modality, and judges them.

    Args:
        evaluator: Of the same rows; by its problems texts are judged, and with its classifiers what is drawn jointly.
        decode_text: Token ids (N, L) → texts.
        max_rows: For how many rows, evenly spaced, texts are written.
        seed: Of samples, and, where a posterior or prior has several components, of the one whose mean is taken.
    """

    def __init__(
        self,
        evaluator: GenerationEvaluator,
        decode_text: Callable[[Tensor], list[str]],
        max_rows: int,
        seed: int = 0,
    ) -> None:
        self.evaluator, self.text_options = evaluator, evaluator.options.text_options
        self.model, self.rows, self.subsets = evaluator.model, evaluator.rows, evaluator.subsets
        self.problems, self.decode_text, self.max_rows = evaluator.problems, decode_text, max_rows
        self.generator = torch.Generator(self.model.device).manual_seed(seed)

    def evaluate(self, texts: Mapping[str, Texts], ids: Sequence[str]) -> tuple[dict[str, Any], list[dict[str, Any]]]:
        """Return the report by modality, see `measure`, and what was written: `id`, `given`, `text`, `references`.

        Args:
            texts: Of each modality that is a text.
            ids: Of the rows of the split.
        """
        report, written = {}, []
        for name, own in texts.items():
            complete = self.rows.having([*self.subsets[-1], name])
            rows = complete[evenly(len(complete), self.max_rows)]
            if not len(rows):
                continue
            report[name], made = self.measure(name, own, rows)
            for given, lines in made:
                for row, text in zip(rows, lines, strict=True):
                    line = {"id": ids[row], "modality": name, "given": given, "text": text}
                    written.append({**line, "references": own.real[row]})
        return report, written

    def measure(self, name: str, texts: Texts, rows: Array) -> tuple[dict[str, Any], list[Written]]:
        """Write and judge the texts of a modality.

        Args:
            name: Of the modality.
            texts: Its real ones.
            rows: (n,) numbers of the rows.

        Returns:
            `rows`, their number; `generated`: for nothing, for each subset without the modality and for everything
            `given`, `text_metrics` and `multi_label_f1` of the problems that a classifier of real texts finds in what
            was written; `shuffled`: the same of other rows' texts; `real`: of the rows' own, the classifier's ceiling.
            Where real texts name their classes of the model's labels (`TOLD`), also `labels`, the share that names
            the right one and no other, and `all_labels`, see `all_right`; and `joint`, by prior, `all_right` of the
            labels of which a text and everything drawn with it are of one class.
            And what was written, with what was given.
        """
        chosen = [[], *(list(given) for given in self.subsets if name not in given)]
        if name in self.subsets[-1]:
            chosen.append(list(self.subsets[-1]))
        made = [Written(given, self.write(name, given, rows)) for given in chosen]
        references = [texts.real[row] for row in rows]
        first = [own[0] for own in references]
        shift = max(1, len(first) // 2)
        shuffled = first[shift:] + first[:shift]
        judged = [text_metrics(lines, references) for lines in (*(lines for _, lines in made), shuffled)]
        asked = [*(lines for _, lines in made), shuffled, first]
        labels = self._labels_told(first, rows)
        found = self._find_problems(texts.learnt, asked, rows)
        found = [own | self._compare_labels(lines, rows, labels) for own, lines in zip(found, asked, strict=True)]
        generated = [
            {"given": given, **metrics, **own}
            for (given, _), metrics, own in zip(made, judged[:-1], found[:-2], strict=True)
        ]
        shown = {"rows": len(rows), "generated": generated, "shuffled": judged[-1] | found[-2], "real": found[-1]}
        if labels and self.rows.values:
            shown["joint"] = {
                density: self.measure_prior(name, density, len(rows), labels) for density in self.evaluator.densities
            }
        return shown, made

    @torch.no_grad()
    def measure_prior(
        self, name: str, density: Density, count: int, labels: Mapping[str, Sequence[str]]
    ) -> list[float]:
        """Return `all_right` of the labels of which a text and all that a prior draws with it are of one class.

        Args:
            name: Of the text.
            density: The prior.
            count: How many samples.
            labels: Names of the classes by label.
        """
        names, temperature = [*self.rows.values, name], self.evaluator.options.temperature
        drawn = self.model.sample_prior(count, density, names, temperature, self.generator, self.text_options)
        texts = self.decode_text(drawn.pop(name))
        shown = self.evaluator.judge.classes_shown({own: value.cpu().numpy() for own, value in drawn.items()})
        equal = [
            np.all([told_class(texts, classes) == own for own in shown[label].values()], 0)
            for label, classes in labels.items()
        ]
        return all_right(np.stack(equal, 1))

    @torch.no_grad()
    def write(self, name: str, given: Sequence[str], rows: Array) -> list[str]:
        """Return the likeliest text found for each row from the mean of z given some modalities, or of the prior."""
        if not given:
            return self._decode(name, self.model.sample_latent_prior(len(rows), "own", 0.0, self.generator))
        texts: list[str] = []
        for part in self.rows.parts(rows):
            available: Batch = send_to_device({own: part[own] for own in given}, self.model.device)
            texts += self._decode(name, self.model.sample_latent(available, 1, 0.0, self.generator)[0])
        return texts

    def _decode(self, name: str, z: Tensor) -> list[str]:
        """Return the texts at points (n, Z), of which equal ones are decoded once."""
        points, back = z.unique(dim=0, return_inverse=True)
        lines = [line.strip() for line in self.decode_text(self.model.decode(points, [name], self.text_options)[name])]
        return [lines[number] for number in back.tolist()]

    def _labels_told(self, texts: Sequence[str], rows: Array) -> dict[str, list[str]]:
        """Return the names of the classes of those labels that real texts of rows tell."""
        names = {label: cast(Label, self.model.latent_head.modalities[label]).names for label in self.rows.classes}
        return {
            label: own
            for label, own in names.items()
            if (told_class(texts, own) == self.rows.classes[label][rows]).mean() >= TOLD
        }

    def _compare_labels(
        self, texts: Sequence[str], rows: Array, labels: Mapping[str, Sequence[str]]
    ) -> dict[str, Any]:
        """Return how often texts of rows name the right class of each label, and of several at once."""
        if not labels:
            return {}
        classes = np.stack([self.rows.classes[label][rows] for label in labels], 1)
        told = np.stack([told_class(texts, own) for own in labels.values()], 1)
        right = (told == classes)[(classes >= 0).all(1)]
        return {"labels": dict(zip(labels, right.mean(0).tolist(), strict=True)), "all_labels": all_right(right)}

    def _find_problems(self, learnt: list[list[str]], asked: list[list[str]], rows: Array) -> list[dict[str, float]]:
        """Return the F1 of each list of texts of the rows, or nothing where no problems are known."""
        if self.problems is None:
            return [{} for _ in asked]
        texts = [text for own in learnt for text in own]
        targets = np.repeat(self.problems.learnt, [len(own) for own in learnt], axis=0)
        scores = bag_of_words_scores(texts, targets, [text for own in asked for text in own], tf_idf=True)
        return [
            multi_label_f1(own >= 0.5, self.problems.judged[rows]) for own in scores.reshape(len(asked), len(rows), -1)
        ]
