"""ROCOv2 (Rückert et al., Scientific Data 2024): radiological figures of articles with captions and UMLS concepts.

Layout, as on Zenodo: `{train,valid,test}_captions.csv` (ID,Caption), `_concepts.csv` and `_concepts_manual.csv`
(ID,CUIs), and the unpacked images `{train,valid,test}/<ID>.jpg`, or `{train,valid,test}_images/<ID>.jpg`.
"""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

from m3ae.data.prepared import Rejected
from m3ae.data.sources._common import IMAGE, SPLIT_NAMES, STRINGS, features, read_records, split_tables

FEATURES = features(image=IMAGE, text=STRINGS, labels=STRINGS, manual_labels=STRINGS)


def rows(source: Path) -> Iterator[dict[str, Any] | Rejected]:
    """Yield one row per figure: all its UMLS concepts are `labels`, the manually curated ones `manual_labels`.

    A figure that only some of the tables name is a row without the cells of the others: an id without concepts has no
    labels (null; an empty cell is an empty list), an id without a caption has no text.

    Args:
        source: the folder with the CSV files and the unpacked images.
    """
    for path, split in split_tables(source, "_captions.csv", "the ROCOv2 folder with its CSV files").items():
        name = path.name.removesuffix("_captions.csv")
        rejected: list[Rejected] = []
        captions = read_records(path, ("ID", "Caption"), split, rejected)
        labels = _concepts(source / f"{name}_concepts.csv", split, rejected, "labels")
        manual = _concepts(source / f"{name}_concepts_manual.csv", split, rejected, "manual_labels")
        yield from rejected
        captioned = {record["ID"] for record in captions}
        figures = [(record["ID"], [record["Caption"]]) for record in captions]
        images = _image_folder(source, name, split)
        for figure, text in [*figures, *((figure, None) for figure in labels | manual if figure not in captioned)]:
            yield {
                "id": figure,
                "split": split,
                "image": images / f"{figure}.jpg",
                "text": text,
                "labels": labels.get(figure),
                "manual_labels": manual.get(figure),
            }


def _concepts(path: Path, split: str, rejected: list[Rejected], column: str) -> dict[str, list[str]]:
    """Return the concepts of every figure, in order and without repetition; none where the table is missing."""
    concepts: dict[str, list[str]] = {}
    for record in read_records(path, ("ID", "CUIs"), split, rejected, column) if path.is_file() else []:
        cuis = [cui.strip() for cui in record["CUIs"].split(";") if cui.strip()]
        concepts[record["ID"]] = list(dict.fromkeys([*concepts.get(record["ID"], []), *cuis]))
    return concepts


def _image_folder(source: Path, name: str, split: str) -> Path:
    """Find the images of a split; tables say `valid` where folders may say `validation`."""
    names = [name, *(other for other, standard in SPLIT_NAMES.items() if standard == split)]
    candidates = [source / f"{folder}{suffix}" for folder in names for suffix in ("", "_images")]
    return next((folder for folder in candidates if folder.is_dir()), source / name)
