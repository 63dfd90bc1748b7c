"""A user's own folder: tables of several kinds, imagefolders, and what goes wrong with them."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from m3ae.data.prepare import prepare
from m3ae.data.prepared import Rejected, load_split
from m3ae.data.sources import folder
from m3ae.data.sources._common import hash_split


def make(root: Path, *images: str, **tables: str | list[Any]) -> Path:
    """Write images, and tables given as text or as records of JSON lines; `a___b__csv` is `a/b.csv`."""
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
    table = "Image,Caption,label,split\nx.png,A chest.,a; b;,valid\n,Only text.,,test\nx.png,Again.,c|d,train\n"
    make(tmp_path, "x.png", table__csv=table)
    blank = dict.fromkeys(folder.FEATURES)
    image = tmp_path / "x.png"
    assert entries(tmp_path) == [
        blank | {"id": "x.png", "split": "validation", "image": image, "text": ["A chest."], "labels": ["a", "b"]},
        blank | {"id": "table.csv, row 2", "split": "test", "text": ["Only text."]},
        blank | {"id": "x.png-2", "split": "train", "image": image, "text": ["Again."], "labels": ["c", "d"]},
    ]
    out, err = capsys.readouterr()
    found = "table.csv: image from 'Image', text from 'Caption', label from 'label', split from 'split'"
    assert (out, err.splitlines()[0]) == ("", found)


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


def test_nothing_is_lost_in_silence(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    lines = ['a.png,"not closed', "b.png,two,2,surplus", "c.png,three,3,, ", "d.png", "e.png,NA,5"]
    table = "\n".join(["image,text,age", *lines])
    images = [f"{name}.png" for name in "abcdef"]
    make(tmp_path, *images, t__csv=table, notes__txt="x", b__csv="", __DS_Store="")
    first, second, *rows = entries(tmp_path, table="t.csv")
    assert first == Rejected("t.csv, row 1", "quotation mark not closed", detail='line 2: a.png,"not closed')
    assert second == Rejected("t.csv, row 2", "more cells than columns")
    assert [(row["id"], row["text"]) for row in rows] == [("c.png", ["three"]), ("d.png", None), ("e.png", ["NA"])]
    assert capsys.readouterr().err.replace(str(tmp_path), "mine").splitlines() == [
        "t.csv: image from 'image', text from 'text'",
        "t.csv: not used: 'age'",
        "mine: not used: 3 .png, such as a.png; 1 .csv, such as b.csv; 1 .txt, such as notes.txt",
        "mine: 3 of 3 rows name no patient, study or other group, and may tear one over several splits: name its "
        "column with --group-column if groups have several rows",
        "mine: 0 of 3 rows are for testing, too few to measure on (below 20): repeat with other splits "
        "(--split-file), or collect more",
    ]


def test_a_cell_that_has_taken_in_the_line_of_an_image_is_rejected(tmp_path: Path) -> None:
    lines = ['1,"not closed,a.png', '2,wide by 5",b.png', '3,"two\nlines, see c",c.png']
    make(tmp_path, "a.png", "b.png", "c.png", t__csv="\n".join(["id,text,image", *lines]))
    rejected, row = entries(tmp_path)
    assert (rejected.id, rejected.reason) == ("t.csv, row 1", "quotation mark not closed")
    assert (row["id"], row["text"]) == ("3", ["two\nlines, see c"])


def test_json_cells_of_several_values(tmp_path: Path) -> None:
    records = [
        {"id": 7, "image": ["a.png", "b.png"], "text": "Two views.", "patient": 1},
        {"image": ["a.png", "b.png"], "text": ["Two views."], "answer": float("nan")},
        {"image": "a.png", "text": {"findings": "none"}},
        {"image": {"path": "a.png"}, "text": "x", "labels": [["a"]]},
        {"image": "a.png", "answer": ["yes", "no"]},
        {"image": "b.png", "patient": [1, 2]},
    ]
    make(tmp_path, "a.png", "b.png", t__jsonl=records)
    one, two, three, four, *rejected = entries(tmp_path)
    rows = [(row["id"], row["image"], row["text"]) for row in (one, two, three, four)]
    a, b, text = tmp_path / "a.png", tmp_path / "b.png", ["Two views."]
    assert rows == [("7", a, text), ("7-2", b, text), ("a.png", a, text), ("b.png", b, text)]
    assert one["split"] == two["split"] and three["split"] == four["split"] and three["answer"] is None
    assert rejected == [
        Rejected("t.jsonl, row 3", "object in a cell", detail="text"),
        Rejected("t.jsonl, row 4", "object in a cell", detail="image, labels"),
        Rejected("t.jsonl, row 5", "several values in a cell", detail="answer"),
        Rejected("t.jsonl, row 6", "several values in a cell", detail="patient"),
    ]


@pytest.mark.parametrize("column", ["Image Index", "dicom_id", "ImageID", "Röntgen"])
@pytest.mark.parametrize("name", ["a.png", "A.PNG", "a"])
def test_images_are_found_in_a_column_of_any_name(tmp_path: Path, column: str, name: str) -> None:
    make(tmp_path, "a.png", "1.png", t__csv=f"{column},text,patient\n{name},one,1\n")
    (row,) = entries(tmp_path)
    assert (row["id"], row["image"], row["text"]) == ("a.png", tmp_path / "a.png", ["one"])


def test_names_of_images_may_be_composed_otherwise(tmp_path: Path) -> None:
    table = "image,text\nscans\\M\u00fcller.png,a\nx,b\n/,c\n.,d\n..,e\n"
    make(tmp_path, "scans/Mu\u0308ller.png", "x.png", "x.jpg", t__csv=table)
    first, second, *odd = entries(tmp_path)
    assert [row["image"] for row in odd] == [Path("/"), tmp_path, tmp_path / ".."]
    assert first["image"] == tmp_path / "scans" / "Mu\u0308ller.png"
    assert second["image"] == tmp_path / "x"  # could be either, and is listed as missing


@pytest.mark.parametrize(
    "column",
    [
        *("PatientID", "Patient ID", "patientId", "PATIENT-ID", "subject", "Subject_No"),
        *("case_id", "StudyInstanceUID", "study.uid", "MRN", "anonymized_patient_id", "pt_no"),
    ],
)
def test_patients_stay_together_however_their_column_is_written(
    tmp_path: Path, column: str, capsys: pytest.CaptureFixture[str]
) -> None:
    lines = [f"{number}.png,t,p{number % 20}" for number in range(200)]
    make(tmp_path, "0.png", t__csv="\n".join([f"image,text,{column}", *lines]))
    pairs = {(number % 20, row["split"]) for number, row in enumerate(entries(tmp_path))}
    assert len(pairs) == 20
    assert f"group from '{column}'" in (err := capsys.readouterr().err) and "name no patient" not in err


def test_a_patient_without_a_split_goes_where_its_other_rows_are(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    lines = ["0.png,7,", "1.png,7,test", "2.png,7.0,", "3.png,8,train", "4.png,8,test", "5.png,,train"]
    make(tmp_path, "0.png", t__csv="\n".join(["image,patient,split", *lines]))
    assert [row["split"] for row in entries(tmp_path)] == ["test", "test", "test", "train", "test", "train"]
    err = capsys.readouterr().err
    assert "1 groups or images are in several splits, such as 8 in train and test" in err
    assert "1 of 6 rows name no patient" in err


def test_only_columns_with_splits_are_splits(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    table = "image,fold,Partition\na.png,0,Dev\nb.png,1,testing\nc.png,1,\n"
    make(tmp_path / "two", "a.png", t__csv=table)
    assert [row["split"] for row in entries(tmp_path / "two")] == ["validation", "test", hash_split("c.png")]
    make(tmp_path / "one", "a.png", t__csv="image,fold\na.png,0\nb.png,1\n")
    assert [row["split"] for row in entries(tmp_path / "one")] == [hash_split("a.png"), hash_split("b.png")]
    assert "t.csv: 'fold' names no split, and was not used as one" in capsys.readouterr().err
    with pytest.raises(ValueError, match=r"t\.csv: no cell of 'fold' names a split: expected train, "):
        entries(tmp_path / "one", split_column="fold")


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


@pytest.mark.parametrize("name", ["tables___t__csv", "x___T__CSV"])
def test_a_table_in_a_folder_below_counts(tmp_path: Path, name: str) -> None:
    make(tmp_path, "images/x.png", **{name: "image,text\nx.png,a\n"}, __hidden__csv="x", __git___a__csv="y")
    (row,) = entries(tmp_path)
    assert (row["image"], row["text"]) == (tmp_path / "images" / "x.png", ["a"])


def test_tables_in_the_folders_of_splits(tmp_path: Path) -> None:
    make(tmp_path, "x.png", train___t__csv="image,text\nx.png,a\n", Test___t__csv="image,text\nx.png,b\n")
    assert {(row["split"], row["text"][0]) for row in entries(tmp_path)} == {("train", "a"), ("test", "b")}


RECORD = {"image": "x.png", "text": "a"}


@pytest.mark.parametrize(
    ("content", "ids"),
    [
        ([RECORD, 3], ["x.png", "t.json, row 2"]),
        ({"train": [RECORD], "val": [RECORD], "test": []}, ["x.png", "x.png-2"]),
        ({"x.png": {"text": "a"}, "y.png": {"text": "b"}}, ["x.png", "y.png"]),
        ({"info": {"year": 9}, "data": [RECORD]}, ["x.png"]),
        ({"info": {"year": 9}, "train": [RECORD]}, ["x.png"]),
        ({"images": [RECORD], "annotations": [RECORD]}, ["t.json", "x.png"]),
        ({"name": "no table", "tags": ["a"]}, ["t.json", "x.png"]),
    ],
)
def test_a_json_table(tmp_path: Path, content: Any, ids: list[str]) -> None:
    make(tmp_path, "x.png", t__json=json.dumps(content))
    found = entries(tmp_path)
    assert [entry.id if isinstance(entry, Rejected) else entry["id"] for entry in found] == ids
    assert next(entry for entry in found if isinstance(entry, dict))["image"] == tmp_path / "x.png"


def test_an_imagefolder_with_metadata_in_its_splits(tmp_path: Path) -> None:
    table = "file_name,text\nx.png,a chest\n"
    make(tmp_path, "train/x.png", "test/x.png", train___metadata__csv=table, test___metadata__csv=table)
    assert [(row["image"], row["split"]) for row in entries(tmp_path)] == [
        (tmp_path / "test" / "x.png", "test"),
        (tmp_path / "train" / "x.png", "train"),
    ]


@pytest.mark.parametrize("name", ["7.png", "old/7.png", "C:\\scans\\7.PNG", "/mnt/old/7", "images_1/7.png"])
def test_images_lie_in_folders_that_the_table_does_not_name(tmp_path: Path, name: str) -> None:
    images = ["data/images_1/7.png", "data/images_2/8.png", "data/images_1/9.png", "data/images_2/9.png"]
    make(tmp_path, *images, t__csv=f"Image Index,text\n{name},a\n8.png,b\n9.png,c\n")
    first, second, third = entries(tmp_path)
    assert (first["image"], second["image"]) == (tmp_path / images[0], tmp_path / images[1])
    assert third["image"] == tmp_path / "9.png"  # could be either, and is listed as missing


@pytest.mark.parametrize("above", ["", "mine/data/"])
def test_folders_above_those_of_the_splits(tmp_path: Path, above: str) -> None:
    make(tmp_path, f"{above}Train/cat/x.png", f"{above}Test/cat/y.png")
    assert [(row["split"], row["labels"]) for row in entries(tmp_path)] == [("test", ["cat"]), ("train", ["cat"])]
    (row,) = entries(make(tmp_path / "alone", f"{above}train/cat/x.png"))
    assert (row["split"], row["labels"]) == ("train", ["cat"])


def test_without_a_table_every_readable_image_is_a_row_and_other_files_are_listed(tmp_path: Path) -> None:
    make(tmp_path, "a.JPG", "b.jp2", "c.pgm", "d.jfif", "e.avif")
    for name, content in (("1.2.840.1", bytes(128) + b"DICM"), ("scan.nii.gz", b"x"), ("notes.txt", b"x")):
        (tmp_path / name).write_bytes(content)
    *rejected, dicom, a, b, c, d, e = entries(tmp_path)
    assert [(row.id, row.reason) for row in rejected] == [
        (name, "not an image") for name in ("notes.txt", "scan.nii.gz")
    ]
    ids = [row["id"] for row in (dicom, a, b, c, d, e)]
    assert ids == ["1.2.840.1", "a.JPG", "b.jp2", "c.pgm", "d.jfif", "e.avif"]


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
            r"a\.csv: none of its 2 images exists, the first one tried is .*/x\.png; set --image-folder",
        ),
        ({"a__jsonl": "[]\n"}, {}, r"a\.jsonl holds no row that can be read: not a JSON object"),
        ({"a__csv": "x"}, {"table": "b.csv"}, r"b\.csv is missing"),
        ({"a__csv": "text\na\n", "sub___x__png": ""}, {}, r"no column that names the images .* to one of text"),
        ({"a__csv": "text\na\n"}, {"image_folder": Path("x")}, r"a\.csv has no column that names the images"),
        (
            {"a__csv": "image,text,y\n1,2,3\n"},
            {"label_column": "text=y"},
            r"several .* called text \(text, label\)",
        ),
        ({"a__csv": "image,text,y\n1,2,3\n"}, {"id_column": "text,y"}, r"--id-column: got 'text,y', expected .* one"),
        ({"a__csv": "text\n1\n"}, {"delimiter": "::"}, r"--delimiter: got '::', expected one character, or tab"),
        ({"a__csv": "text\n1\n"}, {"encoding": "ansi9"}, r"unknown encoding: ansi9: expected a name that Python"),
        ({"a__csv": "text\n1\n"}, {"split": "none", "split_column": "x"}, r"--split none: got a column or a file"),
        ({"a__csv": "image,text,text\nx,a,b\n"}, {}, r"a\.csv has several columns called text"),
        ({"a__xlsx": ""}, {}, r"a\.xlsx cannot be read \(File is not a zip file\): save it as CSV"),
        ({"a__json": "{}"}, {"table": "a.json"}, r"a\.json holds no list of records"),
    ],
)
def test_errors_say_what_to_set(tmp_path: Path, tables: dict[str, str], options: dict[str, str], message: str) -> None:
    make(tmp_path, **tables)
    with pytest.raises((ValueError, FileNotFoundError), match=message):
        entries(tmp_path, **options)


def test_views_labels_numbers_and_arrays_have_columns_of_their_own(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    source, lines = tmp_path / "in", ["Front;Side view;Findings;Impression;Age;Sex;CRP;HB;ECG;split"]
    make(source, *(f"{view}/{number}_{view}.png" for view in "fs" for number in range(4)))
    for number in range(4):
        np.save(source / f"{number}.npy", np.full((2, 3), number, np.float64))
        numbers = f"{number},5;{10 * number}.0" if number < 3 else "<3;5"
        lines.append(
            f"{number}_F;C:\\x\\{number}_s.PNG;clear lungs;normal {number};old;f;{numbers};{number}.npy;train"
        )
    lines[2] = lines[2].replace("1_F", "")
    np.save(source / "3.npy", np.zeros(3))
    make(source, t__csv="\n".join(lines))
    named = {"text_column": "Findings,Impression", "label_column": "age=Age,Sex", "number_column": "labs=CRP,labs=HB"}
    manifest = prepare("folder", tmp_path / "out", source=source, **named)
    assert manifest.dropped == {"array: array cannot be used": 1}
    scale = {"columns": ["CRP", "HB"], "mean": [1.5, 8.75], "deviation": [(2 / 3) ** 0.5, np.std([0, 10, 20, 5])]}
    assert manifest.metadata == {"numbers": {"labs": scale}}
    err = capsys.readouterr().err.splitlines()
    assert err[0] == (
        "t.csv: image from 'Front' as front and 'Side view' as side_view, text from 'Findings' and 'Impression', "
        "label from 'Age' as age and 'Sex' as sex, number from 'CRP' as labs and 'HB' as labs, array from 'ECG', "
        "split from 'split'"
    )
    assert "labels: 4 old, 4 f" in err and "1 rows lack some of CRP, HB, and have no labs" in err
    rows = load_split(tmp_path / "out", "train")
    columns = ["front", "side_view", "text", "age", "sex", "question", "answer", "labs", "array"]
    assert rows.column_names == ["id", "split", *columns]
    assert (rows["id"][1], rows["front"][1], rows["side_view"][1] is None) == ("s/1_s.png", None, False)
    assert rows["text"][2] == ["clear lungs normal 2"] and rows["age"][0] == ["old"]
    assert rows["array"][:] == [[[float(number)] * 3] * 2 for number in range(3)] + [None]
    assert rows["labs"][3] is None
    np.testing.assert_allclose(rows["labs"][2], [1.5**0.5, 11.25 / scale["deviation"][1]], rtol=1e-6)
    new = {"split": "none", **named}
    with pytest.raises(ValueError, match=r"CRP, HB: the training rows lack one .* --scale-from"):
        entries(make(tmp_path / "new", t__csv="Findings;Impression;Age;Sex;CRP;HB\na;b;old;f;1,5;0"), **new)
    _, metadata, row = entries(tmp_path / "new", scale_from=tmp_path / "out", **new)
    assert metadata.value == manifest.metadata["numbers"] and row["split"] == "test"
    np.testing.assert_allclose(row["labs"], [0, -8.75 / scale["deviation"][1]])


@pytest.mark.parametrize(("encoding", "named"), [("cp1252", None), ("utf-16", None), ("shift_jis", "shift_jis")])
def test_encodings_of_tables(tmp_path: Path, encoding: str, named: str | None) -> None:
    text = "größer" if named is None else "肺炎の所見"
    (tmp_path / "t.csv").write_bytes("\n".join(["text", *[text] * 3]).encode(encoding))
    assert [row["text"] for row in entries(tmp_path, encoding=named)] == [[text]] * 3
    if named:
        with pytest.raises(ValueError, match=r"t\.csv: 3 of 3 rows are not UTF-8: name the encoding with --encoding"):
            entries(tmp_path)


def test_an_excel_table(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    book = pytest.importorskip("openpyxl").Workbook()
    for sheet in (book.active, book.create_sheet()):
        sheet.append(["image", "text"])
        sheet.append(["x.png", "größer"])
    book["Sheet1"].delete_rows(2)
    book.save(make(tmp_path, "x.png") / "t.xlsx")
    (row,) = entries(tmp_path)
    assert (row["image"], row["text"]) == (tmp_path / "x.png", ["größer"])
    assert capsys.readouterr().err.startswith("t.xlsx: image from 'image', text from 'text'\n")
    book["Sheet1"].append(["x.png", "b"])
    book["Sheet1"].append(["x.png", "c"])
    book.save(tmp_path / "t.xlsx")
    entries(tmp_path)
    assert capsys.readouterr().err.startswith("t.xlsx: read from sheet 'Sheet'; not used: 'Sheet1'\n")
    book["Sheet"].title, book["Sheet1"].title = "Train", "Val"
    book.save(tmp_path / "t.xlsx")
    assert [row["split"] for row in entries(tmp_path)] == ["train", "validation", "validation"]


def test_equal_rows_are_named(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    make(tmp_path, "x.png", t__csv="image,text\nx.png,a\nx.png,a\nx.png,b\n")
    assert len(entries(tmp_path)) == 3
    assert (
        "1 rows equal an earlier one in all cells, such as x.png-2 and x.png: they are kept" in capsys.readouterr().err
    )


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
