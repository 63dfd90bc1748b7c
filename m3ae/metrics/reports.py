"""Metrics of generated reports against those that people wrote.

Shapes: N reports, A labels.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Sequence
from typing import NamedTuple

import numpy as np
from numpy.typing import ArrayLike, NDArray
from sacrebleu.metrics.chrf import CHRF

from m3ae.data.phantom.report import Factors, read_factors
from m3ae.metrics.classification import multi_label_f1
from m3ae.metrics.text import ORDERS, bleu, bleu_counts, exact_matches
from m3ae.words import split_words

References = Sequence[Sequence[str]]
Measure = Callable[[Sequence[str], References], ArrayLike]  # N texts and their references → a number for each
Values = dict[str, NDArray[np.float64]]
FACTORS = tuple(Factors.__dataclass_fields__)


class ReportScores(NamedTuple):
    """What is known of each of N reports, for the metrics of any of them.

    Attributes:
        values: Metric → (N,) values, whose mean is the metric; NaN does not count.
        counts: (N, 10) what BLEU counts.
        stated: (N, A) bool, whether a report states a label, and
        labels: (N, A) whether that is so, −100 = unknown; None where labels are not judged.
    """

    values: Values
    counts: NDArray[np.int64]
    stated: NDArray[np.bool_] | None = None
    labels: NDArray[np.int64] | None = None

    def metrics(self, rows: NDArray[np.intp] | slice = slice(None)) -> dict[str, float]:
        """Return the metrics of all reports, or of those at the given positions, with repetitions."""
        metrics = bleu(self.counts[rows])
        for name, column in self.values.items():
            known = column[rows][~np.isnan(column[rows])]
            metrics[name] = float(known.mean()) if len(known) else np.nan
        if self.stated is not None and self.labels is not None:
            f1 = multi_label_f1(self.stated[rows], self.labels[rows])
            metrics |= {f"label_{name}": value for name, value in f1.items()}
        return metrics


class ReportJudge:
    """Compares reports with references.

    Args:
        references: One or more right reports for each of N samples.
        factors: The factors of each sample, if the reports are on phantoms.
        read_labels: Texts → (N, A) bool which labels they state.
        labels: (N, A) which labels the samples have, −100 = unknown.
    """

    def __init__(
        self,
        references: References,
        *,
        factors: Sequence[Factors] | None = None,
        read_labels: Callable[[Sequence[str]], NDArray[np.bool_]] | None = None,
        labels: NDArray[np.int64] | None = None,
    ) -> None:
        self.references, self.factors, self.read_labels, self.labels = references, factors, read_labels, labels
        self._cider_d = CiderD(references)

    def score(self, texts: Sequence[str], *, registered: bool = True) -> ReportScores:
        """Compare N texts with the references.

        Args:
            texts: The texts.
            registered: Whether the metrics of `register_report_metric` are computed, too.

        Returns:
            BLEU; `chrf` (Popović 2015), the mean over reports; `rouge_l`; `cider_d`; `exact`; of phantoms
            `all_factors`, the share of reports whose factors are all right, and `<factor>_accuracy` where the sample
            has the factor; of labels `label_macro_f1` and `label_micro_f1`.
        """
        measures: dict[str, Measure] = {
            "chrf": chrf,
            "rouge_l": rouge_l,
            "cider_d": lambda texts, _: self._cider_d(texts),
            "exact": exact_matches,
            **(REPORT_METRICS if registered else {}),
        }
        values = {name: np.asarray(of(texts, self.references), dtype=float) for name, of in measures.items()}
        if self.factors is not None:
            values |= right_factors(texts, self.factors)
        stated = None if self.read_labels is None else self.read_labels(texts)
        return ReportScores(values, bleu_counts(texts, self.references), stated, self.labels)


def right_factors(texts: Sequence[str], factors: Sequence[Factors]) -> Values:
    """Return where the grammar of phantoms reads the right factors in N texts.

    Returns:
        `all_factors`, 1 where the text is of the grammar and states these factors and no others, else 0; and
        `<factor>_accuracy`, NaN where the sample lacks the factor, of factors that some have.
    """
    stated = [read_factors(text) for text in texts]
    values = {"all_factors": np.array([read == truth for read, truth in zip(stated, factors, strict=True)], float)}
    for name in FACTORS:
        truth = np.array([getattr(sample, name) for sample in factors], dtype=object)
        right = np.array([getattr(read, name, None) for read in stated], dtype=object) == truth
        if any(value is not None for value in truth):
            values[f"{name}_accuracy"] = np.where(truth == np.array(None), np.nan, right.astype(float))
    return values


def chrf(texts: Sequence[str], references: References) -> NDArray[np.float64]:
    """Return the character n-gram F-score (N,) of each text, 0 to 1, as sacrebleu computes it (Popović 2015)."""
    metric = CHRF()
    pairs = zip(texts, references, strict=True)
    return np.array([metric.sentence_score(text, [*accepted]).score / 100 for text, accepted in pairs])


def rouge_l(texts: Sequence[str], references: References) -> NDArray[np.float64]:
    """Return ROUGE-L (N,) of each text, 0 to 1: the F-score of the longest common subsequence of words (Lin 2004).

    Precision and recall weigh the same; of several references the best one counts.
    """
    pairs = zip(texts, references, strict=True)
    return np.array([max(_common_f1(_words(text), _words(right)) for right in accepted) for text, accepted in pairs])


def _common_f1(text: Sequence[str], reference: Sequence[str]) -> float:
    lengths = [0] * (len(reference) + 1)  # of the common subsequences of the words so far and of each start of it
    for word in text:
        row = [0]
        for position, other in enumerate(reference):
            row.append(lengths[position] + 1 if word == other else max(row[-1], lengths[position + 1]))
        lengths = row
    return 2 * lengths[-1] / max(len(text) + len(reference), 1)


class CiderD:
    """CIDEr-D (Vedantam et al. 2015), whose n-grams weigh the less the more of the N samples' references have them.

    With g_n(t) the counts of n-grams of a text times log(N / samples with the n-gram), |t| the number of pairs of
    neighbours in it, and σ = 6, a text c with references s has 10 times the mean over s and n = 1 … 4 of
    exp(−(|c| − |s|)² / 2σ²) · min(g_n(c), g_n(s)) · g_n(s) / (‖g_n(c)‖ · ‖g_n(s)‖).
    """

    def __init__(self, references: References, sigma: float = 6.0) -> None:
        self._references = [[_grams(_words(text)) for text in accepted] for accepted in references]
        self._sigma = sigma
        self._frequency = Counter(gram for counts in self._references for gram in set().union(*counts))

    def __call__(self, texts: Sequence[str]) -> NDArray[np.float64]:
        """Return the score (N,) of each text."""
        pairs = zip(texts, self._references, strict=True)
        return np.array([self._score(_grams(_words(text)), references) for text, references in pairs])

    def _score(self, text: Counter[tuple[str, ...]], references: Sequence[Counter[tuple[str, ...]]]) -> float:
        vector, norms, length = self._weigh(text)
        total = 0.0
        for reference in references:
            others, other_norms, other_length = self._weigh(reference)
            products = dict.fromkeys(ORDERS, 0.0)
            for gram, weight in vector.items():
                products[len(gram)] += min(weight, others.get(gram, 0.0)) * others.get(gram, 0.0)
            cosines = sum(products[n] / (norms[n] * other_norms[n]) for n in ORDERS if norms[n] * other_norms[n])
            total += cosines * np.exp(-((length - other_length) ** 2) / (2 * self._sigma**2))
        return 10 * total / len(ORDERS) / len(references)

    def _weigh(self, counts: Counter[tuple[str, ...]]) -> tuple[dict[tuple[str, ...], float], dict[int, float], int]:
        """Return weighted n-grams, the norm of those of each length, and the number of pairs, which is the length."""
        size = len(self._references)
        vector = {gram: count * np.log(size / max(1, self._frequency[gram])) for gram, count in counts.items()}
        squares = dict.fromkeys(ORDERS, 0.0)
        for gram, weight in vector.items():
            squares[len(gram)] += weight**2
        pairs = sum(count for gram, count in counts.items() if len(gram) == 2)
        return vector, {n: square**0.5 for n, square in squares.items()}, pairs


def _grams(words: Sequence[str]) -> Counter[tuple[str, ...]]:
    return Counter(tuple(words[i : i + n]) for n in ORDERS for i in range(len(words) - n + 1))


def _words(text: str) -> list[str]:
    return split_words(text.lower())


REPORT_METRICS: dict[str, Measure] = {}


def register_report_metric(name: str, measure: Measure) -> None:
    """Register a metric of reports, such as one that needs RadGraph or CheXbert.

    Args:
        name: Name of the metric, which is the mean over reports.
        measure: Takes N texts and the references of each, returns a value (N,) for each text.
    """
    REPORT_METRICS[name] = measure
