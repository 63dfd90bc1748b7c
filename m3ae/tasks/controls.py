"""Controls beside a model's results: labels by frequency or by words, learnt from training rows without images."""

from __future__ import annotations

import warnings
from collections import Counter
from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray
from sklearn.exceptions import ConvergenceWarning
from sklearn.feature_extraction.text import CountVectorizer, TfidfVectorizer
from sklearn.linear_model import LogisticRegression

from m3ae.words import split_words


def majority(labels: Sequence[str]) -> str:
    """Return the most frequent label; of equally frequent ones, the first by alphabet."""
    counts = Counter(labels)
    return min(counts, key=lambda label: (-counts[label], label))


def majority_by_type(labels: Sequence[str], types: Sequence[str], new_types: Sequence[str]) -> list[str]:
    """Answer each question by the most frequent answer to training questions of its type.

    Args:
        labels: Answers to the training questions.
        types: Types of the training questions.
        new_types: Types of the questions; an unknown type gets the most frequent answer of all.
    """
    by_type: dict[str, list[str]] = {}
    for label, kind in zip(labels, types, strict=True):
        by_type.setdefault(kind, []).append(label)
    answers = {kind: majority(group) for kind, group in by_type.items()}
    overall = majority(labels)
    return [answers.get(kind, overall) for kind in new_types]


def bag_of_words(texts: Sequence[str], labels: Sequence[str], new_texts: Sequence[str]) -> list[str]:
    """Return the likeliest label of each new text, by logistic regression on the words of labelled texts."""
    words = _Words(texts)
    if words.counts is None or len(set(labels)) == 1:
        return [majority(labels)] * len(new_texts)
    return [str(label) for label in _fit(words.counts, np.array(labels)).predict(words.of(new_texts))]


def bag_of_words_scores(
    texts: Sequence[str], targets: NDArray[Any], new_texts: Sequence[str], *, tf_idf: bool = False
) -> NDArray[Any]:
    """Return the probability (m, A) of each of several labels for m texts, by a regression for each label.

    Args:
        texts: n labelled texts.
        targets: (n, A) 1 = has the label, 0 = has not, anything else is unknown and left out for that label.
        new_texts: The m texts.
        tf_idf: Whether rare words count more than words of many texts.
    """
    return LabelReader(texts, targets, tf_idf=tf_idf).scores(new_texts)


class LabelReader:
    """A regression for each of A labels on the words of n texts; the arguments are those of `bag_of_words_scores`."""

    def __init__(self, texts: Sequence[str], targets: NDArray[Any], *, tf_idf: bool = False) -> None:
        self._words = words = _Words(texts, tf_idf)
        self._models: list[LogisticRegression | float] = []
        for truth in targets.T:
            known = np.isin(truth, (0, 1))
            if words.counts is None or len(set(truth[known])) < 2:
                self._models.append(float(truth[known].mean()) if known.any() else 0.0)
            else:
                self._models.append(_fit(words.counts[known], truth[known]))

    def scores(self, texts: Sequence[str]) -> NDArray[Any]:
        """Return the probability (m, A) of each label for m texts."""
        counts = self._words.of(texts) if self._words.counts is not None else None
        columns = [
            np.full(len(texts), model) if isinstance(model, float) else model.predict_proba(counts)[:, 1]
            for model in self._models
        ]
        return np.stack(columns, 1)


class _Words:
    """Counts of the words of texts, and of the same words in others; `counts` is None if there are no words."""

    def __init__(self, texts: Sequence[str], tf_idf: bool = False) -> None:
        self._vectorizer = (TfidfVectorizer if tf_idf else CountVectorizer)(tokenizer=split_words, token_pattern=None)
        try:
            self.counts = self._vectorizer.fit_transform(texts)
        except ValueError:  # an empty vocabulary
            self.counts = None

    def of(self, texts: Sequence[str]) -> Any:
        return self._vectorizer.transform(texts)


def _fit(counts: Any, labels: NDArray[Any]) -> LogisticRegression:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", ConvergenceWarning)  # the last digits of a control are of no interest
        return LogisticRegression(C=10, max_iter=1000).fit(counts, labels)
