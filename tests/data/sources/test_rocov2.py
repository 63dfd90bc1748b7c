"""The ROCOv2 reader on generated folders in the published layout, and on the real sample."""

from pathlib import Path

import pyarrow.parquet as pq
import pytest

from m3ae.data.prepare import prepare
from m3ae.data.prepared import Rejected
from m3ae.data.sources import rocov2
from tests.data.folder import jpeg

TABLES = {
    "_captions.csv": "ID,Caption\r\nA_1,CT of the chest.\r\n",
    "_concepts.csv": "ID,CUIs\r\nA_1,C0040405;C0817096\r\n",
    "_concepts_manual.csv": "ID,CUIs\r\nA_1,C0040405\r\n",
}


def make_source(folder: Path, split: str = "train", images: tuple[str, ...] = ("train/A_1.jpg",), **more: str) -> Path:
    """Write the tables of a split, with lines added to `captions`, `concepts` and `concepts_manual`."""
    folder.mkdir(exist_ok=True)
    for suffix, content in TABLES.items():
        added = more.get(suffix.strip("_").removesuffix(".csv"), "")
        (folder / f"{split}{suffix}").write_text(content + added, newline="")
    for name in images:
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_bytes(jpeg(7))
    return folder


def test_a_figure_becomes_a_row(tmp_path: Path) -> None:
    source = make_source(tmp_path / "rocov2")
    assert list(rocov2.rows(source)) == [
        {
            "id": "A_1",
            "split": "train",
            "image": source / "train" / "A_1.jpg",
            "text": ["CT of the chest."],
            "labels": ["C0040405", "C0817096"],
            "manual_labels": ["C0040405"],
        }
    ]


def test_ids_in_one_table_only_are_rows_that_lack_the_rest(tmp_path: Path) -> None:
    source = make_source(
        tmp_path / "rocov2",
        captions='A_2,"Sagittal, ""T2"" weighted"\r\nA_3,Axial view\r\n',
        concepts="A_3,\r\nA_4,C1; C2 ;C1;\r\nA_4,C3\r\n",
        concepts_manual="A_5,C9\r\n",
    )
    found = {row["id"]: (row["text"], row["labels"], row["manual_labels"]) for row in rocov2.rows(source)}
    assert list(found.items())[1:] == [
        ("A_2", (['Sagittal, "T2" weighted'], None, None)),
        ("A_3", (["Axial view"], [], None)),
        ("A_4", (None, ["C1", "C2", "C3"], None)),
        ("A_5", (None, None, ["C9"])),
    ]


def test_every_broken_row_is_listed(tmp_path: Path) -> None:
    images = tuple(f"train/A_{number}.jpg" for number in (1, 2, 6))
    lines = (
        "A_2,Mirror image\r\nA_2,The id once more\r\nA_3,no quotes, but a comma\r\n,without an id\r\n"
        "A_4,no image was unpacked\r\n../../A_5,out of the folder\r\n"
    )
    source = make_source(
        tmp_path / "rocov2", images=images, captions=lines, concepts="A_6,C1\r\nA_7,C1\r\nA_8,C1,C2\r\n"
    )
    manifest = prepare("rocov2", tmp_path / "out", source=source, num_workers=1)
    assert (tmp_path / "out" / "train.ids.txt").read_text().split() == ["A_1", "A_2", "A_6"]
    assert manifest.rejected == {
        "more cells than columns": 1,
        "id missing": 1,
        "duplicate id": 1,
        "image missing": 2,
        "path leaves the source folder": 1,
    }
    assert manifest.dropped == {"labels: more cells than columns": 1, "text: text too short": 1}
    assert dict(texts(tmp_path / "out", "train")) == {"A_1": ["CT of the chest."], "A_2": None, "A_6": None}
    assert Rejected("A_3", "more cells than columns", "train") in rocov2.rows(source)
    assert Rejected("train_captions.csv, row 5", "id missing", "train") in rocov2.rows(source)


def texts(folder: Path, split: str) -> list[tuple[str, list[str] | None]]:
    table = pq.read_table(sorted(folder.glob(f"{split}-*.parquet")), columns=["id", "text"])
    return [(row["id"], row["text"]) for row in table.to_pylist()]


@pytest.mark.parametrize("folder", ["valid", "validation", "val", "valid_images"])
def test_folders_may_call_a_split_otherwise_than_tables(tmp_path: Path, folder: str) -> None:
    source = make_source(tmp_path / "rocov2", split="valid", images=(f"{folder}/A_1.jpg",))
    (row,) = rocov2.rows(source)
    assert (row["split"], row["image"]) == ("validation", source / folder / "A_1.jpg")


def test_a_split_without_concepts_has_no_labels(tmp_path: Path) -> None:
    source = make_source(tmp_path / "rocov2", split="test")
    for path in source.glob("*_concepts*.csv"):
        path.unlink()
    (row,) = rocov2.rows(source)
    assert (row["split"], row["labels"], row["manual_labels"]) == ("test", None, None)


def test_a_folder_without_captions_is_a_clear_error(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match=r"rocov2 does not exist: expected the ROCOv2 folder"):
        list(rocov2.rows(tmp_path / "rocov2"))
    with pytest.raises(FileNotFoundError, match=r"holds no train_captions.csv and no such table of another split"):
        list(rocov2.rows(tmp_path))
    (tmp_path / "train_captions.csv").write_text("ID;Text\nA_1;x\n")
    with pytest.raises(ValueError, match=r"train_captions.csv lacks the columns Caption: it has ID, Text"):
        list(rocov2.rows(tmp_path))


@pytest.mark.real_data
def test_the_real_sample_is_prepared_in_full(shared: Path, tmp_path: Path) -> None:
    manifest = prepare("rocov2", tmp_path / "out", source=shared / "data" / "rocov2", num_workers=1)
    assert (manifest.rejected, manifest.dropped) == ({}, {})
    counts = {split: (info.rows, info.images["image"], info.texts) for split, info in manifest.splits.items()}
    assert counts == {"train": (200, 200, 200), "validation": (30, 30, 30), "test": (30, 30, 30)}
    rows = list(rocov2.rows(shared / "data" / "rocov2"))
    assert all(isinstance(row, dict) and row["labels"] for row in rows)
    assert sum(row["manual_labels"] == [] for row in rows) == 3
    assert sum(len(row["labels"]) for row in rows) == 866
    assert all(set(row["manual_labels"]) <= set(row["labels"]) for row in rows)
