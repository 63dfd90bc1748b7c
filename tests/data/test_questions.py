"""What all question-answering sources share."""

import json
from pathlib import Path
from typing import Any

import pytest

from m3ae.data.prepared import Rejected
from m3ae.data.questions import (
    QUESTION_FEATURES,
    by_image,
    cell_text,
    count_answers,
    count_covered,
    describe_answers,
    normalize_answer,
    question_row,
    read_records,
)


def make_row(**changes: Any) -> dict[str, Any] | Rejected:
    cells = {
        "row_id": "7",
        "split": "train",
        "image": Path("a.jpg"),
        "question": "What is it?",
        "answer_raw": "The Spine#lung",
        "accepted": ["The Spine", "lung", "Lung"],
        "answer_type": "open",
        "question_type": "organ",
    }
    return question_row(**cells | changes)


def test_a_row_has_normalised_answers_and_the_published_one() -> None:
    row = make_row(modality="CT")
    assert isinstance(row, dict)
    assert (row["answer"], row["answers"], row["answer_raw"]) == ("spine", ["spine", "lung"], "The Spine#lung")
    assert list(row) == [*QUESTION_FEATURES, "modality"]


@pytest.mark.parametrize(
    ("changes", "reason", "detail"),
    [
        ({"question": ""}, "question empty", None),
        ({"answer_raw": "The", "accepted": ["The"]}, "answer empty", "The"),
        ({"answer_raw": "", "accepted": [""]}, "answer empty", None),
        ({"answer_type": "maybe"}, "answer type neither closed nor open", "maybe"),
    ],
)
def test_an_unusable_row_is_rejected(changes: dict[str, Any], reason: str, detail: str | None) -> None:
    assert make_row(**changes) == Rejected("7", reason, "train", detail=detail)


def test_cells_become_text() -> None:
    record = {"text": " a\t b\n", "number": 4, "none": None, "list": ["a"], "nan": float("nan")}
    cells = {key: cell_text(record, key) for key in (*record, "missing")}
    assert cells == {"text": "a b", "number": "4", "none": "", "list": "", "nan": "", "missing": ""}


def test_questions_about_an_image_are_on_end_within_their_split() -> None:
    places = [
        ("1", "test", "a"),
        ("2", "train", "b"),
        ("3", "train", "a"),
        ("4", "validation", "a"),
        ("5", "train", "b"),
    ]
    entries = [make_row(row_id=row_id, split=split, image=Path(name)) for row_id, split, name in places]
    rejected = Rejected("6", "question empty", "test")
    first, *ordered = by_image([*entries, rejected])
    assert first == rejected
    assert [row["id"] for row in ordered if isinstance(row, dict)] == ["3", "2", "5", "4", "1"]


def test_a_record_that_is_no_object_keeps_its_place(tmp_path: Path) -> None:
    (tmp_path / "a.json").write_text('[{"qid": 1}, 7]')
    assert list(read_records(tmp_path / "a.json")) == [("a.json, record 1", {"qid": 1}), ("a.json, record 2", {})]


@pytest.mark.parametrize("content", ["{}", "[]", "7"])
def test_a_file_without_a_list_is_a_clear_error(tmp_path: Path, content: str) -> None:
    (tmp_path / "a.json").write_text(content)
    with pytest.raises(ValueError, match=r"a\.json holds no list of questions"):
        list(read_records(tmp_path / "a.json"))


@pytest.mark.parametrize(
    ("answer", "normalized"),
    [
        ("Yes", "yes"),
        ("  The \tleft\n kidney ", "left kidney"),
        ("an X-ray of a chest.", "x ray of chest"),
        ("MR - FLAIR", "mr flair"),
        ("MR-FLAIR/DWI", "mr flair dwi"),
        ("air?", "air"),
        ("lung, mediastinum, pleura", "lung mediastinum pleura"),
        ("CT w/contrast (IV)", "ct w contrast iv"),
        ("5.6cm", "5.6cm"),
        ("No. 3", "no 3"),
        ("1,000 a-b", "1000 ab"),  # grouped digits: every mark goes without a blank
        ("Two", "2"),
        ("none", "0"),
        ("dont know", "don't know"),
        ("couldn'tve", "couldn't've"),
        ("patient's skin", "patient's skin"),
        ("肝脏", "肝脏"),
        ("是的。", "是的"),
        ("左肺，右肺", "左肺 右肺"),
        ("左肺、右肺", "左肺 右肺"),
        ("部位：「肺」", "部位 肺"),
        ("ＣＴ（平扫）", "ct 平扫"),
        ("１，０００ｍｌ", "1000ml"),
        ("３．５㎝", "3.5cm"),
        ("ｶﾞﾝ･ﾊｲｴﾝ｡", "ガン ハイエン"),
        ("cafe\u0301", "café"),
        ("हृदय।", "हृदय"),
        ("نعم،", "نعم"),
        ("patient’s skin: 12:30", "patient’s skin: 12:30"),
        ("The", ""),
        ("-", ""),
    ],
)
def test_answers_are_normalised_as_in_the_vqa_evaluation(answer: str, normalized: str) -> None:
    assert normalize_answer(answer) == normalized
    assert normalize_answer(normalized) == normalized


def row(*answers: str, answer_type: str = "open") -> dict[str, Any]:
    return {"answers": list(answers), "answer_type": answer_type}


def test_the_list_is_ordered_by_frequency_then_alphabet() -> None:
    rows = [row("yes"), row("no"), row("spine", "lung"), row("spine")]
    assert list(count_answers(rows).items()) == [("spine", 2), ("lung", 1), ("no", 1), ("yes", 1)]
    assert list(count_answers(reversed(rows))) == list(count_answers(rows))


def test_a_question_is_covered_if_any_of_its_answers_is_in_the_list() -> None:
    rows = [row("spine", "lung"), row("heart"), row("yes", answer_type="closed")]
    assert count_covered(rows, ["lung", "yes"]) == {
        "overall": {"questions": 3, "covered": 2},
        "closed": {"questions": 1, "covered": 1},
        "open": {"questions": 2, "covered": 1},
    }


ROWS = {
    "train": [row("yes", answer_type="closed"), row("lung")],
    "test": [row("heart"), row("lung"), row("spine", "lung"), row("rib")],
}


def test_the_list_comes_from_train_unless_the_published_answers_are_given() -> None:
    from_train, published = describe_answers(ROWS), describe_answers(ROWS, ["Yes", "Heart", "the lung", "", "heart."])
    assert (from_train["answers"], from_train["counts"]) == (["lung", "yes"], {"lung": 1, "yes": 1})
    assert from_train["answers_from"] == "train" and "order" not in from_train
    assert from_train["summary"].splitlines() == [
        "2 answers from train; share of questions that one of them answers, the ceiling of a classifier:",
        "  train: overall 100.0% of 2, closed 100.0% of 1, open 100.0% of 1",
        "  test: overall 50.0% of 4, closed none, open 50.0% of 4",
    ]
    assert (published["answers_from"], published["order"]) == ("all", "published")
    assert [*published["counts"].items()] == [("yes", 1), ("heart", 2), ("lung", 1), ("", 1)]
    assert published["answers"] == ["yes", "heart", "lung", ""]
    assert published["summary"].startswith("4 answers from all splits, test included;")


def test_without_train_there_is_no_list() -> None:
    described = describe_answers({"test": ROWS["test"]})
    assert (described["answers"], described["summary"]) == ([], "no list of answers: no rows in train")
    assert described["coverage"]["test"]["overall"] == {"questions": 4, "covered": 0}


@pytest.mark.real_data
def test_vqa_rad_has_461_answers_in_train(shared: Path) -> None:
    rows = {
        split: [
            row(normalize_answer(str(record["answer"])), answer_type=record["answer_type"].strip().lower())
            for record in json.loads((shared / "data" / "vqa_rad" / f"{split}set.json").read_text())
        ]
        for split in ("train", "test")
    }
    from_train = describe_answers(rows)
    assert len(from_train["answers"]) == 461
    assert from_train["coverage"]["test"] == {  # 90.2 %, 97.8 % and 78.8 %
        "overall": {"questions": 451, "covered": 407},
        "closed": {"questions": 272, "covered": 266},
        "open": {"questions": 179, "covered": 141},
    }
