"""VQA-RAD (Lau et al. 2018): clinicians' questions about 314 radiology images.

Layout: `trainset.json`, `testset.json` and `images/`. There is no validation set; a `valset.json`, which the published
M3AE expects and which was a copy of the test set, is not read. All 203 images of the published test set are in its
train set, too.
"""

from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, Literal

import datasets

from m3ae.data import questions
from m3ae.data.prepared import Rejected
from m3ae.data.rows import Row
from m3ae.data.sources._common import STRING, STRINGS, hash_split
from m3ae.data.tables import require_folder

LEFT_OUT_BY_CHOICE = ("image in the test split",)

FEATURES = datasets.Features(
    {
        **questions.QUESTION_FEATURES,
        "question_types": STRINGS,
        "phrase_type": STRING,
        "image_organ": STRING,
    }
)

MISSPELT_TYPES = {"atrib": "attrib", "prse": "pres"}


def rows(
    source: Path,
    *,
    split: Literal["published", "image_disjoint"] = "published",
    carve_validation: bool = True,
    answers_from: Literal["train", "all"] = "train",
) -> Iterator[Row | Rejected]:
    """Yield one row per question, in the order of the images.

    The test split is always the published one, so that results on it can be compared. Validation is a tenth of train
    that resembles test: other questions about the images of train, or questions about other images.

    Args:
        source: the folder with trainset.json, testset.json and images.
        split: published, where images of test and validation are in train, too; or image_disjoint, where questions of
            the train set about images of test are left out, and no image is in two splits.
        carve_validation: off leaves the published train set whole, and no validation split.
        answers_from: splits that the list of answers is made from: train, or all of them, test included, which gives
            the list of the published M3AE in its order.
    """
    require_folder(source, "the VQA-RAD folder with trainset.json, testset.json and images")
    train, test = (list(questions.read_records(source / f"{name}set.json")) for name in ("train", "test"))
    test_images = {questions.cell_text(record, "image_name") for _, record in test}
    kept_apart = test_images if split == "image_disjoint" else set()
    by = "image_name" if split == "image_disjoint" else "qid"
    entries = [
        _row(source, name, record, _train_split(record, by) if carve_validation else "train", kept_apart)
        for name, record in train
    ]
    entries += [_row(source, name, record, "test", kept_apart=set()) for name, record in test]
    yield from questions.by_image(entries)


def extras(rows: dict[str, list[Row]], options: Mapping[str, Any]) -> dict[str, Any]:
    """Return the list of answers as the contents of `answers.json`, see `m3ae.data.questions.describe_answers`."""
    published = published_answers(options["source"]) if options["answers_from"] == "all" else None
    return {questions.ANSWERS_FILE: questions.describe_answers(rows, published)}


def published_answers(source: Path) -> list[str]:
    """Return the answers of train and test in the published order; the published validation set repeats test."""
    records = [
        record for name in ("train", "test") for _, record in questions.read_records(source / f"{name}set.json")
    ]
    return [questions.cell_text(record, "answer") for record in records if "answer" in record]


def _train_split(record: dict[str, Any], by: str) -> str:
    return "validation" if hash_split(questions.cell_text(record, by)) == "validation" else "train"


def _row(source: Path, name: str, record: dict[str, Any], split: str, kept_apart: set[str]) -> Row | Rejected:
    image, answer = questions.cell_text(record, "image_name"), questions.cell_text(record, "answer")
    if not (qid := questions.cell_text(record, "qid")):
        return Rejected(name, "id missing", split)
    if image in kept_apart:
        return Rejected(qid, "image in the test split", split, detail=image)
    types = [kind.strip() for kind in questions.cell_text(record, "question_type").lower().split(",")]
    types = [MISSPELT_TYPES.get(kind, kind) for kind in types]
    return questions.question_row(
        qid,
        split,
        source / "images" / image,
        questions.cell_text(record, "question"),
        answer_raw=answer,
        accepted=[answer],
        answer_type=questions.cell_text(record, "answer_type").lower(),
        question_type=types[0],
        question_types=types,
        phrase_type=questions.cell_text(record, "phrase_type"),
        image_organ=questions.cell_text(record, "image_organ"),
    )
