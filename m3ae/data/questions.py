"""Rows of question-answering sources: the columns that all of them have, and what makes a row unusable."""

from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any

import datasets

from m3ae.data.answers import ANSWER_TYPES, normalize_answer
from m3ae.data.prepared import Rejected
from m3ae.data.rows import Row
from m3ae.data.tables import read_json

SPLITS = ("train", "validation", "test")

# answers are compared by `answer` and `answers`, both normalised; `answer_raw` is what was published
QUESTION_FEATURES = {
    "id": datasets.Value("string"),
    "split": datasets.Value("string"),
    "image": datasets.Image(),
    "question": datasets.Value("string"),
    "answer": datasets.Value("string"),
    "answers": datasets.List(datasets.Value("string")),
    "answer_raw": datasets.Value("string"),
    "answer_type": datasets.Value("string"),
    "question_type": datasets.Value("string"),
}


def read_records(path: Path) -> Iterator[tuple[str, dict[str, Any]]]:
    """Yield the place of every record of a JSON list, to name it by, and the record; empty if it is not an object.

    Raises:
        FileNotFoundError: there is no such file.
        ValueError: it is not JSON, or not a list of anything.
    """
    records = read_json(path)
    if not isinstance(records, list) or not records:
        raise ValueError(f"{path} holds no list of questions: expected [{{...}}, ...]")
    for number, record in enumerate(records, start=1):
        yield f"{path.name}, record {number}", record if isinstance(record, dict) else {}


def cell_text(record: dict[str, Any], key: str) -> str:
    """Return a cell as text with white space collapsed; empty if it is missing or no text or number."""
    cell = record.get(key)
    return " ".join(str(cell).split()) if isinstance(cell, str | int | float) and cell == cell else ""


def question_row(
    row_id: str,
    split: str,
    image: Path,
    question: str,
    answer_raw: str,
    accepted: Sequence[str],
    answer_type: str,
    question_type: str,
    **own: Any,
) -> Row | Rejected:
    """Return a row, or why there is none.

    Args:
        row_id: unique in the source.
        split: train, validation or test.
        image: file that the question is about.
        question: with white space collapsed.
        answer_raw: answer as published.
        accepted: every right answer, the first of which becomes `answer`.
        answer_type: "closed" or "open".
        question_type: what is asked for, in the words of the source.
        **own: further columns of the source.
    """
    answers = list(dict.fromkeys(filter(None, map(normalize_answer, accepted))))
    if not question:
        return Rejected(row_id, "question empty", split)
    if not answers:
        return Rejected(row_id, "answer empty", split, detail=answer_raw or None)
    if answer_type not in ANSWER_TYPES:
        return Rejected(row_id, "answer type neither closed nor open", split, detail=answer_type or None)
    return {
        "id": row_id,
        "split": split,
        "image": image,
        "question": question,
        "answer": answers[0],
        "answers": answers,
        "answer_raw": answer_raw,
        "answer_type": answer_type,
        "question_type": question_type,
        **own,
    }


def by_image(entries: Iterable[Row | Rejected]) -> list[Row | Rejected]:
    """Sort by split, and so that the questions about an image are on end: it is decoded once for all of them."""
    return sorted(entries, key=_split_and_image)


def _split_and_image(entry: Row | Rejected) -> tuple[int, str]:
    if isinstance(entry, Rejected):
        return -1, ""
    return SPLITS.index(entry["split"]), str(entry["image"])
