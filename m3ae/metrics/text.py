"""Metrics of generated texts against those that were expected."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import zip_longest
from typing import Any

import numpy as np
from numpy.typing import NDArray
from sacrebleu.metrics.bleu import BLEU

from m3ae.data.words import name_pattern, space_words

ORDERS = (1, 2, 3, 4)


def text_metrics(texts: Sequence[str], references: Sequence[Sequence[str]]) -> dict[str, float]:
    """Return BLEU and what else is told by comparing N texts with what they should be.

    Args:
        texts: N texts.
        references: For each, one or more that are right.

    Returns:
        `bleu_1` to `bleu_4`, 0 to 1: of the corpus (Papineni et al. 2002), in lower case, with sacrebleu's default
        tokenizer `13a`, for which each character of a script without blanks is a token, not smoothed, n-grams up to
        that length; `exact`, the share of texts equal to a reference but for white space; `distinct`, how many
        different texts there are in relation to N.

    Raises:
        ValueError: There are no texts, or not as many lists of references.
    """
    if not texts or len(texts) != len(references) or not all(references):
        raise ValueError(
            f"expected texts with one reference or more each, got {len(texts)} texts and {len(references)} lists of "
            f"references, {sum(not own for own in references)} of them empty"
        )
    # sacrebleu wants the first references of all texts, then the second ones of those that have some, and so on.
    nested: list[Any] = [*zip_longest(*([space_words(text) for text in own] for own in references))]
    spaced = [space_words(text) for text in texts]
    metrics = {}
    for order in ORDERS:
        metric = BLEU(lowercase=True, max_ngram_order=order, smooth_method="none", force=True)
        metrics[f"bleu_{order}"] = metric.corpus_score(spaced, nested).score / 100
    plain = [_plain(text) for text in texts]
    equal = [text in map(_plain, own) for text, own in zip(plain, references, strict=True)]
    return metrics | {"exact": sum(equal) / len(texts), "distinct": len(set(plain)) / len(texts)}


def told_class(texts: Sequence[str], names: Sequence[str]) -> NDArray[np.int64]:
    """Return the number (N,) of the class that each of N texts names, −1 where it names none or several.

    Args:
        texts: N texts.
        names: Of the classes; a text names one that stands in it as a word, in upper or lower case.
    """
    patterns = [name_pattern([name]) for name in names]
    named = np.array([[pattern.search(text) is not None for pattern in patterns] for text in texts])
    found: NDArray[np.int64] = np.where(named.sum(1) == 1, named.argmax(1), -1)
    return found


def _plain(text: str) -> str:
    return " ".join(text.split())
