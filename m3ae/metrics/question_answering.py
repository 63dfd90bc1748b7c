"""Accuracy of answers, by kind of question, and the highest that a list of answers allows."""

from __future__ import annotations

from collections.abc import Collection, Iterable, Sequence

import datasets

from m3ae.data.answers import ANSWER_TYPES, count_covered, normalize_answer
from m3ae.metrics.base import InMemoryMetric


def is_right(prediction: str, accepted: Iterable[str]) -> bool:
    """Whether a prediction equals one of the accepted answers after normalisation; an empty one never does."""
    answer = normalize_answer(prediction)
    return answer != "" and answer in map(normalize_answer, accepted)


class VQAAccuracy(InMemoryMetric):
    """Share of the questions whose predicted answer is one of the accepted ones, after normalisation.

    Answers are compared as in the VQA evaluation (Antol et al. 2015; `m3ae.data.answers.normalize_answer`).

    Args of `compute`:
        predictions: An answer for each question.
        references: The accepted answers of each question, in any spelling.
        answer_types: "closed", "open", or an empty text where it is unknown.
        question_types: What is asked for, in the words of the data; an empty text where it is unknown.
        answer_list: The answers that the predictions were chosen from, to compute their ceiling; optional.

    Returns of `compute`:
        `accuracy` and the number of `questions`; the same of each group that has questions, as `closed_…`, `open_…`
        and `<question type>_type_…`. With `answer_list` also `ceiling`, `closed_ceiling` and `open_ceiling`: the share
        of the questions that one of its answers answers.
    """

    FEATURES = {  # noqa: RUF012 (declared as a class variable in the base class)
        "predictions": datasets.Value("string"),
        "references": datasets.List(datasets.Value("string")),
        "answer_types": datasets.Value("string"),
        "question_types": datasets.Value("string"),
    }

    def _compute(
        self,
        predictions: Sequence[str],
        references: Sequence[Sequence[str]],
        answer_types: Sequence[str],
        question_types: Sequence[str],
        answer_list: Collection[str] | None = None,
    ) -> dict[str, float]:
        if unknown := set(answer_types) - {*ANSWER_TYPES, ""}:
            raise ValueError(f"answer_types must be one of {ANSWER_TYPES} or empty, got {sorted(unknown)}")
        right = [is_right(*pair) for pair in zip(predictions, references, strict=True)]
        groups: dict[str, list[bool]] = {"": right}
        for answer_type in ANSWER_TYPES:
            groups[f"{answer_type}_"] = _chosen(right, answer_types, answer_type)
        for question_type in sorted(set(question_types) - {""}):
            groups[f"{question_type}_type_"] = _chosen(right, question_types, question_type)
        metrics: dict[str, float] = {}
        for prefix, own in groups.items():
            if own:
                metrics |= {f"{prefix}accuracy": sum(own) / len(own), f"{prefix}questions": len(own)}
        return metrics if answer_list is None else metrics | _ceilings(references, answer_types, answer_list)


def _chosen(right: Sequence[bool], types: Sequence[str], wanted: str) -> list[bool]:
    return [value for value, own in zip(right, types, strict=True) if own == wanted]


def _ceilings(
    references: Sequence[Sequence[str]], answer_types: Sequence[str], answer_list: Collection[str]
) -> dict[str, float]:
    rows = [
        {"answers": set(map(normalize_answer, accepted)) - {""}, "answer_type": answer_type}
        for accepted, answer_type in zip(references, answer_types, strict=True)
    ]
    coverage = count_covered(rows, set(map(normalize_answer, answer_list)))
    return {
        "ceiling" if name == "overall" else f"{name}_ceiling": counts["covered"] / counts["questions"]
        for name, counts in coverage.items()
        if counts["questions"]
    }
