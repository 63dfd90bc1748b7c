"""What all question-answering sources share."""

from pathlib import Path
from typing import Any

import pytest

from m3ae.data.prepared import Rejected
from m3ae.data.questions import QUESTION_FEATURES, by_image, cell_text, question_row, read_records


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
