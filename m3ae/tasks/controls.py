"""Controls beside a model's results: labels by frequency, by words, or by how images look, of training rows."""

from __future__ import annotations

import warnings
from collections import Counter
from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image
from sklearn.exceptions import ConvergenceWarning
from sklearn.feature_extraction.text import CountVectorizer, TfidfVectorizer
from sklearn.linear_model import LogisticRegression

from m3ae.words import split_words

LOOK = 24  # side of the thumbnails by which images are compared
NEIGHBOURS = 5


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


def look(image: Image.Image | None) -> NDArray[np.float32]:
    """Return what a thumbnail shows (F,): grey values without mean and contrast, and how coloured it is."""
    if image is None:
        return np.zeros(LOOK**2 + 1, np.float32)
    pixels = np.asarray(image.convert("RGB").resize((LOOK, LOOK), Image.Resampling.BILINEAR), np.float32) / 255
    grey = pixels.mean(2) - pixels.mean()
    colour = 3 * np.ptp(pixels, axis=2).mean()
    return np.append(grey / max(float(np.linalg.norm(grey)), 1e-6), colour).astype(np.float32)


def nearest_labels(
    looks: NDArray[np.float32],
    labels: Sequence[str],
    groups: Sequence[Sequence[str]],
    new_looks: NDArray[np.float32],
    new_groups: Sequence[Sequence[str]],
) -> list[str]:
    """Answer each question by a vote of the training questions of its group whose images look most like its own.

    Args:
        looks: (n, F) what the images of the training questions look like.
        labels: Their answers.
        groups: The groups of each training question, such as its wording and its type.
        new_looks: (m, F) what the images of the questions look like.
        new_groups: The groups of each question, the narrowest first; the first that training knows counts.
    """
    members: dict[str, list[int]] = {}
    for number, names in enumerate(groups):
        for name in names:
            members.setdefault(name, []).append(number)
    answers = []
    for image, names in zip(new_looks, new_groups, strict=True):
        group = np.array(next((members[name] for name in names if name in members), range(len(labels))))
        distances = np.square(looks[group] - image).sum(1)
        votes = Counter(labels[number] for number in group[np.argsort(distances, kind="stable")[:NEIGHBOURS]])
        answers.append(votes.most_common(1)[0][0])  # of equally frequent ones, the nearest
    return answers


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
