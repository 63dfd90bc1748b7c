"""MIMIC-CXR: chest X-rays with reports, as JPEG (MIMIC-CXR-JPG), PNG or DICOM files, paired by study.

Layout: `files/p10/p10000032/s50414267/<dicom_id>.jpg` (all files of one format), and beside `files/` the tables of
MIMIC-CXR-JPG, plain or gzipped: `mimic-cxr-2.0.0-metadata.csv`, `-split.csv`, `-chexpert.csv`, `-negbio.csv`. Reports
lie beside the study folders, `files/p10/p10000032/s50414267.txt`, or in an equal layout elsewhere.
"""

import os
import re
from collections.abc import Iterable, Iterator
from contextlib import suppress
from dataclasses import dataclass, field
from itertools import zip_longest
from pathlib import Path
from typing import Any, Literal

from m3ae.data.prepared import Rejected
from m3ae.data.sources import _common as common
from m3ae.data.tables import require_folder

FEATURES = common.features(
    **dict.fromkeys(("subject", "study", "view"), common.STRING),
    **dict.fromkeys(("frontal", "lateral"), common.IMAGE),
    **dict.fromkeys(("text", "labels", "labels_negative", "labels_uncertain"), common.STRINGS),
)

TABLE = "mimic-cxr-2.0.0-{}.csv"
METADATA_COLUMNS = ("dicom_id", "subject_id", "study_id", "ViewPosition")
FRONTAL, LATERAL = ("PA", "AP"), ("LATERAL", "LL")
SUFFIXES = (".jpg", ".png", ".dcm")
SECTIONED = ("findings", "impression", "comparison")  # of mimic_cxr_sectioned.csv, with last_paragraph
LABEL_COLUMNS = {"1": "labels", "0": "labels_negative", "-1": "labels_uncertain"}

HEADINGS = {
    "examination": ("EXAMINATION", "EXAM", "EXAMINATIONS", "TYPE OF EXAMINATION", "STUDY"),
    "indication": (
        *("INDICATION", "INDICATIONS", "CLINICAL INDICATION", "INDICATION FOR STUDY"),
        *("HISTORY", "CLINICAL HISTORY", "PATIENT HISTORY", "MEDICAL HISTORY", "CLINICAL INFORMATION"),
        *("REASON FOR EXAM", "REASON FOR EXAMINATION", "REASON FOR STUDY", "REASON FOR THIS EXAMINATION"),
    ),
    "technique": ("TECHNIQUE", "TECHNIQUES"),
    "comparison": (
        *("COMPARISON", "COMPARISONS", "COMPARISON EXAM", "COMPARISON EXAMS", "COMPARISON FILM", "COMPARISON FILMS"),
        *("COMPARISON STUDY", "COMPARISON STUDIES", "COMPARISON EXAMINATION", "REFERENCE EXAM"),
    ),
    "findings": ("FINDINGS", "FINDING"),
    "impression": (
        *("IMPRESSION", "IMPRESSIONS", "CONCLUSION", "CONCLUSIONS", "FINDINGS AND IMPRESSION", "FINDINGS/IMPRESSION"),
        *("FINDINGS AND IMPRESSIONS", "IMPRESSION AND FINDINGS", "IMPRESSION/FINDINGS", "FINAL IMPRESSION"),
    ),
    "recommendations": ("RECOMMENDATION", "RECOMMENDATIONS", "RECOMMENDATION(S)"),
    "notification": ("NOTIFICATION", "NOTIFICATIONS"),
    "comment": ("COMMENT", "COMMENTS"),
    "wet_read": ("WET READ", "WETREAD", "PROVISIONAL FINDINGS IMPRESSION (PFI)", "PROVISIONAL FINDINGS IMPRESSION"),
    "addendum": ("ADDENDUM", "FINAL ADDENDUM"),
}
NOTES = ("wet_read", "addendum")
BEFORE_FINDINGS = ("preamble", "examination", "indication", "technique", "comparison")
VIEW_WORDS = {"CHEST", "VIEW", "VIEWS", "RADIOGRAPH", "RADIOGRAPHS", "FILM", "FILMS", "PA", "AP", "LATERAL"}

_SECTION_OF = {name: section for section, names in HEADINGS.items() for name in names}


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
    report does not mention the findings that none of them holds, and all three are null where the study has no labels.
    Splits are the official ones; without their table, subjects are split 8:1:1. No dates are kept.

    Args:
        source: the folder that holds `files/` and the tables of MIMIC-CXR-JPG.
        reports: the folder that holds the reports, if they are elsewhere.
        sections: sections of the report that make up the text, in this order, such as findings, impression or
            indication, separated by commas; from `mimic_cxr_sectioned.csv` if it has them, else from the reports.
        last_paragraph: take the last paragraph of a report that has neither findings nor an impression.
        labeler: program that made the labels to take: chexpert, negbio or none.
    """
    chosen = common.check_sections(sections, HEADINGS)
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
    """Sort the images of the metadata table into studies, and yield those that belong to none."""
    rejected: list[Rejected] = []
    records = common.read_records(source / TABLE.format("metadata"), METADATA_COLUMNS, None, rejected)
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
                    records = common.read_records(path, columns, None, rejected, "text")
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
        texts = [sections[name] for name in self.sections if sections.get(name)]
        if not texts and self.last_paragraph and sections.get("last_paragraph"):
            texts = [sections["last_paragraph"]]
        return ([" ".join(texts)], None) if texts else (None, "report without the chosen sections")


def _splits(source: Path, records: list[dict[str, str]]) -> dict[str, str]:
    """Return the split of every image."""
    path = source / TABLE.format("split")
    try:
        table = common.read_splits(path, ("dicom_id", "subject_id"), "subject_id", "subject")
    except FileNotFoundError:
        return {record["dicom_id"]: common.hash_split(record["subject_id"]) for record in records}
    return {record["dicom_id"]: record["split"] for record in table}


def _read_labels(source: Path, labeler: str, rejected: list[Rejected]) -> dict[str, dict[str, list[str]]]:
    """Return findings by state, by study: the columns of `LABEL_COLUMNS`, and "unknown" for other values."""
    if labeler == "none":
        return {}
    path = source / TABLE.format(labeler)
    try:
        records = common.read_records(path, ("study_id", "subject_id"), None, rejected, "labels")
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
    """Return the suffix of the images in the first folder that has any: a look for each file would take hours."""
    for _, folders, names in os.walk(require_folder(files, "the images, p10/p10000032/s50414267/<dicom_id>.jpg")):
        folders.sort()
        present = {os.path.splitext(name)[1] for name in names}
        for suffix in SUFFIXES:
            if suffix in present:
                return suffix
    raise FileNotFoundError(f"{files} holds no images: expected p10/p10000032/s50414267/<dicom_id>.jpg, .png or .dcm")


def _any_of(names: Iterable[str]) -> str:
    return "|".join(re.escape(name).replace(r"\ ", "[ ]+") for name in sorted(names, key=len, reverse=True))


_NAMES = _any_of(_SECTION_OF)
_HEADING = re.compile(
    rf"""
    ^[ \t]* (?P<line>{_NAMES}) [ \t]*$                                           # alone on a line
    | (?<!\S) (?P<capitals>{_NAMES}) [ \t]*:                                     # in capitals, anywhere
    | (?:^|(?<=[.;!?_\d)])[ ]) [ \t]* (?P<mixed>(?=[A-Z])(?i:{_NAMES})) [ \t]*:  # else only where a sentence may begin
    | ^[ \t]* (?P<title>[A-Z] (?:[A-Z_ ,()/.&-]|\d|(?<=\d):(?=\d)){{1,100}}) :(?=\s)
    """,
    re.MULTILINE | re.VERBOSE,
)
_NOTE = re.compile(
    rf"^[ \t]*(?P<line>{_any_of(name for note in NOTES for name in HEADINGS[note])})\b(?:[ ]VERSION[ ]\#\d+)?[ \t]*:?",
    re.MULTILINE,
)
_FINAL_REPORT = re.compile(r"^[ \t]*FINAL REPORT\b:?", re.MULTILINE)
_RULER = re.compile(r"^[ \t]*_{10,}[ \t]*$", re.MULTILINE)
_BLANK_LINE = re.compile(r"\n[ \t]*\n")


def split_sections(report: str) -> dict[str, str]:
    """Cut a report into its sections.

    A report is plain text with `___` where something was removed:

    ```
                                     FINAL REPORT
     EXAMINATION:  CHEST (PA AND LAT)

     INDICATION:  ___ year old woman with cough.  COMPARISON:  None.

     FINDINGS:

     The lungs are clear.

     IMPRESSION:  No acute disease.
    ```

    Headings are recognised in capitals anywhere and in mixed case where a sentence may begin; a title such as "CHEST,
    TWO VIEWS:" opens the findings. "FINDINGS AND IMPRESSION" is an impression and a history an indication. The lines
    above "FINAL REPORT" are a preliminary reading or an addendum and do not mix with the report.

    Returns:
        The texts that are not empty, white space collapsed, by section: the keys of `HEADINGS`, and "preamble" for
        the lines before the first heading. Sections of equal names are joined. Without findings and impression,
        "last_paragraph" is all behind the first paragraph of the last section, as in the published
        `mimic_cxr_sectioned.csv`, or all of a report of one paragraph without headings.
    """
    report = _RULER.sub("", report.replace("\r\n", "\n"))
    final = _FINAL_REPORT.search(report)
    above, body = (report[: final.start()], report[final.end() :]) if final else ("", report)
    pieces = _cut(body, _HEADING)
    if not any(section in ("findings", "impression") for section, _ in pieces):
        pieces = _with_last_paragraph(pieces)
    sections: dict[str, list[str]] = {}
    for section, text in _cut(above, _NOTE) + pieces:
        sections.setdefault(section, []).extend(text.split())
    return {section: " ".join(words) for section, words in sections.items()}


def _cut(text: str, heading: re.Pattern[str]) -> list[tuple[str, str]]:
    """Return the section and text of every piece that is not empty."""
    pieces: list[tuple[str, str]] = []
    section, start, is_title = "preamble", 0, False
    for match in [*heading.finditer(text), None]:
        name = re.sub(" +", " ", match[match.lastgroup or 0].upper()) if match else ""
        opens_title = name not in _SECTION_OF
        if match and opens_title and not (section in BEFORE_FINDINGS and VIEW_WORDS & set(re.findall("[A-Z]+", name))):
            continue
        piece = text[start : match.start() if match else len(text)].strip()
        if piece and not (is_title and not re.search("[A-Za-z]", piece)):  # a title may be followed by a date only
            pieces.append((section, piece))
        if match:
            section, start, is_title = _SECTION_OF.get(name, "findings"), match.end(), opens_title
    return pieces


def _with_last_paragraph(pieces: list[tuple[str, str]]) -> list[tuple[str, str]]:
    if not pieces:
        return []
    section, text = pieces[-1]
    first, *others = _BLANK_LINE.split(text)
    if others:
        return [*pieces[:-1], (section, first), ("last_paragraph", "\n\n".join(others))]
    return pieces if len(pieces) > 1 or section != "preamble" else [("last_paragraph", text)]
