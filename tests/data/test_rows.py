"""Single rows: texts cleaned, images kept inside the source folder, tasks that keep shared images together."""

from pathlib import Path

import pytest
from PIL import Image

from m3ae.data.rows import ROWS_PER_PACK, PackedRows, RowFinisher, clean_texts, cut_tasks


def outcome(path: Path, *roots: Path) -> tuple[bool, list[tuple[str, str | None]]]:
    finisher = RowFinisher(["image"], list(roots), shorter_side=None, quality=95, min_words=1)
    ((row, left_out),) = finisher([{"id": "a", "split": "train", "image": path}])
    return row is not None, [(entry.reason, entry.detail) for entry in left_out]


@pytest.fixture
def source(tmp_path: Path) -> Path:
    folder = tmp_path / "source"
    (folder / "images").mkdir(parents=True)
    for path in (folder / "images" / "inside.png", tmp_path / "outside.png"):
        Image.new("L", (8, 8)).save(path)
    return folder


def test_clean_texts_keeps_what_is_long_enough() -> None:
    assert clean_texts(["a b c", "", "a\nb", " x  y z "], min_words=3) == (
        ["a b c", "x y z"],
        ["text empty", "text too short"],
    )
    texts = ["两肺未见明显异常改变", "正常。", "両肺野に異常陰影を認めない。", "ปอดปกติ", "폐에 이상 없음", "이상 없음"]
    assert clean_texts(texts, min_words=3) == (
        ["两肺未见明显异常改变", "両肺野に異常陰影を認めない。", "ปอดปกติ", "폐에 이상 없음"],
        ["text too short", "text too short"],
    )
    assert clean_texts([""], min_words=0) == (None, ["text empty"])
    assert clean_texts(None, min_words=3) == (None, [])


@pytest.mark.parametrize(
    "name", ["../outside.png", "images/../../outside.png", "../absent.png", "a\0b.png", "/etc/passwd"]
)
def test_a_path_cannot_leave_the_source_folder(source: Path, name: str) -> None:
    kept, ((reason, detail),) = outcome(source / name, source)
    assert not kept and reason == "path leaves the source folder"
    assert detail == f"{name}: copy the file into the source folder and name it relative to that, without .. and links"


def test_neither_can_a_link(source: Path, tmp_path: Path) -> None:
    (source / "link.png").symlink_to(tmp_path / "outside.png")
    (source / "folder").symlink_to(tmp_path)
    (source / "loop.png").symlink_to(source / "loop.png")
    for name in ("link.png", "folder/outside.png"):
        assert outcome(source / name, source)[1][0][0] == "path leaves the source folder"
    assert outcome(source / "loop.png", source) == (False, [("image missing", "loop.png")])


def test_what_stays_inside_is_read(source: Path, tmp_path: Path) -> None:
    (source / "link.png").symlink_to(source / "images" / "inside.png")
    (tmp_path / "alias").symlink_to(source)
    assert outcome(source / "images" / ".." / "link.png", source) == (True, [])
    assert outcome(tmp_path / "alias" / "link.png", tmp_path / "alias") == (True, [])
    assert outcome(tmp_path / "outside.png", source, tmp_path) == (True, []), "a path option is a root as well"


def test_a_missing_image_is_named_as_in_the_source(source: Path) -> None:
    assert outcome(source / "images" / "x.png", source) == (False, [("image missing", "images/x.png")])
    assert outcome(source / ("x" * 300), source) == (False, [("image missing", "x" * 300)])


def test_tasks_keep_rows_with_the_same_image_together() -> None:
    images = [Path(f"{index // 10}.png") for index in range(45)]
    tasks = cut_tasks([{"image": image} for image in images], ["image"])
    assert [len(task) for task in tasks] == [20, 20, 5]
    assert [len(task) for task in cut_tasks([{"image": None}] * 40, ["image"])] == [16, 16, 8]
    assert cut_tasks([], ["image"]) == []


@pytest.mark.parametrize("count", [0, 5, ROWS_PER_PACK, 2 * ROWS_PER_PACK + 3])
def test_packed_rows_are_those_that_were_added(count) -> None:
    rows, packed = [{"id": str(number), "image": Path(f"{number}.png")} for number in range(count)], PackedRows()
    for row in rows:
        packed.append(row)
    assert len(packed) == count
    for start, stop in ((0, count), (1, 4), (ROWS_PER_PACK - 1, ROWS_PER_PACK + 1), (ROWS_PER_PACK, count)):
        assert packed.between(start, stop) == rows[start:stop]
