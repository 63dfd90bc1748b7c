"""The MIMIC-CXR reader on generated folders in the published layout; texts, ids and labels are made up."""

import csv
import gzip
import io
from collections import Counter
from pathlib import Path
from typing import Any

import pytest
from PIL import Image

from m3ae.data.prepare import prepare
from m3ae.data.prepared import Rejected, load_split
from m3ae.data.sources import mimic_cxr

COLUMNS = {
    "metadata": (
        "dicom_id,subject_id,study_id,PerformedProcedureStepDescription,ViewPosition,Rows,Columns,StudyDate,StudyTime,"
        "ProcedureCodeSequence_CodeMeaning,ViewCodeSequence_CodeMeaning,PatientOrientationCodeSequence_CodeMeaning"
    ),
    "split": "dicom_id,study_id,subject_id,split",
    "chexpert": (
        "subject_id,study_id,Atelectasis,Cardiomegaly,Consolidation,Edema,Enlarged Cardiomediastinum,Fracture,"
        "Lung Lesion,Lung Opacity,No Finding,Pleural Effusion,Pleural Other,Pneumonia,Pneumothorax,Support Devices"
    ),
}
REPORT = """                                 FINAL REPORT
 EXAMINATION:  CHEST (PA AND LAT)

 INDICATION:  ___ year old woman with a made-up cough.  // invented?

 COMPARISON:  ___.

 FINDINGS:

 The invented lungs are
 clear.

 IMPRESSION:

 Nothing that exists.
"""
UNTITLED = """                                 FINAL REPORT
 HISTORY:  Invented.

 The heart is made up.
"""
FOLDER = "files/p10/p10000001"


def write_csv(path: Path, columns: str, records: list[dict[str, str]]) -> None:
    text = io.StringIO(newline="")
    writer = csv.DictWriter(text, columns.split(","), restval="", extrasaction="ignore")
    writer.writeheader()
    writer.writerows(records)
    content = text.getvalue().encode()
    path.write_bytes(gzip.compress(content) if path.suffix == ".gz" else content)


def image(name: str, study: str, view: str, subject: str = "10000001") -> dict[str, str]:
    described = {"Rows": "8", "Columns": "8", "StudyDate": "21800101", "StudyTime": "120000.0"}
    return {"dicom_id": name, "subject_id": subject, "study_id": study, "ViewPosition": view} | described


def make_source(
    folder: Path,
    images: list[dict[str, str]],
    *,
    reports: dict[str, str] | None = None,
    labels: dict[str, dict[str, str]] | None = None,
    splits: list[dict[str, str]] | None = None,
    suffix: str = ".jpg",
    table: str = ".csv",
) -> Path:
    """Write a folder as it is downloaded; `reports` and `labels` by study, `splits` for all images by default."""
    for record in images:
        path = folder / f"files/p{record['subject_id'][:2]}/p{record['subject_id']}/s{record['study_id']}"
        path.mkdir(parents=True, exist_ok=True)
        Image.new("L", (8, 8), 99).save(path / f"{record['dicom_id']}{suffix}", "PNG")
    for study, report in (reports or {}).items():
        (folder / FOLDER / f"s{study}.txt").write_text(report)
    tables = {
        "metadata": images,
        "split": splits or [{**record, "split": "train"} for record in images],
        "chexpert": [{"study_id": study} | states for study, states in (labels or {"0": {}}).items()],
    }
    for name, records in tables.items():
        write_csv(folder / f"mimic-cxr-2.0.0-{name}{table}", COLUMNS[name], records)
    return folder


def read(source: Path, **options: Any) -> tuple[list[dict[str, Any]], list[Rejected]]:
    entries = list(mimic_cxr.rows(source, **options))
    rows = [entry for entry in entries if isinstance(entry, dict)]
    assert all(row.keys() == mimic_cxr.FEATURES.keys() for row in rows)
    return rows, [entry for entry in entries if isinstance(entry, Rejected)]


STUDY = [image("aa-1", "50000001", "PA"), image("aa-2", "50000001", "LATERAL")]


@pytest.mark.parametrize("suffix", [".jpg", ".png", ".dcm"])
@pytest.mark.parametrize("table", [".csv", ".csv.gz"])
def test_a_study_becomes_a_row(tmp_path: Path, suffix: str, table: str) -> None:
    states = {"Edema": "1.0", "Fracture": "0.0", "Pneumonia": "-1.0", "Cardiomegaly": "1.0"}
    source = make_source(
        tmp_path, STUDY, reports={"50000001": REPORT}, labels={"50000001": states}, suffix=suffix, table=table
    )
    assert list(mimic_cxr.rows(source)) == [
        {
            "id": "aa-1",
            "split": "train",
            "subject": "10000001",
            "study": "50000001",
            "view": "PA",
            "frontal": source / FOLDER / "s50000001" / f"aa-1{suffix}",
            "lateral": source / FOLDER / "s50000001" / f"aa-2{suffix}",
            "text": ["The invented lungs are clear. Nothing that exists."],
            "labels": ["Cardiomegaly", "Edema"],
            "labels_negative": ["Fracture"],
            "labels_uncertain": ["Pneumonia"],
        }
    ]


def test_views_are_paired_within_their_study(tmp_path: Path) -> None:
    images = [
        *(image("ap", "50000001", "AP"), image("pa", "50000001", "PA"), image("ll", "50000001", "LL")),
        *(image("lone-frontal", "50000002", "AP"), image("lone-lateral", "50000003", "LATERAL")),
    ]
    rows, _ = read(make_source(tmp_path, images))
    stems = [[row[view] and row[view].stem for view in ("frontal", "lateral")] for row in rows]
    names = [(row["id"], row["view"], *pair) for row, pair in zip(rows, stems, strict=True)]
    assert names == [
        ("pa", "PA", "pa", "ll"),
        ("ap", "AP", "ap", None),
        ("lone-frontal", "AP", "lone-frontal", None),
        ("lone-lateral", "LATERAL", None, "lone-lateral"),
    ]


def test_images_without_a_place_are_rejected_with_their_reason(tmp_path: Path) -> None:
    images = [
        *(*STUDY, image("odd", "50000001", "LPO"), image("blank", "50000002", ""), image("new", "50000003", "PA")),
        *(image("aa-1", "50000001", "PA"), image("hostile", "x", "PA")),
    ]
    gone = {"dicom_id": "gone", "study_id": "50000009", "subject_id": "10000002", "split": "validate"}
    splits = [*({**record, "split": "train"} for record in images if record["dicom_id"] != "new"), gone]
    source = make_source(tmp_path, images, splits=splits, reports={"50000001": REPORT, "50000002": REPORT})
    rows, rejected = read(source)
    assert rejected == [
        Rejected("odd", "view neither frontal nor lateral", "train", detail="LPO"),
        Rejected("blank", "view neither frontal nor lateral", "train", detail="no ViewPosition"),
        Rejected("new", "image not in the split table"),
        Rejected("aa-1", "duplicate id", "train"),
        Rejected("hostile", "subject or study not a number", "train", detail="'10000001', 'x'"),
        Rejected("gone", "image only in the split table", "validation"),
    ]
    assert [(row["id"], row["frontal"] is None, row["view"]) for row in rows] == [
        ("aa-1", False, "PA"),
        ("s50000002", True, None),
    ]


def test_sections_are_chosen_and_ordered(tmp_path: Path) -> None:
    source = make_source(tmp_path, STUDY, reports={"50000001": REPORT})
    (row,), _ = read(source, sections="impression, indication")
    assert row["text"] == ["Nothing that exists. ___ year old woman with a made-up cough. // invented?"]
    with pytest.raises(ValueError, match="unknown sections conclusion: expected some of examination, indication, "):
        read(source, sections="findings,conclusion")


def test_a_report_without_the_sections_gives_its_last_paragraph_or_a_reason(tmp_path: Path) -> None:
    images = [*STUDY, image("bb", "50000002", "AP")]
    source = make_source(tmp_path, images, reports={"50000001": UNTITLED})
    rows, rejected = read(source)
    assert [row["text"] for row in rows] == [["The heart is made up."], None]
    assert rejected == [Rejected("bb", "report missing", "train", "text")]
    rows, rejected = read(source, last_paragraph=False)
    assert [row["text"] for row in rows] == [None, None]
    assert rejected[0] == Rejected("aa-1", "report without the chosen sections", "train", "text")


@pytest.mark.parametrize("below", ["", "files"])
def test_reports_may_lie_elsewhere(tmp_path: Path, below: str) -> None:
    source = make_source(tmp_path / "images", STUDY)
    folder = tmp_path / "reports" / below / "p10" / "p10000001"
    folder.mkdir(parents=True)
    (folder / "s50000001.txt").write_bytes(REPORT.replace("clear", "cle\u00e4r").encode("latin-1"))
    (row,), rejected = read(source, reports=tmp_path / "reports")
    assert (row["text"], rejected) == (["The invented lungs are cle\udce4r. Nothing that exists."], [])


def test_the_sectioned_table_goes_before_the_reports_where_it_has_the_study(tmp_path: Path) -> None:
    images = [*STUDY, image("bb", "50000002", "AP"), image("cc", "50000003", "AP")]
    source = make_source(tmp_path, images, reports={"50000001": REPORT, "50000002": REPORT, "50000003": REPORT})
    columns = "study,impression,findings,last_paragraph,comparison"
    records = [
        {"study": "s50000001", "findings": "From the table.", "impression": ""},
        {"study": "s50000002", "last_paragraph": "The last."},
    ]
    write_csv(source / "mimic_cxr_sectioned.csv", columns, records)
    texts = [row["text"] for row in read(source)[0]]
    assert texts == [["From the table."], ["The last."], ["The invented lungs are clear. Nothing that exists."]]
    (row, *_), _ = read(source, sections="findings,indication")
    assert row["text"] == ["The invented lungs are clear. ___ year old woman with a made-up cough. // invented?"]


def test_labels_have_four_states(tmp_path: Path) -> None:
    images = [*STUDY, image("bb", "50000002", "AP"), image("cc", "50000003", "AP")]
    labels = {"50000001": {}, "50000002": {"Edema": "2.0", "Pneumonia": "-1.0", "No Finding": "1"}}
    source = make_source(tmp_path, images, labels=labels, reports=dict.fromkeys(("50000001", "50000002"), REPORT))
    rows, rejected = read(source)
    lists = [[row[column] for column in ("labels", "labels_negative", "labels_uncertain")] for row in rows]
    assert lists == [[[], [], []], [["No Finding"], [], ["Pneumonia"]], [None, None, None]]
    assert rejected[0] == Rejected("bb", "unknown label value", "train", "labels", "Edema")
    assert read(source, labeler="none")[0][0]["labels"] is None
    with pytest.raises(FileNotFoundError, match=r"negbio\.csv is missing: get it from MIMIC-CXR-JPG or choose"):
        read(source, labeler="negbio")


def test_a_broken_line_costs_its_image_or_its_labels_alone(tmp_path: Path) -> None:
    labels = {"50000001": {"subject_id": "10000001", "Edema": "1.0"}}
    source = make_source(tmp_path / "cxr", STUDY, reports={"50000001": REPORT}, labels=labels)
    with (source / "mimic-cxr-2.0.0-metadata.csv").open("a") as metadata:
        metadata.write('c,10000001,50000001,"not closed\n')
    with (source / "mimic-cxr-2.0.0-chexpert.csv").open("a") as table:
        table.write(f"10000001,50000002{',1.0' * 15}\n")
    rows, rejected = read(source)
    assert [row["labels"] for row in rows] == [["Edema"]]
    assert [(entry.id, entry.reason, entry.column) for entry in rejected] == [
        ("50000002", "more cells than columns", "labels"),
        ("c", "quotation mark not closed", None),
    ]


def test_without_a_split_table_subjects_are_split_by_hash(tmp_path: Path) -> None:
    images = [
        image(f"{subject}-{n}", f"5{subject}{n}", "PA", str(subject)) for subject in range(100, 400) for n in "12"
    ]
    source = make_source(tmp_path, images)
    (source / "mimic-cxr-2.0.0-split.csv").unlink()
    rows, _ = read(source)
    assert len({(row["subject"], row["split"]) for row in rows}) == 300
    counts = Counter(row["split"] for row in rows)
    assert abs(counts["train"] - 480) < 60 and counts["validation"] > 30 and counts["test"] > 30


@pytest.mark.parametrize(
    ("splits", "message"),
    [
        (["train", "dev2"], r"unknown splits \['dev2'\]"),
        (["train", "test"], "puts subject 10000001 into train and into test"),
    ],
)
def test_a_wrong_split_table_is_a_clear_error(tmp_path: Path, splits: list[str], message: str) -> None:
    records = [{**record, "split": split} for record, split in zip(STUDY, splits, strict=True)]
    with pytest.raises(ValueError, match=message):
        read(make_source(tmp_path, STUDY, splits=records))


def test_missing_parts_are_named(tmp_path: Path) -> None:
    source = make_source(tmp_path / "mimic", STUDY, suffix=".bmp")
    with pytest.raises(FileNotFoundError, match=r"files holds no images: expected p10/p10000032/"):
        read(source)
    with pytest.raises(FileNotFoundError, match="absent does not exist: expected the folder that holds the reports"):
        read(source, reports=tmp_path / "absent")
    source = make_source(tmp_path / "without table", STUDY)
    (source / "mimic-cxr-2.0.0-metadata.csv").unlink()
    with pytest.raises(FileNotFoundError, match=r"metadata\.csv is missing"):
        read(source)


def test_it_is_prepared_in_full(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("datasets.config.HF_DATASETS_CACHE", tmp_path / "cache")
    images = [
        *STUDY,
        image("bb", "50000002", ""),
        image("cc", "50000003", "AP"),
        image("../../../../../cc", "50000004", "AP"),
    ]
    source = make_source(tmp_path / "mimic", images, reports=dict.fromkeys(("50000001", "50000002"), REPORT))
    (source / FOLDER / "s50000003" / "cc.jpg").write_bytes(b"")
    manifest = prepare("mimic_cxr", tmp_path / "prepared", source=source)
    assert manifest.splits["train"].images == {"frontal": 1, "lateral": 1}
    assert manifest.rejected == {
        "view neither frontal nor lateral": 1,
        "image file empty": 1,
        "path leaves the source folder": 1,
    }
    assert manifest.dropped == {"text: report missing": 2}
    first, second = load_split(tmp_path / "prepared", "train").select_columns(["id", "text", "labels"])
    assert first == {"id": "aa-1", "text": ["The invented lungs are clear. Nothing that exists."], "labels": None}
    assert (second["id"], second["text"]) == ("s50000002", first["text"])
