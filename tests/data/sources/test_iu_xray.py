"""The IU X-ray reader on generated folders in the published layout, and on the real one."""

import csv
from pathlib import Path

import pytest

from m3ae.data.prepare import prepare
from m3ae.data.prepared import Rejected, load_split
from m3ae.data.sources import iu_xray

REPORT = {"uid": "1", "MeSH": "", "Problems": "Opacity; Lung", "findings": "A b.", "impression": "C d."}
FRONTAL = {"uid": "1", "filename": "1_IM-1.dcm.png", "projection": "Frontal"}
LATERAL = {"uid": "1", "filename": "1_IM-2.dcm.png", "projection": "Lateral"}


def write_csv(path: Path, records: list[dict[str, str]]) -> None:
    with path.open("w", newline="", encoding="utf-8") as file:
        writer = csv.DictWriter(file, records[0])
        writer.writeheader()
        writer.writerows(records)


def make_source(
    folder: Path,
    reports: list[dict[str, str]] | None = None,
    projections: list[dict[str, str]] | None = None,
    splits: dict[str, str] | None = None,
) -> Path:
    (folder / "images").mkdir(parents=True)
    projections = projections or [FRONTAL, LATERAL]
    write_csv(folder / "indiana_reports.csv", reports or [REPORT])
    write_csv(folder / "indiana_projections.csv", projections)
    if splits:
        write_csv(folder / "splits.csv", [{"uid": uid, "split": split} for uid, split in splits.items()])
    for projection in projections:
        (folder / "images" / projection["filename"].replace("png", "jpg")).touch()
    return folder


def test_a_study_becomes_a_row(tmp_path: Path) -> None:
    source = make_source(tmp_path / "iu", splits={"1": "validate"})
    assert list(iu_xray.rows(source)) == [
        {
            "id": "1",
            "split": "validation",
            "study": "1",
            "frontal": source / "images" / "1_IM-1.dcm.jpg",
            "lateral": source / "images" / "1_IM-2.dcm.jpg",
            "text": ["A b. C d."],
            "labels": ["Opacity", "Lung"],
        }
    ]


def test_further_images_of_a_study_get_rows_of_their_own(tmp_path: Path) -> None:
    more = [{**FRONTAL, "filename": "1_IM-3.dcm.png"}, {**FRONTAL, "filename": "1_IM-4.dcm.png"}]
    rows = list(iu_xray.rows(make_source(tmp_path / "iu", projections=[FRONTAL, LATERAL, *more])))
    assert [row["id"] for row in rows] == ["1", "1-2", "1-3"]
    assert [row["lateral"] is None for row in rows] == [False, True, True]
    assert [row["frontal"].name for row in rows] == ["1_IM-1.dcm.jpg", "1_IM-3.dcm.jpg", "1_IM-4.dcm.jpg"]
    assert {row["text"][0] for row in rows} == {"A b. C d."}


def test_a_study_that_lacks_images_or_its_report_is_a_row_without_them(tmp_path: Path) -> None:
    source = make_source(tmp_path / "iu", reports=[{**REPORT, "uid": "7"}])
    text_only, images_only = iu_xray.rows(source)
    assert (text_only["id"], text_only["frontal"], text_only["lateral"]) == ("7", None, None)
    assert (images_only["id"], images_only["text"][0].strip(), images_only["labels"]) == ("1", "", [])


def test_the_kaggle_layout_is_found(tmp_path: Path) -> None:
    source = make_source(tmp_path / "iu")
    nested = source / "images" / "images_normalized"
    nested.mkdir()
    (nested / "1_IM-1.dcm.png").touch()
    (row,) = iu_xray.rows(source)
    assert row["frontal"] == nested / "1_IM-1.dcm.png"


def test_a_file_name_cannot_leave_the_folder(tmp_path: Path) -> None:
    (tmp_path / "secret.png").touch()
    source = make_source(tmp_path / "iu")
    write_csv(source / "indiana_projections.csv", [{**FRONTAL, "filename": "../../secret.png"}])
    (row,) = iu_xray.rows(source)
    assert row["frontal"] == source / "images" / "secret.png"


def test_what_has_no_place_is_rejected_with_its_reason(tmp_path: Path) -> None:
    odd = {**FRONTAL, "filename": "1_IM-9.dcm.png", "projection": "Oblique"}
    reports = [REPORT, {**REPORT, "uid": "2"}]
    source = make_source(tmp_path / "iu", reports, [FRONTAL, odd], splits={"1": "train", "3": "test"})
    assert [entry for entry in iu_xray.rows(source) if isinstance(entry, Rejected)] == [
        Rejected("1_IM-9.dcm.png", "projection neither frontal nor lateral", detail="Oblique"),
        Rejected("2", "study not in splits.csv"),
        Rejected("3", "study only in splits.csv", "test"),
    ]


def test_a_broken_line_costs_its_report_alone(tmp_path: Path) -> None:
    source = make_source(tmp_path / "iu")
    lines = ['1,Opacity,"Not closed,x', "2,,Lungs, clear,x", "3,,Clear lungs.,Normal."]
    (source / "indiana_reports.csv").write_text("\n".join(["uid,Problems,findings,impression", *lines]))
    first, second, *rows = iu_xray.rows(source)
    line = 'line 2: 1,Opacity,"Not closed,x'
    assert first == Rejected("1", "quotation mark not closed", column="text", detail=line)
    assert second == Rejected("2", "more cells than columns", column="text")
    assert [(row["id"], row["text"], row["frontal"] is None) for row in rows if isinstance(row, dict)] == [
        ("3", ["Clear lungs. Normal."], True),
        ("1", [" "], False),
    ]


def test_numbers_that_a_program_wrote_with_a_point_are_the_same(tmp_path: Path) -> None:
    projections = [{**FRONTAL, "uid": "1.0"}, {**LATERAL, "uid": "1"}]
    (row,) = iu_xray.rows(make_source(tmp_path / "iu", projections=projections, splits={"1.0": "test"}))
    assert (row["id"], row["split"], row["frontal"] is None, row["lateral"] is None) == ("1", "test", False, False)


def test_without_splits_studies_are_split_by_hash(tmp_path: Path) -> None:
    source = make_source(tmp_path / "iu", reports=[{**REPORT, "uid": uid} for uid in ("1", "3", "7")])
    assert [row["split"] for row in iu_xray.rows(source)] == ["train", "validation", "test"]


def test_sections_are_chosen_and_ordered(tmp_path: Path) -> None:
    report = {**REPORT, "indication": "Pain since XXXX.", "comparison": ""}
    source = make_source(tmp_path / "iu", reports=[report])
    (row,) = iu_xray.rows(source, sections="impression, indication,comparison")
    assert row["text"][0].strip() == "C d. Pain since XXXX."
    with pytest.raises(ValueError, match="unknown sections history: expected some of findings, impression"):
        list(iu_xray.rows(source, sections="findings,history"))


@pytest.mark.parametrize(
    ("file", "content", "message"),
    [
        ("indiana_reports.csv", "", "is empty"),
        ("indiana_reports.csv", "uid,Problems,findings,impression\n", "is empty"),
        ("indiana_reports.csv", "uid,Problems,findings\n1,a,b\n", "lacks the columns impression: it has uid, "),
        ("indiana_projections.csv", "uid,file\n1,a\n", "lacks the columns filename, projection"),
        ("indiana_reports.csv", "uid,Problems,findings,impression,uid\n1,a,b,c,d\n", "has several columns called uid"),
        ("splits.csv", "uid,split\n1,fold1\n", r"unknown splits \['fold1'\]: expected train, "),
        ("splits.csv", "uid,split\n1,train,\n1,test\n", "puts study 1 into train and into test"),
        ("splits.csv", 'uid,split\n1,"train\n', "does not give the split of 1: quotation mark not closed"),
    ],
)
def test_a_csv_in_the_wrong_format_is_a_clear_error(tmp_path: Path, file: str, content: str, message: str) -> None:
    source = make_source(tmp_path / "iu")
    (source / file).write_text(content)
    with pytest.raises(ValueError, match=f"{file} .*{message}"):
        list(iu_xray.rows(source))


@pytest.mark.parametrize("missing", ["", "indiana_reports.csv", "images"])
def test_a_missing_part_is_named(tmp_path: Path, missing: str) -> None:
    source = make_source(tmp_path / "iu")
    (source / missing).rename(tmp_path / "elsewhere")
    with pytest.raises(FileNotFoundError, match=str(source / missing)):
        list(iu_xray.rows(source))


@pytest.mark.real_data
def test_the_real_folder_is_prepared_in_full(tmp_path: Path, shared: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("datasets.config.HF_DATASETS_CACHE", tmp_path / "cache")
    source = shared / "data" / "iu_xray"
    manifest = prepare("iu_xray", tmp_path / "prepared", source=source, num_workers=2)
    assert (manifest.rejected, manifest.dropped) == ({}, {})
    assert {name: (info.rows, info.texts) for name, info in manifest.splits.items()} == {
        "train": (1478, 1478),
        "validation": (158, 158),
        "test": (211, 211),
    }
    assert sum(sum(info.images.values()) for info in manifest.splits.values()) == 3502
    studies = {split: set(load_split(tmp_path / "prepared", split)["study"]) for split in manifest.splits}
    assert {split: len(uids) for split, uids in studies.items()} == {"train": 1400, "validation": 150, "test": 200}
    assert len(set.union(*studies.values())) == 1750
    first = next(entry for entry in iu_xray.rows(source) if isinstance(entry, dict) and entry["split"] == "test")
    row = load_split(tmp_path / "prepared", "test")[0]
    assert (row["id"], row["frontal"]["bytes"]) == (first["id"], first["frontal"].read_bytes())
