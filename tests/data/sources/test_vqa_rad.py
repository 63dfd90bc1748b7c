"""The VQA-RAD reader on generated folders in the published format, and on the real one."""

import json
from pathlib import Path
from typing import Any

import pytest
from PIL import Image

from m3ae.data.prepare import prepare
from m3ae.data.prepared import REJECTED, Rejected, load_manifest, load_split
from m3ae.data.questions import normalize_answer
from m3ae.data.sources import vqa_rad

TRAIN_IMAGE, VALIDATION_IMAGE, TEST_IMAGE = "synpic1.jpg", "synpic15.jpg", "synpic2.jpg"
RECORD = {
    "qid": 1,
    "image_name": TRAIN_IMAGE,
    "image_organ": "HEAD",
    "answer": "Yes",
    "answer_type": "CLOSED",
    "question_type": "PRES",
    "question": "Are regions of the brain infarcted?",
    "phrase_type": "freeform",
}
TEST_RECORD = {**RECORD, "qid": 100, "image_name": TEST_IMAGE}


def make_source(folder: Path, train: list[Any] | None = None, test: list[Any] | None = None) -> Path:
    (folder / "images").mkdir(parents=True)
    for name in (TRAIN_IMAGE, VALIDATION_IMAGE, TEST_IMAGE):
        Image.new("L", (8, 8)).save(folder / "images" / name)
    for name, records in (("trainset", train or [RECORD]), ("testset", test or [TEST_RECORD])):
        (folder / f"{name}.json").write_text(json.dumps(records))
    return folder


def read(source: Path, **options: Any) -> dict[str, Any]:
    """Return the rows by id."""
    return {row["id"]: row for row in vqa_rad.rows(source, **options) if isinstance(row, dict)}


def test_a_question_becomes_a_row(tmp_path: Path) -> None:
    source = make_source(tmp_path / "rad")
    assert read(source)["1"] == {
        "id": "1",
        "split": "train",
        "image": source / "images" / TRAIN_IMAGE,
        "question": "Are regions of the brain infarcted?",
        "answer": "yes",
        "answers": ["yes"],
        "answer_raw": "Yes",
        "answer_type": "closed",
        "question_type": "pres",
        "question_types": ["pres"],
        "phrase_type": "freeform",
        "image_organ": "HEAD",
    }


def test_odd_cells_are_read(tmp_path: Path) -> None:
    train = [
        RECORD | {"qid": 1, "answer": 4, "answer_type": "OPEN", "question_type": "COUNT"},
        RECORD | {"qid": 2, "answer_type": "CLOSED ", "question_type": "POS, PRES"},
        RECORD | {"qid": 3, "question_type": "PRSE", "question": " Is it\t big? "},
        RECORD | {"qid": 4, "question_type": "ATRIB, Other"},
    ]
    rows = read(make_source(tmp_path / "rad", train))
    assert (rows["1"]["answer"], rows["1"]["answer_raw"], rows["1"]["answer_type"]) == ("4", "4", "open")
    assert rows["2"]["answer_type"] == "closed"
    assert (rows["2"]["question_type"], rows["2"]["question_types"]) == ("pos", ["pos", "pres"])
    assert (rows["3"]["question_type"], rows["3"]["question"]) == ("pres", "Is it big?")
    assert rows["4"]["question_types"] == ["attrib", "other"]


def test_every_broken_row_is_listed(tmp_path: Path) -> None:
    train = [
        RECORD,
        RECORD | {"question": "Again?"},
        RECORD | {"qid": None},
        RECORD | {"qid": 3, "answer": None},
        RECORD | {"qid": 4, "answer_type": "YES/NO"},
        RECORD | {"qid": 5, "image_name": "synpic404.jpg"},
        RECORD | {"qid": 6, "image_name": "../../secret.jpg"},
        RECORD | {"qid": 7, "image_name": None},
        RECORD | {"qid": 8, "question": "\ud800?"},
        "no object",
    ]
    source = make_source(tmp_path / "rad", train)
    Image.new("L", (8, 8)).save(tmp_path / "secret.jpg")
    prepare("vqa_rad", tmp_path / "out", source=source, num_workers=1)
    rejected = [json.loads(line) for line in (tmp_path / "out" / REJECTED).read_text().splitlines()]
    assert {entry["id"]: entry["reason"] for entry in rejected} == {
        "1": "duplicate id",
        "trainset.json, record 3": "id missing",
        "3": "answer empty",
        "4": "answer type neither closed nor open",
        "5": "image missing",
        "6": "path leaves the source folder",
        "7": "image missing",
        "8": "text not UTF-8",
        "trainset.json, record 10": "id missing",
    }
    assert load_manifest(tmp_path / "out").splits["train"].rows == 1


TRAIN = [
    RECORD | {"qid": 1, "image_name": TEST_IMAGE},
    RECORD | {"qid": 2},
    RECORD | {"qid": 3},
    RECORD | {"qid": 4, "image_name": VALIDATION_IMAGE},
    RECORD | {"qid": 5, "image_name": TEST_IMAGE},
]


def test_validation_asks_other_questions_about_the_images_of_train_as_test_does(tmp_path: Path) -> None:
    rows = read(make_source(tmp_path / "rad", TRAIN))
    splits = {row["id"]: row["split"] for row in rows.values()}
    assert splits == dict.fromkeys("1245", "train") | {"3": "validation", "100": "test"}
    assert rows["3"]["image"] == rows["2"]["image"] and rows["100"]["image"] == rows["1"]["image"]


def test_questions_about_an_image_stand_together(tmp_path: Path) -> None:
    rows = read(make_source(tmp_path / "rad", TRAIN))
    assert [row["id"] for row in rows.values() if row["split"] == "train"] == ["2", "4", "1", "5"]


def test_validation_can_stay_in_train(tmp_path: Path) -> None:
    rows = read(make_source(tmp_path / "rad", TRAIN), carve_validation=False)
    assert [row["split"] for row in rows.values()] == ["train"] * 5 + ["test"]


def test_no_image_is_in_two_splits_if_that_is_asked_for(tmp_path: Path) -> None:
    entries = list(vqa_rad.rows(make_source(tmp_path / "rad", TRAIN), split="image_disjoint"))
    assert [entry for entry in entries if isinstance(entry, Rejected)] == [
        Rejected("1", "image in the test split", "train", detail=TEST_IMAGE),
        Rejected("5", "image in the test split", "train", detail=TEST_IMAGE),
    ]
    kept = [(entry["id"], entry["split"]) for entry in entries if isinstance(entry, dict)]
    assert kept == [("2", "train"), ("3", "train"), ("4", "validation"), ("100", "test")]


def test_the_published_list_has_every_answer_where_it_occurs_first(tmp_path: Path) -> None:
    answers = ["no", "Left", "no", "right", "left"]
    train = [record | {"answer": answer} for record, answer in zip(TRAIN, answers, strict=True)]
    source = make_source(tmp_path / "rad", train, [TEST_RECORD, TEST_RECORD | {"qid": 101, "answer": "right"}])
    for split in ("published", "image_disjoint"):
        options = {"split": split, "answers_from": "all", "num_workers": 1}
        prepare("vqa_rad", tmp_path / split, source=source, **options)
        content = json.loads((tmp_path / split / "answers.json").read_text())
        assert content["counts"] == {"no": 2, "left": 2, "right": 2, "yes": 1}
        assert (content["answers"], content["order"]) == (["no", "left", "right", "yes"], "published")


@pytest.mark.real_data
def test_the_published_list_has_498_answers(shared: Path) -> None:
    answers = [*dict.fromkeys(map(normalize_answer, vqa_rad.published_answers(shared / "data" / "vqa_rad")))]
    assert len(answers) == 498
    assert answers[:4] == ["yes", "no", "ultrasound", "extremities"]


@pytest.mark.parametrize("missing", ["", "trainset.json", "testset.json"])
def test_a_missing_part_is_named(tmp_path: Path, missing: str) -> None:
    source = make_source(tmp_path / "rad")
    (source / missing).rename(tmp_path / "elsewhere")
    with pytest.raises(FileNotFoundError, match=str(source / missing)):
        list(vqa_rad.rows(source))


def count(rows: dict[str, Any]) -> dict[str, tuple[int, int]]:
    """Return the number of questions and of images by split."""
    splits = {row["split"]: [own for own in rows.values() if own["split"] == row["split"]] for row in rows.values()}
    return {split: (len(own), len({row["image"] for row in own})) for split, own in splits.items()}


@pytest.mark.real_data
def test_the_real_splits_have_known_sizes(shared: Path) -> None:
    source = shared / "data" / "vqa_rad"
    published = read(source, carve_validation=False)
    assert count(published) == {"train": (3064, 314), "test": (451, 203)}
    images = {row["image"] for row in published.values()}
    assert len(images) == 314, "of which test has 203, each of them in train, too"
    assert {path.name for path in (source / "images").iterdir()} - {path.name for path in images} == {
        "synpic35356.jpg"
    }
    assert count(read(source)) == {"train": (2755, 314), "validation": (309, 185), "test": (451, 203)}
    disjoint = read(source, split="image_disjoint")
    assert count(disjoint) == {"train": (1004, 98), "validation": (148, 13), "test": (451, 203)}
    assert len({row["image"] for row in disjoint.values()}) == 98 + 13 + 203


@pytest.mark.real_data
def test_the_real_folder_is_prepared_in_full(
    shared: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr("datasets.config.HF_DATASETS_CACHE", tmp_path / "cache")
    options = {"shorter_side": 32, "num_workers": 1, "carve_validation": False}
    manifest = prepare("vqa_rad", tmp_path / "out", source=shared / "data" / "vqa_rad", **options)
    assert (manifest.rejected, manifest.dropped) == ({}, {})
    assert {name: info.rows for name, info in manifest.splits.items()} == {"train": 3064, "test": 451}
    assert sum(isinstance(answer, str) for answer in load_split(tmp_path / "out", "test")["answer"]) == 451
    assert len(json.loads((tmp_path / "out" / "answers.json").read_text())["answers"]) == 461
    ceiling = "test: overall 90.2% of 451, closed 97.8% of 272, open 78.8% of 179"
    assert ceiling in capsys.readouterr().out
