"""The VQA-Med 2019 reader on generated folders in the published formats, and on the official test file."""

import json
from collections import Counter
from collections.abc import Callable
from pathlib import Path

import pytest
from PIL import Image

from m3ae.data.prepare import prepare
from m3ae.data.prepared import Rejected, load_split
from m3ae.data.questions import normalize_answer
from m3ae.data.sources import vqa_med_2019

MODALITY = "synpic2|was the mri taken with contrast?|no\nsynpic1|what modality is shown?|cta - ct angiography\n"
PLANE = 'synpic1|"in what plane is this?|axial\r\nsynpic2|which plane?|sagittal\r\n\r\n'
ORGAN = "synpic1|what organ system is imaged?|heart and great vessels#lung, mediastinum, pleura\n"
TEST = "synpic3|plane|which plane is this?|axial\nsynpic3|abnormality|what is most alarming?|a # b\n"
TEST_FILE = "VQAMed2019_Test_Questions_w_Ref_Answers.txt"


def write(path: Path, content: str) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(content.encode())


def make_images(folder: Path) -> None:
    folder.mkdir(parents=True)
    for name in ("synpic1", "synpic2", "synpic3"):
        Image.new("L", (8, 8)).save(folder / f"{name}.jpg")


def make_published(source: Path) -> Path:
    """Write the layout of the published M3AE, with the official test file."""
    for split in ("train", "val"):
        for name, content in (("Modality", MODALITY), ("Organ", ORGAN), ("Plane", PLANE)):
            write(source / split / "QA" / f"{name}.csv", content)
        make_images(source / split / "images")
    write(source / "test" / TEST_FILE, TEST)
    make_images(source / "test" / "images")
    return source


def make_released(source: Path) -> Path:
    """Write the layout of the release."""
    for part, split in (("Training", "train"), ("Validation", "val")):
        folder = source / f"ImageClef-2019-VQA-Med-{part}"
        write(folder / f"All_QA_Pairs_{split}.txt", MODALITY)
        write(folder / f"{split}_ImageIDs.txt", "synpic1\nsynpic2\n")
        contents = (("C1_Modality", MODALITY), ("C2_Plane", PLANE), ("C3_Organ", ORGAN))
        for name, content in contents:
            write(folder / "QAPairsByCategory" / f"{name}_{split}.txt", content)
        make_images(folder / f"{split.title()}_images")
        write(source / "__MACOSX" / f"._C1_Modality_{split}.txt", "\0")
    write(source / "VQAMed2019Test" / TEST_FILE, TEST)
    write(source / "VQAMed2019Test" / "VQAMed2019_Test_Questions.txt", "synpic3|which plane is this?\n")
    make_images(source / "VQAMed2019Test" / "VQAMed2019_Test_Images")
    return source


@pytest.mark.parametrize("make", [make_published, make_released])
def test_both_layouts_are_prepared_alike(tmp_path: Path, make: Callable[[Path], Path]) -> None:
    source = make(tmp_path / "med")
    manifest = prepare("vqa_med_2019", tmp_path / "out", source=source, num_workers=1)
    assert manifest.rejected == {"question about abnormality": 1}
    assert {name: info.rows for name, info in manifest.splits.items()} == {"train": 5, "validation": 5, "test": 1}
    ids = (tmp_path / "out" / "train.ids.txt").read_text().split()
    assert set(ids[:3]) == {"train-modality-2", "train-organ-1", "train-plane-1"}, "the questions about synpic1"
    assert set(ids[3:]) == {"train-modality-1", "train-plane-2"}
    assert json.loads((tmp_path / "out" / "answers.json").read_text())["answers"] == [
        "axial",
        "cta ct angiography",
        "heart and great vessels",
        "lung mediastinum pleura",
        "no",
        "sagittal",
    ]


@pytest.mark.parametrize("make", [make_published, make_released])
def test_the_published_list_is_by_split_and_category(tmp_path: Path, make: Callable[[Path], Path]) -> None:
    source = make(tmp_path / "med")
    (test,) = source.rglob(TEST_FILE)
    write(test, TEST + "synpic3|organ|which organ?|lung#spine#skull\nsynpic3|organ|which organ?|#\n")
    prepare("vqa_med_2019", tmp_path / "out", source=source, num_workers=1, answers_from="all")
    content = json.loads((tmp_path / "out" / "answers.json").read_text())
    two, three = "heart and great vessels#lung mediastinum pleura", "lung#spine#skull"
    assert content["answers"] == ["no", "cta ct angiography", two, "axial", "sagittal", three, "#"]
    assert content["coverage"]["test"]["overall"] == {"questions": 2, "covered": 2}
    (accepted,) = (row["answers"] for row in load_split(tmp_path / "out", "test") if row["question_type"] == "organ")
    assert accepted == ["lung", "spine", "skull", three]


@pytest.mark.real_data
def test_the_published_list_has_79_answers(shared: Path) -> None:
    published = vqa_med_2019.published_answers(shared / "data" / "vqa_med_2019_full")
    answers = [*dict.fromkeys(map(normalize_answer, published))]
    assert len(answers) == 79 and sum("#" in answer for answer in answers) == 7
    assert answers[:4] == ["cta ct angiography", "no", "us ultrasound", "xr plain film"]


def test_a_line_becomes_a_row(tmp_path: Path) -> None:
    source = make_published(tmp_path / "med")
    rows = {row["id"]: row for row in vqa_med_2019.rows(source) if isinstance(row, dict)}
    assert rows["train-organ-1"] == {
        "id": "train-organ-1",
        "split": "train",
        "image": source / "train" / "images" / "synpic1.jpg",
        "question": "what organ system is imaged?",
        "answer": "heart and great vessels",
        "answers": ["heart and great vessels", "lung mediastinum pleura"],
        "answer_raw": "heart and great vessels#lung, mediastinum, pleura",
        "answer_type": "open",
        "question_type": "organ",
    }
    assert (rows["train-modality-1"]["answer"], rows["train-modality-1"]["answer_type"]) == ("no", "closed")
    assert rows["train-plane-1"]["question"] == '"in what plane is this?', "a mark that the csv module would act on"
    assert (rows["test-plane-1"]["question_type"], rows["test-plane-1"]["split"]) == ("plane", "test")


def test_every_broken_line_is_listed(tmp_path: Path) -> None:
    lines = ["synpic3|plane|which?|axial|x", "synpic3|which?", "synpic3|colour|which?|red", "synpic3|plane||axial"]
    lines += ["synpic3|plane|which?|#", "synpic3|abnormality|which?|lesion"]
    write(tmp_path / TEST_FILE, "\n".join(lines))
    shape = "line not image|question|answer or image|category|question|answer"
    assert list(vqa_med_2019.rows(tmp_path)) == [
        Rejected("test-unknown-1", shape, "test", detail=lines[0]),
        Rejected("test-unknown-2", shape, "test", detail=lines[1]),
        Rejected("test-colour-3", "category unknown", "test", detail="colour"),
        Rejected("test-plane-4", "question empty", "test"),
        Rejected("test-plane-5", "answer empty", "test", detail="#"),
        Rejected("test-abnormality-6", "question about abnormality", "test"),
    ]


def test_abnormality_files_are_left_out_line_by_line(tmp_path: Path) -> None:
    write(tmp_path / "train" / "QAPairsByCategory" / "C4_Abnormality_train.txt", "synpic1|what is wrong?|glioma\n")
    assert list(vqa_med_2019.rows(tmp_path)) == [
        Rejected("train-abnormality-1", "question about abnormality", "train")
    ]


def test_a_table_of_no_split_is_a_clear_error(tmp_path: Path) -> None:
    write(tmp_path / "QA" / "Modality.csv", MODALITY)
    with pytest.raises(ValueError, match=r"Modality\.csv: neither its name nor its folders say train"):
        list(vqa_med_2019.rows(tmp_path))


def test_a_folder_without_questions_is_a_clear_error(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match="nowhere does not exist"):
        list(vqa_med_2019.rows(tmp_path / "nowhere"))
    with pytest.raises(FileNotFoundError, match="holds no questions: expected train/QA/"):
        list(vqa_med_2019.rows(tmp_path))


@pytest.mark.real_data
def test_the_official_test_file_without_images_ends_among_the_rejected(shared: Path, tmp_path: Path) -> None:
    source = shared / "data" / "vqa_med_2019"
    rows = [entry for entry in vqa_med_2019.rows(source) if isinstance(entry, dict)]
    assert Counter(row["question_type"] for row in rows) == {"modality": 125, "plane": 125, "organ": 125}
    assert Counter(row["answer_type"] for row in rows) == {"closed": 53, "open": 322}
    assert sum("#" in row["answer_raw"] for row in rows) == sum(len(row["answers"]) > 1 for row in rows) == 9
    manifest = prepare("vqa_med_2019", tmp_path / "out", source=source, num_workers=1)
    assert manifest.rejected == {"question about abnormality": 125, "image missing": 375}
