"""The SLAKE reader on generated folders in the published format."""

import json
from collections import Counter
from pathlib import Path
from typing import Any

import pytest
from PIL import Image

from m3ae.data.prepare import prepare
from m3ae.data.prepared import Rejected
from m3ae.data.questions import normalize_answer
from m3ae.data.sources import slake

RECORD = {
    "img_id": 1,
    "img_name": "xmlab1/source.jpg",
    "question": "What modality is used to take this image?",
    "answer": "MRI",
    "q_lang": "en",
    "location": "Abdomen",
    "modality": "MRI",
    "answer_type": "OPEN",
    "base_type": "vqa",
    "content_type": "Modality",
    "triple": ["vhead", "_", "_"],
    "qid": 0,
}
CHINESE = RECORD | {"qid": 1, "q_lang": "zh", "question": "这张图片的成像方式是什么?", "answer": "核磁共振"}
TEST = RECORD | {"qid": 11934, "img_name": "xmlab2/source.jpg", "answer": "Yes", "answer_type": "CLOSED"}


def make_source(folder: Path, train: list[Any] | None = None, validation: str = "validate.json") -> Path:
    for name in ("xmlab1", "xmlab2", "xmlab3"):
        (folder / "imgs" / name).mkdir(parents=True)
        Image.new("L", (8, 8)).save(folder / "imgs" / name / "source.jpg")
    splits = {
        "train.json": train or [RECORD, CHINESE],
        validation: [RECORD | {"qid": 9835, "img_name": "xmlab3/source.jpg"}],
        "test.json": [TEST],
    }
    for name, records in splits.items():
        (folder / name).write_text(json.dumps(records, ensure_ascii=False), encoding="utf-8")
    return folder


def ids(source: Path, **options: Any) -> list[str]:
    return [row["id"] for row in slake.rows(source, **options) if isinstance(row, dict)]


def test_a_question_becomes_a_row(tmp_path: Path) -> None:
    source = make_source(tmp_path / "slake")
    rejected, row, *_ = slake.rows(source)
    assert rejected == Rejected("1", "language not chosen", "train", detail="zh")
    assert row == {
        "id": "0",
        "split": "train",
        "image": source / "imgs" / "xmlab1" / "source.jpg",
        "question": "What modality is used to take this image?",
        "answer": "mri",
        "answers": ["mri"],
        "answer_raw": "MRI",
        "answer_type": "open",
        "question_type": "modality",
        "language": "en",
        "modality": "MRI",
        "location": "Abdomen",
        "base_type": "vqa",
        "triple": ["vhead", "_", "_"],
    }


def test_the_language_is_an_option(tmp_path: Path) -> None:
    source = make_source(tmp_path / "slake")
    assert ids(source) == ["0", "9835", "11934"]
    assert ids(source, language="zh") == ["1"]


def test_with_both_languages_an_image_is_in_one_split(tmp_path: Path) -> None:
    chinese = [CHINESE | {"qid": qid, "img_name": f"xmlab{qid}/source.jpg"} for qid in (2, 3)]
    source = make_source(tmp_path / "slake", [RECORD, CHINESE | {"img_name": "xmlab2/source.jpg"}, *chinese])
    validation = [CHINESE | {"qid": 4}, chinese[1] | {"qid": 5}]
    (source / "validate.json").write_text(json.dumps(validation, ensure_ascii=False), encoding="utf-8")
    splits = {row["id"]: row["split"] for row in slake.rows(source, language="both") if isinstance(row, dict)}
    assert splits == {"0": "train", "4": "train", "1": "test", "2": "test", "11934": "test"} | dict.fromkeys(
        ["3", "5"], "validation"
    )


@pytest.mark.real_data
def test_no_image_is_in_two_splits_of_the_real_set(shared: Path) -> None:
    splits: dict[Path, set[str]] = {}
    for row in slake.rows(shared / "data" / "slake", language="both"):
        if isinstance(row, dict):
            splits.setdefault(row["image"], set()).add(row["split"])
    assert Counter(map(tuple, splits.values())) == {("train",): 450, ("validation",): 96, ("test",): 96}


def test_the_other_name_of_the_validation_set_is_understood(tmp_path: Path) -> None:
    assert ids(make_source(tmp_path / "slake", validation="validation.json")) == ["0", "9835", "11934"]


def test_every_broken_row_is_listed(tmp_path: Path) -> None:
    train = [
        RECORD | {"triple": None},
        RECORD | {"qid": 2, "question": None},
        RECORD | {"qid": 3, "q_lang": None},
        RECORD | {"qid": 4, "answer": "?"},
        RECORD | {"qid": None},
    ]
    assert [entry for entry in slake.rows(make_source(tmp_path / "slake", train)) if isinstance(entry, Rejected)] == [
        Rejected("2", "question empty", "train"),
        Rejected("3", "language not chosen", "train"),
        Rejected("4", "answer empty", "train", detail="?"),
        Rejected("train.json, record 5", "id missing", "train"),
    ]


def test_the_folder_is_prepared_with_its_answers(tmp_path: Path) -> None:
    source = make_source(tmp_path / "slake")
    manifest = prepare("slake", tmp_path / "out", source=source, num_workers=1, language="both", answers_from="all")
    assert {name: info.rows for name, info in manifest.splits.items()} == {"train": 2, "validation": 1, "test": 1}
    assert manifest.rejected == {}
    answers = json.loads((tmp_path / "out" / "answers.json").read_text(encoding="utf-8"))
    assert (answers["answers_from"], answers["answers"]) == ("all", ["mri", "核磁共振", "yes"])


def test_the_published_list_has_every_answer_where_it_occurs_first(tmp_path: Path) -> None:
    train = [RECORD | {"img_name": "xmlab2/source.jpg"}, CHINESE, RECORD | {"qid": 2, "answer": "Heart, Liver"}]
    train += [RECORD | {"qid": 3, "answer": ""}, RECORD | {"qid": 4, "img_name": "absent.jpg", "answer": "Cancer"}]
    train += [RECORD | {"qid": 5, "answer": "heart; liver"}, RECORD | {"qid": 6, "answer": "heart; liver"}]
    source = make_source(tmp_path / "slake", train)
    prepare("slake", tmp_path / "out", source=source, num_workers=1, answers_from="all")
    answers = json.loads((tmp_path / "out" / "answers.json").read_text())
    assert answers["counts"] == {"mri": 2, "heart liver": 3, "": 1, "cancer": 1, "yes": 1}
    assert (answers["answers"], answers["order"]) == (["mri", "heart liver", "", "cancer", "yes"], "published")
    assert answers["coverage"]["test"]["overall"] == {"questions": 1, "covered": 1}
    prepare("slake", tmp_path / "train", source=source, num_workers=1)
    from_train = json.loads((tmp_path / "train" / "answers.json").read_text())
    assert from_train["answers"] == ["heart liver", "mri"] and "order" not in from_train, "the most frequent first"


@pytest.mark.real_data
def test_the_published_list_has_222_answers(shared: Path) -> None:
    answers = [*dict.fromkeys(map(normalize_answer, slake.published_answers(shared / "data" / "slake")))]
    assert len(answers) == 222 and "" in answers
    assert answers[:4] == ["mri", "abdomen", "t2", "yes"]


@pytest.mark.parametrize("missing", ["", "train.json", "validate.json", "test.json"])
def test_a_missing_part_is_named(tmp_path: Path, missing: str) -> None:
    source = make_source(tmp_path / "slake")
    (source / missing).rename(tmp_path / "elsewhere")
    with pytest.raises(FileNotFoundError, match=str(source / missing)):
        list(slake.rows(source))
