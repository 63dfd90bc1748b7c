"""A user's own folder: tables of several kinds, imagefolders, and what goes wrong with them."""

import json
from pathlib import Path
from typing import Any

import pytest
from PIL import Image

from m3ae.data.prepare import prepare
from m3ae.data.prepared import Rejected
from m3ae.data.sources import folder


def make(root: Path, *images: str, **tables: str | list[Any]) -> Path:
    """Write images, and tables given as text or as records of JSON lines; `a__csv` is the file `a.csv`."""
    for name in images:
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        Image.new("L", (8, 8)).save(root / name)
    for key, content in tables.items():
        text = content if isinstance(content, str) else "".join(json.dumps(line) + "\n" for line in content)
        path = root / key.replace("___", "/").replace("__", ".")
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)
    return root


def entries(root: Path, **options: Any) -> list[Any]:
    return list(folder.rows(root, **options))


def test_a_table_with_usual_names_needs_no_options(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    table = "Image,Caption,label,split\nx.png,A chest.,a; b;,valid\n,Only text.,,test\nx.png,Again.,c,train\n"
    make(tmp_path, "x.png", table__csv=table)
    blank = dict.fromkeys(folder.FEATURES)
    image = tmp_path / "x.png"
    assert entries(tmp_path) == [
        blank | {"id": "x.png", "split": "validation", "image": image, "text": ["A chest."], "labels": ["a", "b"]},
        blank | {"id": "table.csv, row 2", "split": "test", "text": ["Only text."]},
        blank | {"id": "x.png-2", "split": "train", "image": image, "text": ["Again."], "labels": ["c"]},
    ]
    found = "table.csv: image from 'Image', text from 'Caption', label from 'label', split from 'split'\n"
    assert capsys.readouterr().out == found


def test_columns_can_be_named(tmp_path: Path) -> None:
    make(tmp_path, "scans/x.png", qa__tsv="key\tscan\tq\ta\n7\tx.png\tWhere?\tleft\n")
    names = {"image_column": "scan", "question_column": "q", "answer_column": "a", "id_column": "key"}
    (row,) = entries(tmp_path, table="qa.tsv", image_folder=tmp_path / "scans", **names)
    assert (row["id"], row["image"], row["question"], row["answer"], row["text"]) == (
        "7",
        tmp_path / "scans" / "x.png",
        "Where?",
        "left",
        None,
    )


def test_json_lines_hold_lists_numbers_and_nulls(tmp_path: Path) -> None:
    records = [{"file_name": "x.png", "text": ["One.", "Two."], "labels": ["a", 3], "answer": 0}, [1], {"text": None}]
    make(tmp_path, "images/x.png", metadata__jsonl=records)
    first, second, third = entries(tmp_path)
    assert (first["image"], first["text"], first["labels"], first["answer"]) == (
        tmp_path / "images" / "x.png",
        ["One.", "Two."],
        ["a", "3"],
        "0",
    )
    assert second == Rejected("metadata.jsonl, row 2", "not a JSON object")
    assert (third["id"], third["image"], third["text"], third["labels"]) == ("metadata.jsonl, row 3", None, None, None)


def test_odd_rows_are_rejected_or_put_right(tmp_path: Path) -> None:
    make(
        tmp_path, "sub/x.png", t__csv="image,text,split\nsub\\x.png,a,fold1\nsub\\x.png,b,,more\nsub\\x.png,c,TRAIN\n"
    )
    first, second, third = entries(tmp_path)
    assert (first.id, first.reason, first.detail.partition(":")[0]) == ("sub/x.png", "unknown split", "fold1")
    assert second == Rejected("t.csv, row 2", "more cells than columns")
    assert (third["id"], third["image"], third["split"]) == ("sub/x.png-2", tmp_path / "sub" / "x.png", "train")


@pytest.mark.parametrize(("group", "size"), [("patient", 10), ("room", 40)])
def test_splits_are_carved_by_group_else_by_image(tmp_path: Path, group: str, size: int) -> None:
    lines = [f"{number},{number % 40}.png,{number % 10},t" for number in range(400)]
    make(tmp_path, "0.png", t__csv="\n".join([f"id,image,{group},text", *lines]))
    pairs = {(number % size, row["split"]) for number, row in enumerate(entries(tmp_path))}
    assert len(pairs) == size and {split for _, split in pairs} == {"train", "validation", "test"}


def test_a_table_per_split(tmp_path: Path) -> None:
    table = "image,text\nx.png,a\n"
    make(tmp_path, "x.png", train__csv=table, val__csv=table, test__csv=table)
    assert [(row["id"], row["split"]) for row in entries(tmp_path)] == [
        ("x.png", "test"),
        ("x.png-2", "train"),
        ("x.png-3", "validation"),
    ]


def test_an_imagefolder_with_metadata_in_its_splits(tmp_path: Path) -> None:
    table = "file_name,text\nx.png,a chest\n"
    make(tmp_path, "train/x.png", "test/x.png", train___metadata__csv=table, test___metadata__csv=table)
    assert [(row["image"], row["split"]) for row in entries(tmp_path)] == [
        (tmp_path / "test" / "x.png", "test"),
        (tmp_path / "train" / "x.png", "train"),
    ]


def test_an_imagefolder_of_labels(tmp_path: Path) -> None:
    make(tmp_path, "train/cat/x.PNG", "train/dog/x.png", "val/cat/y.png", "extra/z.png", ".trash/train/q.png")
    rejected, *rows = entries(tmp_path)
    assert (rejected.id, rejected.reason) == ("extra/z.png", "not in the folder of a split")
    assert [(row["id"], row["split"], row["labels"]) for row in rows] == [
        ("train/cat/x.PNG", "train", ["cat"]),
        ("train/dog/x.png", "train", ["dog"]),
        ("val/cat/y.png", "validation", ["cat"]),
    ]
    (row,) = entries(make(tmp_path / "plain", "x.png"))
    assert (row["id"], row["labels"], row["text"]) == ("x.png", None, None)


@pytest.mark.parametrize(
    ("tables", "options", "message"),
    [
        ({}, {}, r"holds neither a table \(\.csv, .*\) nor an image \(\.jpg, "),
        ({}, {"text_column": "a"}, r"holds no table \(.*\) for --text-column"),
        ({"a__csv": "x", "b__tsv": "y"}, {}, r"holds several tables \(a\.csv, b\.tsv\): choose one with --table"),
        ({"a__csv": "x,y\n1,2\n"}, {}, "no column with a usual name .*: set --image-column or --text-column .* x, y"),
        (
            {"a__csv": "image,y\n1,2\n"},
            {"text_column": "z"},
            r"a\.csv has no column 'z': set --text-column to one of .*image",
        ),
        (
            {"a__csv": "image\nx.png\ny.png\n"},
            {},
            r"a\.csv: none of its 2 images is there, the first one tried is .*/x\.png; set --image-folder",
        ),
        ({"a__jsonl": "[]\n"}, {}, r"a\.jsonl is empty"),
        ({"a__csv": "x"}, {"table": "b.csv"}, r"b\.csv is missing"),
    ],
)
def test_errors_say_what_to_set(tmp_path: Path, tables: dict[str, str], options: dict[str, str], message: str) -> None:
    make(tmp_path, **tables)
    with pytest.raises((ValueError, FileNotFoundError), match=message):
        entries(tmp_path, **options)


def test_a_folder_is_prepared(tmp_path: Path) -> None:
    table = (
        "image,text,patient\nx.png,one two three,1\n../secret.png,one two three,1\n"
        f"{tmp_path / 'secret.png'},one two three,1\nabsent.png,one two three,1\nx.png,four,1\n"
    )
    make(tmp_path / "mine", "x.png", t__csv=table)
    make(tmp_path, "secret.png")
    manifest = prepare("folder", tmp_path / "out", source=tmp_path / "mine")
    assert manifest.rejected == {"path leaves the source folder": 2, "image missing": 1}
    assert manifest.dropped == {"text: text too short": 1}
    assert sum(info.rows for info in manifest.splits.values()) == 2
    elsewhere = prepare("folder", tmp_path / "all", source=tmp_path / "mine", image_folder=str(tmp_path))
    assert elsewhere.rejected == {"image missing": 3, "path leaves the source folder": 1}
    assert elsewhere.options["image_folder"] == tmp_path.name
