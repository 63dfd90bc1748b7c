"""Metrics of answers and of longer texts against those that were expected."""

from __future__ import annotations

from collections.abc import Collection, Iterable, Sequence

import numpy as np
from numpy.typing import NDArray
from sacrebleu.metrics.bleu import BLEU

from m3ae.data.questions import ANSWER_TYPES, count_covered, normalize_answer
from m3ae.words import name_pattern, space_words

ORDERS = (1, 2, 3, 4)


def is_right(prediction: str, accepted: Iterable[str]) -> bool:
    """Whether a prediction equals one of the accepted answers after normalisation; an empty one never does."""
    answer = normalize_answer(prediction)
    return answer != "" and answer in map(normalize_answer, accepted)


def vqa_accuracy(
    predictions: Sequence[str],
    references: Sequence[Sequence[str]],
    answer_types: Sequence[str],
    question_types: Sequence[str],
    answer_list: Collection[str] | None = None,
) -> dict[str, float]:
    """Return the share of N questions whose predicted answer is one of the accepted ones, after normalisation.

    Answers are compared as in the VQA evaluation (Antol et al. 2015; `m3ae.data.questions.normalize_answer`).

    Args:
        predictions: An answer for each question.
        references: The accepted answers of each question, in any spelling.
        answer_types: "closed", "open", or an empty text where the type is unknown.
        question_types: What is asked for, in the words of the data; an empty text where that is unknown.
        answer_list: The answers that the predictions were chosen from, to compute their ceiling.

    Returns:
        `accuracy` and the number of `questions`; both of each group that has questions, as `closed_…`, `open_…` and
        `<question type>_type_…`. With `answer_list` also `ceiling`, `closed_ceiling` and `open_ceiling`: the share of
        the questions that one of its answers answers.

    Raises:
        ValueError: There are no questions, or a type of answers is unknown.
    """
    if not len(predictions):
        raise ValueError("got no samples, expected at least one prediction and its reference. Is the split empty?")
    if unknown := set(answer_types) - {*ANSWER_TYPES, ""}:
        raise ValueError(f"answer_types must be one of {ANSWER_TYPES} or empty, got {sorted(unknown)}")
    right = np.array([is_right(*pair) for pair in zip(predictions, references, strict=True)])
    groups = {"": right}
    groups |= {f"{name}_": right[np.array(answer_types) == name] for name in ANSWER_TYPES}
    groups |= {f"{name}_type_": right[np.array(question_types) == name] for name in sorted({*question_types} - {""})}
    metrics: dict[str, float] = {}
    for prefix, hits in groups.items():
        if len(hits):
            metrics |= {f"{prefix}accuracy": float(hits.mean()), f"{prefix}questions": len(hits)}
    if answer_list is not None:
        rows = [
            {"answers": set(map(normalize_answer, accepted)) - {""}, "answer_type": answer_type}
            for accepted, answer_type in zip(references, answer_types, strict=True)
        ]
        for name, counts in count_covered(rows, set(map(normalize_answer, answer_list))).items():
            if counts["questions"]:
                ceiling = "ceiling" if name == "overall" else f"{name}_ceiling"
                metrics[ceiling] = counts["covered"] / counts["questions"]
    return metrics


def text_metrics(texts: Sequence[str], references: Sequence[Sequence[str]]) -> dict[str, float]:
    """Return BLEU and other comparisons of N texts with what they should be.

    Args:
        texts: N texts.
        references: One or more right texts for each.

    Returns:
        `bleu_1` to `bleu_4`, see `bleu`; `exact`, the share of texts equal to a reference but for white space;
        `distinct`, the number of different texts in relation to N.

    Raises:
        ValueError: There are no texts, or not as many lists of references.
    """
    if not texts or len(texts) != len(references) or not all(references):
        raise ValueError(
            f"expected texts with one reference or more each, got {len(texts)} texts and {len(references)} lists of "
            f"references, {sum(not accepted for accepted in references)} of them empty"
        )
    equal = exact_matches(texts, references)
    return bleu(bleu_counts(texts, references)) | {"exact": float(equal.mean()), "distinct": distinct(texts)}


def bleu_counts(texts: Sequence[str], references: Sequence[Sequence[str]]) -> NDArray[np.int64]:
    """Return what BLEU counts of each of N texts, (N, 10): right n-grams by length, all, words, expected words."""
    metric = BLEU(lowercase=True, smooth_method="none", effective_order=True)  # its score is not used
    scores = [
        metric.sentence_score(space_words(text), [*map(space_words, accepted)])
        for text, accepted in zip(texts, references, strict=True)
    ]
    return np.array([[*score.counts, *score.totals, score.sys_len, score.ref_len] for score in scores])


def bleu(counts: NDArray[np.int64]) -> dict[str, float]:
    """Return `bleu_1` to `bleu_4`, 0 to 1, of a corpus whose texts have these counts (N, 10) (Papineni et al. 2002).

    BLEU_k = min(1, exp(1 − expected / written words)) · (p_1 · … · p_k)^(1/k), in lower case, with sacrebleu's default
    tokenizer `13a`, for which each character of a script without blanks is a token, not smoothed.
    """
    right, (written, expected) = counts.sum(0)[:8].reshape(2, -1).astype(float), counts.sum(0)[8:]
    precisions = right[0] / np.maximum(right[1], 1)
    penalty = np.exp(min(0.0, 1 - expected / written)) if written else 0.0
    means = (np.prod(precisions[:order]) ** (1 / order) for order in ORDERS)
    return {f"bleu_{order}": float(penalty * mean) for order, mean in zip(ORDERS, means, strict=True)}


def exact_matches(texts: Sequence[str], references: Sequence[Sequence[str]]) -> NDArray[np.bool_]:
    """Return which of N texts equal one of their references but for white space."""
    pairs = zip(texts, references, strict=True)
    return np.array([_plain(text) in map(_plain, accepted) for text, accepted in pairs])


def distinct(texts: Sequence[str]) -> float:
    """Return the number of different texts in relation to their number."""
    return len({_plain(text) for text in texts}) / len(texts)


def named_class(texts: Sequence[str], names: Sequence[str]) -> NDArray[np.int64]:
    """Return the number (N,) of the class that each of N texts names, −1 where it names none or several.

    Args:
        texts: N texts.
        names: Names of the classes; a text names one that stands in it as a word, in upper or lower case.
    """
    patterns = [name_pattern([name]) for name in names]
    named = np.array([[pattern.search(text) is not None for pattern in patterns] for text in texts])
    classes: NDArray[np.int64] = np.where(named.sum(1) == 1, named.argmax(1), -1)
    return classes


def _plain(text: str) -> str:
    return " ".join(text.split())
