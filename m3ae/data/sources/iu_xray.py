"""Indiana University chest X-rays (Open-i): frontal and lateral views, report, and problems as labels.

Layout, as on Kaggle: `indiana_reports.csv`, `indiana_projections.csv`, the images under `images/` or
`images/images_normalized/`; an optional `splits.csv` (uid,split) decides which studies are used and for what.
"""

from collections import defaultdict
from collections.abc import Iterator
from itertools import zip_longest
from pathlib import Path
from typing import Any

from m3ae.data.prepared import Rejected
from m3ae.data.sources import _common as common
from m3ae.data.tables import require_folder

LEFT_OUT_BY_CHOICE = ("study not in splits.csv",)

FEATURES = common.features(
    study=common.STRING, frontal=common.IMAGE, lateral=common.IMAGE, text=common.STRINGS, labels=common.STRINGS
)

SECTIONS = ("findings", "impression", "indication", "comparison")
PROJECTION_COLUMNS = ("uid", "filename", "projection")


def rows(source: Path, *, sections: str = "findings,impression") -> Iterator[dict[str, Any] | Rejected]:
    """Yield one row per frontal–lateral pair; a study with more than two images gives rows `uid`, `uid-2`, ….

    A study without a report, or without images, is a row that lacks that modality. De-identification marks (`XXXX`)
    stay in the text.

    Args:
        source: the unpacked folder with its CSV files.
        sections: sections of the report that make up the text, in this order, out of findings, impression, indication
            and comparison, separated by commas.
    """
    chosen = common.check_sections(sections, SECTIONS)
    require_folder(source, "the unpacked IU X-ray folder with its CSV files")
    rejected: list[Rejected] = []
    reports = common.read_records(source / "indiana_reports.csv", ("uid", "Problems", *chosen), None, rejected, "text")
    projections = common.read_records(source / "indiana_projections.csv", PROJECTION_COLUMNS, None, rejected)
    yield from rejected
    files = _image_files(source)
    views: dict[str, dict[str, list[Path]]] = defaultdict(lambda: {"frontal": [], "lateral": []})
    for projection in projections:
        uid, filename, view = (projection[column] for column in PROJECTION_COLUMNS)
        if view.lower() in views[uid]:
            views[uid][view.lower()].append(files.get(_stem(filename), source / "images" / Path(filename).name))
        else:
            yield Rejected(filename, "projection neither frontal nor lateral", detail=view)

    known = {report["uid"] for report in reports}
    reports += [dict.fromkeys(("Problems", *chosen), "") | {"uid": uid} for uid in views if uid not in known]
    splits = source / "splits.csv"
    table = common.read_splits(splits, ("uid",), "uid", "study") if splits.is_file() else []
    split_of = {record["uid"]: record["split"] for record in table}
    split_of = split_of or {report["uid"]: common.hash_split(report["uid"]) for report in reports}
    for report in reports:
        if report["uid"] in split_of:
            text = " ".join(report[section] for section in chosen)
            yield from _study_rows(report, split_of[report["uid"]], text, **views[report["uid"]])
        else:
            yield Rejected(report["uid"], "study not in splits.csv")
    studies = {report["uid"] for report in reports}
    yield from (Rejected(uid, "study only in splits.csv", split_of[uid]) for uid in split_of if uid not in studies)


def _study_rows(
    report: dict[str, str], split: str, text: str, frontal: list[Path], lateral: list[Path]
) -> Iterator[dict[str, Any]]:
    labels = [label.strip() for label in report["Problems"].split(";") if label.strip()]
    pairs = list(zip_longest(frontal, lateral)) or [(None, None)]
    for number, (front, side) in enumerate(pairs, start=1):
        yield {
            "id": report["uid"] if number == 1 else f"{report['uid']}-{number}",
            "split": split,
            "study": report["uid"],
            "frontal": front,
            "lateral": side,
            "text": [text],
            "labels": labels,
        }


def _image_files(source: Path) -> dict[str, Path]:
    """Find the image files by stem, because the CSV says `.dcm.png` where copies hold `.dcm.jpg`."""
    folder = source / "images"
    nested = folder / "images_normalized"
    if not folder.is_dir():
        raise FileNotFoundError(f"{folder} is missing: the images belong there or in {nested}")
    paths = sorted((nested if nested.is_dir() else folder).iterdir())
    return {_stem(path.name): path for path in paths}


def _stem(filename: str) -> str:
    return filename.partition(".")[0]
