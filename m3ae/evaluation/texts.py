"""Texts that a latent model writes given other modalities, against those that people wrote.

Shapes: n rows of the split, Z all latent dimensions.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from typing import Any, NamedTuple, cast

import numpy as np
import torch
from accelerate.utils import send_to_device
from torch import Tensor

from m3ae.data.samples import evenly
from m3ae.evaluation.latent import Density, LatentEvaluator
from m3ae.evaluation.passes import Array
from m3ae.evaluation.report import TextReport, TextResult
from m3ae.metrics.classification import multi_label_f1
from m3ae.metrics.generation import all_right
from m3ae.metrics.text import named_class, text_metrics
from m3ae.models.modalities import Label
from m3ae.tasks.controls import bag_of_words_scores

NAMED_SHARE = 0.5  # of the real texts that name their class of a label, from which on texts are judged by the label


class Texts(NamedTuple):
    """The texts of a modality.

    Attributes:
        learnt: The texts of each training row that classifiers learn from.
        real: The texts of each row of the split, any number.
    """

    learnt: list[list[str]]
    real: list[list[str]]


class TextEvaluator:
    """Writes texts from the mean of z for rows that have every modality, and judges them.

    Args:
        evaluator: The evaluation of the split; its problems judge texts, its classifiers what is sampled with them.
        decode_text: Token ids (n, L) → texts.
        max_rows: Number of rows, evenly spaced, for which texts are written.
        seed: Seed of samples, and, where a posterior or prior has several components, of the choice of one.
    """

    def __init__(
        self,
        evaluator: LatentEvaluator,
        decode_text: Callable[[Tensor], list[str]],
        max_rows: int,
        seed: int = 0,
    ) -> None:
        self.evaluator, self.text_options = evaluator, evaluator.options.text_options
        self.model, self.rows, self.subsets = evaluator.model, evaluator.rows, evaluator.subsets
        self.problems, self.decode_text, self.max_rows = evaluator.problems, decode_text, max_rows
        self.generator = torch.Generator(self.model.device).manual_seed(seed)

    def evaluate(
        self, texts: Mapping[str, Texts], ids: Sequence[str]
    ) -> tuple[dict[str, TextReport], list[dict[str, Any]]]:
        """Return the report by modality, and lines of what was written: `id`, `given`, `text`, `references`.

        Args:
            texts: The texts of each modality that is a text.
            ids: Ids of the rows of the split.
        """
        reports, lines = {}, []
        for name, corpus in texts.items():
            complete = self.rows.having([*self.subsets[-1], name])
            rows = complete[evenly(len(complete), self.max_rows)]
            if not len(rows):
                continue
            written = self.write_all(name, rows)
            reports[name] = self.measure(name, corpus, rows, written)
            for given, column in written:
                for row, text in zip(rows, column, strict=True):
                    line = {"id": ids[row], "modality": name, "given": given, "text": text}
                    lines.append({**line, "references": corpus.real[row]})
        return reports, lines

    def write_all(self, name: str, rows: Array) -> list[tuple[list[str], list[str]]]:
        """Write texts for nothing, for each subset without their modality, and for everything: pairs of both."""
        sources = [[], *(given for given in self.subsets if name not in given)]
        if name in self.subsets[-1]:
            sources.append(self.subsets[-1])
        return [(given, self.write(name, given, rows)) for given in sources]

    def measure(
        self, name: str, corpus: Texts, rows: Array, written: Sequence[tuple[list[str], list[str]]]
    ) -> TextReport:
        """Judge the texts (n,) that were written for rows (n,) from different modalities.

        Where real texts name their classes of the model's labels (`NAMED_SHARE`), these judge them, too.
        """
        references = [corpus.real[row] for row in rows]
        real = [texts[0] for texts in references]
        shift = max(1, len(real) // 2)
        shuffled = real[shift:] + real[:shift]
        columns = [*(texts for _, texts in written), shuffled, real]
        metrics: list[dict[str, Any]] = [*(text_metrics(texts, references) for texts in columns[:-1]), {}]
        labels = self.labels_named(real, rows)
        results = [
            TextResult(**scores, **f1, **self.compare_labels(texts, rows, labels))
            for scores, f1, texts in zip(metrics, self._problem_f1(corpus.learnt, columns, rows), columns, strict=True)
        ]
        sources = zip(written, results, strict=False)
        densities = self.evaluator.densities if labels and self.rows.values else []
        joint: dict[str, list[float]] = {
            density: self.measure_prior(name, density, len(rows), labels) for density in densities
        }
        return TextReport(
            rows=len(rows),
            generated=[replace(result, given=given) for (given, _), result in sources],
            shuffled=results[-2],
            real=results[-1],
            joint=joint or None,
        )

    @torch.no_grad()
    def measure_prior(
        self, name: str, density: Density, count: int, labels: Mapping[str, Sequence[str]]
    ) -> list[float]:
        """Return `all_right` of the labels that a text and all that a prior samples with it agree in.

        Args:
            name: Name of the text.
            density: The prior.
            count: Number of samples.
            labels: Names of the classes by label.
        """
        names, temperature = [*self.rows.values, name], self.evaluator.options.temperature
        samples = self.model.sample_prior(count, density, names, temperature, self.generator, self.text_options)
        texts = self.decode_text(samples.pop(name))
        shown = self.evaluator.judge.classes_shown({name: value.cpu().numpy() for name, value in samples.items()})
        equal = [
            np.all([named_class(texts, classes) == predicted for predicted in shown[label].values()], 0)
            for label, classes in labels.items()
        ]
        return all_right(np.stack(equal, 1))

    @torch.no_grad()
    def write(self, name: str, given: Sequence[str], rows: Array) -> list[str]:
        """Return the likeliest text found for each row from the mean of z given some modalities, or of the prior."""
        if not given:
            return self._decode(name, self.model.sample_latent_prior(len(rows), "own", 0.0, self.generator))
        texts: list[str] = []
        for batch in self.rows.select(rows):
            available = send_to_device({name: batch[name] for name in given}, self.model.device)
            texts += self._decode(name, self.model.sample_latent(available, 1, 0.0, self.generator)[0])
        return texts

    def _decode(self, name: str, z: Tensor) -> list[str]:
        """Return the texts at points (n, Z); equal points are decoded once."""
        points, back = z.unique(dim=0, return_inverse=True)
        lines = [line.strip() for line in self.decode_text(self.model.decode(points, [name], self.text_options)[name])]
        return [lines[number] for number in back.tolist()]

    def labels_named(self, texts: Sequence[str], rows: Array) -> dict[str, list[str]]:
        """Return the names of the classes of those labels that real texts of rows name."""
        names = {label: cast(Label, self.model.latent_head.modalities[label]).names for label in self.rows.classes}
        return {
            label: classes
            for label, classes in names.items()
            if (named_class(texts, classes) == self.rows.classes[label][rows]).mean() >= NAMED_SHARE
        }

    def compare_labels(self, texts: Sequence[str], rows: Array, labels: Mapping[str, Sequence[str]]) -> dict[str, Any]:
        """Return how often texts of rows name the right class of each label, and of several at once."""
        if not labels:
            return {}
        truth = np.stack([self.rows.classes[label][rows] for label in labels], 1)
        named = np.stack([named_class(texts, classes) for classes in labels.values()], 1)
        right = (named == truth)[(truth >= 0).all(1)]
        return {"labels": dict(zip(labels, right.mean(0).tolist(), strict=True)), "all_labels": all_right(right)}

    def _problem_f1(self, learnt: list[list[str]], columns: list[list[str]], rows: Array) -> list[dict[str, Any]]:
        """Return the F1 of each list of texts of the rows, or nothing where no problems are known."""
        if self.problems is None:
            return [{} for _ in columns]
        texts = [text for of_row in learnt for text in of_row]
        targets = np.repeat(self.problems.learnt, [len(of_row) for of_row in learnt], axis=0)
        scores = bag_of_words_scores(texts, targets, [text for column in columns for text in column], tf_idf=True)
        decisions = scores.reshape(len(columns), len(rows), -1) >= 0.5
        return [multi_label_f1(decided, self.problems.judged[rows]) for decided in decisions]
