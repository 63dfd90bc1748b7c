"""SLAKE (Liu et al. 2021): questions in English and Chinese about radiology images, some with a knowledge triple.

Layout: `train.json`, `validate.json` (also called `validation.json`), `test.json` and `imgs/xmlabN/source.jpg`.
"""

from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, Literal

import datasets

from m3ae.data import questions
from m3ae.data.prepared import Rejected
from m3ae.data.rows import Row
from m3ae.data.sources._common import STRING, STRINGS
from m3ae.data.tables import require_folder

LEFT_OUT_BY_CHOICE = ("language not chosen",)

FEATURES = datasets.Features(
    {
        **questions.QUESTION_FEATURES,
        **dict.fromkeys(("language", "modality", "location", "base_type"), STRING),
        "triple": STRINGS,
    }
)

LANGUAGES = {"en": ("en",), "zh": ("zh",), "both": ("en", "zh")}


def rows(
    source: Path,
    *,
    language: Literal["en", "zh", "both"] = "en",
    answers_from: Literal["train", "all"] = "train",
) -> Iterator[Row | Rejected]:
    """Yield one row per question, in the order of the images; `question_type` is the published `content_type`.

    Args:
        source: the folder with train.json, validate.json, test.json and imgs.
        language: language of the questions: en, zh or both. The published splits differ by language, so that 142 of
            180 test images are for training in the other one: with both, each image is in the split of its English
            questions.
        answers_from: splits that the list of answers is made from: train, or all of them, test included, which gives
            the list of the published M3AE in its order.
    """
    require_folder(source, "the SLAKE folder with train.json, validate.json, test.json and imgs")
    records = [(split, *entry) for split, path in _files(source) for entry in questions.read_records(path)]
    split_of = _splits_by_image(records) if language == "both" else {}
    yield from questions.by_image(
        _row(source, name, record, split_of.get(questions.cell_text(record, "img_name"), split), LANGUAGES[language])
        for split, name, record in records
    )


def extras(rows: dict[str, list[Row]], options: Mapping[str, Any]) -> dict[str, Any]:
    """Return the list of answers as the contents of `answers.json`, see `m3ae.data.questions.describe_answers`."""
    published = published_answers(options["source"], options["language"]) if options["answers_from"] == "all" else None
    return {questions.ANSWERS_FILE: questions.describe_answers(rows, published)}


def published_answers(source: Path, language: str = "en") -> list[str]:
    """Return the answers of all splits in the published order; one of them, to question 1622, is empty."""
    records = [record for _, path in _files(source) for _, record in questions.read_records(path)]
    return [questions.cell_text(record, "answer") for record in records if _language(record) in LANGUAGES[language]]


def _files(source: Path) -> list[tuple[str, Path]]:
    validation = source / "validation.json"
    if not validation.exists():
        validation = source / "validate.json"
    return [("train", source / "train.json"), ("validation", validation), ("test", source / "test.json")]


def _language(record: dict[str, Any]) -> str:
    return questions.cell_text(record, "q_lang").lower()


def _splits_by_image(records: list[tuple[str, str, dict[str, Any]]]) -> dict[str, str]:
    """Return the split of every image: that of its English questions, else the one that is held out furthest."""
    english_last = sorted(records, key=lambda entry: _language(entry[2]) == "en")
    return {questions.cell_text(record, "img_name"): split for split, _, record in english_last}


def _row(source: Path, name: str, record: dict[str, Any], split: str, languages: tuple[str, ...]) -> Row | Rejected:
    if not (qid := questions.cell_text(record, "qid")):
        return Rejected(name, "id missing", split)
    language = _language(record)
    if language not in languages:
        return Rejected(qid, "language not chosen", split, detail=language or None)
    answer = questions.cell_text(record, "answer")
    triple = record.get("triple")
    return questions.question_row(
        qid,
        split,
        source / "imgs" / questions.cell_text(record, "img_name"),
        questions.cell_text(record, "question"),
        answer_raw=answer,
        accepted=[answer],
        answer_type=questions.cell_text(record, "answer_type").lower(),
        question_type=questions.cell_text(record, "content_type").lower(),
        language=language,
        modality=questions.cell_text(record, "modality"),
        location=questions.cell_text(record, "location"),
        base_type=questions.cell_text(record, "base_type"),
        triple=[str(term) for term in triple] if isinstance(triple, list) else None,
    )
