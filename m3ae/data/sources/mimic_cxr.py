"""MIMIC-CXR: chest X-rays with reports, as JPEG (MIMIC-CXR-JPG), PNG or DICOM files, paired by study.

Layout: `files/p10/p10000032/s50414267/<dicom_id>.jpg` (all files of one format), and beside `files/` the tables of
MIMIC-CXR-JPG, plain or gzipped: `mimic-cxr-2.0.0-metadata.csv`, `-split.csv`, `-chexpert.csv`, `-negbio.csv`. Reports
lie beside the study folders, `files/p10/p10000032/s50414267.txt`, or in the same layout elsewhere.
"""

import os
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import dataclass, field
from itertools import zip_longest
from pathlib import Path
from typing import Any, Literal

import datasets

from m3ae.data.prepared import Rejected
from m3ae.data.reports import HEADINGS, split_sections
from m3ae.data.sources._common import read_records, read_splits
from m3ae.data.splits import hash_split
from m3ae.data.tables import require_folder

STRINGS = datasets.List(datasets.Value("string"))
FEATURES = datasets.Features(
    {
        "id": datasets.Value("string"),
        "split": datasets.Value("string"),
        "subject": datasets.Value("string"),
        "study": datasets.Value("string"),
        "view": datasets.Value("string"),
        "frontal": datasets.Image(),
        "lateral": datasets.Image(),
        "text": STRINGS,
        "labels": STRINGS,
        "labels_negative": STRINGS,
        "labels_uncertain": STRINGS,
    }
)

TABLE = "mimic-cxr-2.0.0-{}.csv"
METADATA_COLUMNS = ("dicom_id", "subject_id", "study_id", "ViewPosition")
FRONTAL, LATERAL = ("PA", "AP"), ("LATERAL", "LL")
SUFFIXES = (".jpg", ".png", ".dcm")
SECTIONED = ("findings", "impression", "comparison")  # of mimic_cxr_sectioned.csv, with last_paragraph
LABEL_COLUMNS = {"1": "labels", "0": "labels_negative", "-1": "labels_uncertain"}


@dataclass(frozen=True)
class Study:
    """One examination: its patient, its split, and the ids of its images by view."""

    subject: str
    study: str
    split: str
    images: dict[str, list[str]] = field(default_factory=lambda: {view: [] for view in FRONTAL + LATERAL})

    @property
    def folder(self) -> Path:
        """Folder of the images below `files`; with `.txt` behind its name, the report."""
        return Path(f"p{self.subject[:2]}", f"p{self.subject}", f"s{self.study}")


def rows(
    source: Path,
    *,
    reports: Path | None = None,
    sections: str = "findings,impression",
    last_paragraph: bool = True,
    labeler: Literal["chexpert", "negbio", "none"] = "chexpert",
) -> Iterator[dict[str, Any] | Rejected]:
    """Yield one row per frontal view, PA before AP, with a lateral view of its study; a lateral left over is a row.

    A row has the `dicom_id` of its first image; a study without usable views is a row with a text only, `s50414267`.
    `labels` holds the positive findings, `labels_negative` the absent and `labels_uncertain` the uncertain ones; a
    finding in none of them was not mentioned, and all three are null where the study was not labelled. Splits are the
    official ones; without their table, subjects are split 8:1:1. No dates are kept.

    Args:
        source: the folder that holds `files/` and the tables of MIMIC-CXR-JPG.
        reports: the folder that holds the reports, if that is another one.
        sections: parts of the report that make up the text, in this order, such as findings, impression or indication,
            separated by commas; taken from `mimic_cxr_sectioned.csv` where that has them, else from the reports.
        last_paragraph: take the last paragraph of a report that has neither findings nor an impression.
        labeler: whose labels to take: chexpert, negbio or none.

    Raises:
        FileNotFoundError: a folder or a table is missing, or there are no images.
        ValueError: there is no such section; or a table lacks a column, names an unknown split or puts a
            subject into two splits.
    """
    chosen = [section.strip() for section in sections.split(",")]
    if unknown := [section for section in chosen if section not in HEADINGS]:
        raise ValueError(f"unknown sections {', '.join(unknown)}: expected some of {', '.join(HEADINGS)}")
    require_folder(source, "the folder that holds files/ and the tables of MIMIC-CXR-JPG")
    reports = require_folder(reports or source, "the folder that holds the reports")
    rejected: list[Rejected] = []
    texts = ReportReader(source, reports, chosen, last_paragraph, rejected)
    labels = _read_labels(source, labeler, rejected)
    yield from rejected
    suffix = _image_suffix(source / "files")
    studies: dict[str, Study] = {}
    yield from _sort_into(studies, source)
    for study in studies.values():
        text, text_problem = texts.read(study)
        lists = labels.get(study.study, {})
        cells = {"text": text, **{column: lists.get(column) for column in LABEL_COLUMNS.values()}}
        for row in _study_rows(study, source / "files" / study.folder, suffix):
            yield row | cells
            if text_problem:
                yield Rejected(row["id"], text_problem, study.split, column="text")
            if lists.get("unknown"):
                yield Rejected(row["id"], "unknown label value", study.split, "labels", ", ".join(lists["unknown"]))


def _sort_into(studies: dict[str, Study], source: Path) -> Iterator[Rejected]:
    """Sort the images of the metadata table into studies, and yield those that have no place."""
    rejected: list[Rejected] = []
    records = read_records(source / TABLE.format("metadata"), METADATA_COLUMNS, None, rejected)
    yield from rejected
    split_of = _splits(source, records)
    seen = {entry.id for entry in rejected}
    for record in records:
        image, subject, study, view = (record[column] for column in METADATA_COLUMNS)
        split = split_of.get(image)
        if split is None:
            yield Rejected(image, "image not in the split table")
        elif image in seen:
            yield Rejected(image, "duplicate id", split)
        elif not (subject.isdecimal() and study.isdecimal()):
            yield Rejected(image, "subject or study not a number", split, detail=f"{subject!r}, {study!r}")
        else:
            images = studies.setdefault(study, Study(subject, study, split)).images
            if view in images:
                images[view].append(image)
            else:
                yield Rejected(image, "view neither frontal nor lateral", split, detail=view or "no ViewPosition")
        seen.add(image)
    for image, split in split_of.items():
        if image not in seen:
            yield Rejected(image, "image only in the split table", split)


def _study_rows(study: Study, folder: Path, suffix: str) -> Iterator[dict[str, Any]]:
    """Yield the rows of a study without its text and labels."""
    frontals = [(image, view) for view in FRONTAL for image in study.images[view]]
    laterals = [(image, view) for view in LATERAL for image in study.images[view]]
    for frontal, lateral in list(zip_longest(frontals, laterals)) or [(None, None)]:
        image, view = frontal or lateral or (f"s{study.study}", None)
        yield {
            "id": image,
            "split": study.split,
            "subject": study.subject,
            "study": study.study,
            "view": view,
            "frontal": folder / f"{frontal[0]}{suffix}" if frontal else None,
            "lateral": folder / f"{lateral[0]}{suffix}" if lateral else None,
        }


class ReportReader:
    """The texts of studies: from `mimic_cxr_sectioned.csv` where that has the study and the sections, else reports."""

    def __init__(
        self, source: Path, reports: Path, sections: list[str], last_paragraph: bool, rejected: list[Rejected]
    ) -> None:
        self.files = reports / "files" if (reports / "files").is_dir() else reports
        self.sections = sections
        self.last_paragraph = last_paragraph
        self.sectioned: dict[str, dict[str, str]] = {}
        if set(sections) <= set(SECTIONED):
            for folder in dict.fromkeys((source, reports)):
                with suppress(FileNotFoundError):
                    path, columns = folder / "mimic_cxr_sectioned.csv", ("study", *sections, "last_paragraph")
                    records = read_records(path, columns, None, rejected, "text")
                    self.sectioned = {record["study"].removeprefix("s"): record for record in records}

    def read(self, study: Study) -> tuple[list[str] | None, str | None]:
        """Return the text of a study as a list of one, or None and the reason why there is none."""
        sections = self.sectioned.get(study.study)
        if sections is None:
            try:
                report = (self.files / f"{study.folder}.txt").read_text(encoding="utf-8", errors="surrogateescape")
            except OSError:
                return None, "report missing"
            sections = split_sections(report)
        parts = [sections[name] for name in self.sections if sections.get(name)]
        if not parts and self.last_paragraph and sections.get("last_paragraph"):
            parts = [sections["last_paragraph"]]
        return ([" ".join(parts)], None) if parts else (None, "report without the chosen sections")


def _splits(source: Path, records: list[dict[str, str]]) -> dict[str, str]:
    """Return the split of every image."""
    path = source / TABLE.format("split")
    try:
        table = read_splits(path, ("dicom_id", "subject_id"))
    except FileNotFoundError:
        return {record["dicom_id"]: hash_split(record["subject_id"]) for record in records}
    split_of_subject: dict[str, str] = {}
    for record in table:
        subject, split = record["subject_id"], record["split"]
        if split_of_subject.setdefault(subject, split) != split:
            raise ValueError(f"{path} puts subject {subject} into {split_of_subject[subject]} and into {split}")
    return {record["dicom_id"]: record["split"] for record in table}


def _read_labels(source: Path, labeler: str, rejected: list[Rejected]) -> dict[str, dict[str, list[str]]]:
    """Return findings by state, by study: the columns of `LABEL_COLUMNS`, and "unknown" for other values."""
    if labeler == "none":
        return {}
    path = source / TABLE.format(labeler)
    try:
        records = read_records(path, ("study_id", "subject_id"), None, rejected, "labels")
    except FileNotFoundError as error:
        raise FileNotFoundError(f"{path} is missing: get it from MIMIC-CXR-JPG or choose labeler none") from error
    labels = {}
    for record in records:
        lists: dict[str, list[str]] = {column: [] for column in LABEL_COLUMNS.values()}
        for finding, cell in record.items():
            if finding not in ("", "subject_id", "study_id") and (value := cell.strip()):
                lists.setdefault(LABEL_COLUMNS.get(value.removesuffix(".0"), "unknown"), []).append(finding)
        labels[record["study_id"]] = lists
    return labels


def _image_suffix(files: Path) -> str:
    """Return how image names end, from the first folder with images: asking for each file would take hours."""
    for _, folders, names in os.walk(require_folder(files, "the images, p10/p10000032/s50414267/<dicom_id>.jpg")):
        folders.sort()
        found = {os.path.splitext(name)[1] for name in names}
        for suffix in SUFFIXES:
            if suffix in found:
                return suffix
    raise FileNotFoundError(f"{files} holds no images: expected p10/p10000032/s50414267/<dicom_id>.jpg, .png or .dcm")
