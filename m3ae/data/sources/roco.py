"""ROCO v1 (Pelka et al., LABELS 2018): figures of open-access articles with captions, UMLS concepts and keywords.

Layouts: the repository, `data/{train,validation,test}/{radiology,non-radiology}/` with `captions.txt`, `cuis.txt`,
`keywords.txt`, `semtypes.txt`, `dlinks.txt` and `images/<ROCO id>.jpg`; or the copy on Kaggle,
`all_data/{train,validation,test}/…`, where images are called `PMC…_<figure>.jpg` and tables such as
`radiologytraindata.csv` (id,name,caption) say which is which. Splits may be called `val`, as the published M3AE does,
and lie at the top of the folder.
"""

import os
import re
from collections.abc import Iterator
from itertools import chain
from pathlib import Path
from typing import Any, Literal

from m3ae.data.prepared import Rejected
from m3ae.data.sources import _common as common
from m3ae.data.tables import HIDDEN, Broken, is_nested, read_jsonl, require_folder, visible_files

Table = list[dict[str, str]]

FEATURES = common.features(
    **dict.fromkeys(("group", "article", "figure"), common.STRING),
    image=common.IMAGE,
    **dict.fromkeys(("text", "labels", "keywords", "semantic_types"), common.STRINGS),
)

GROUPS = ("radiology", "non-radiology")
LABEL_FILES = {"labels": "cuis.txt", "keywords": "keywords.txt", "semantic_types": "semtypes.txt"}
ROCO_ID = re.compile(r"ROCO_\d+")
ARCHIVE = re.compile(r"(PMC\d+)\.tar\.gz")
ARTICLE = re.compile(r"PMC\d+(?=_)")
SEMANTIC_TYPE_CODE = re.compile(r"T\d{3}")


def rows(
    source: Path,
    *,
    group: Literal["radiology", "non-radiology", "both"] = "radiology",
    split_by: Literal["published", "article"] = "published",
    references: Path | None = None,
) -> Iterator[dict[str, Any] | Rejected]:
    """Yield one row per figure: UMLS concepts are `labels`, semantic types have their names.

    A figure that only some of the files name is a row without the cells of the others: labels that no line gives are
    null, those of an empty line an empty list.

    Args:
        source: the cloned repository, or the unpacked copy of Kaggle, with the images that could be downloaded.
        group: figures to prepare, radiology, non-radiology (other figures that the authors sorted out) or both.
        split_by: `published`, where 1,195 articles have figures both in validation and in test, or `article`, which
            splits anew, 8:1:1, and keeps all figures of an article in one split.
        references: `roco_{train,val,test}_references.jsonl` of MedICaT, one of them or a folder that holds them: the
            sentences that cite a figure become further texts.
    """
    folders = _group_folders(source, GROUPS if group == "both" else (group,))
    rejected: list[Rejected] = []
    sentences = _read_references(references, rejected) if references else {}
    yield from rejected
    used: set[str] = set()
    for folder, split in folders.items():
        for entry in _folder_rows(folder, split):
            if isinstance(entry, Rejected):
                yield entry
            elif split_by == "article" and entry["article"] is None:
                yield Rejected(entry["id"], "article missing", split)
            else:
                used.add(entry["figure"])
                texts = [*entry["text"], *sentences.get(entry["figure"], [])]
                new_split = split if split_by == "published" else common.hash_split(entry["article"])
                yield entry | {"split": new_split, "text": texts or None}
    for figure in sentences:
        if figure not in used:
            yield Rejected(figure, "figure of the references missing", column="text")


def _group_folders(source: Path, groups: tuple[str, ...]) -> dict[Path, str]:
    """Find the folders of the groups, in the order of `SPLIT_NAMES`, and the split of each."""
    require_folder(source, "the ROCO repository or its copy on Kaggle")
    for root in (source / "data", source / "all_data", source):
        folders = {root / name / group: split for name, split in common.SPLIT_NAMES.items() for group in groups}
        if present := {folder: split for folder, split in folders.items() if folder.is_dir()}:
            return present
    raise FileNotFoundError(
        f"{source} holds no folder {' or '.join(groups)} of a split: expected data/train/{groups[0]} as in the "
        f"repository, all_data/train/{groups[0]} as on Kaggle, or train/{groups[0]}"
    )


def _folder_rows(folder: Path, split: str) -> Iterator[dict[str, Any] | Rejected]:
    """Yield the rows of one group in one split, `text` a list that may be empty."""
    rejected: list[Rejected] = []
    tables = _kaggle_tables(folder, split, rejected)
    figures = _figure_names(folder, split, tables, rejected)
    labels = {column: _labels(folder / name, split, column, rejected) for column, name in LABEL_FILES.items()}
    captions = _captions(folder, split, tables, rejected)
    captioned = {name for name, _ in captions}
    others = dict.fromkeys(chain(figures, *labels.values()))
    yield from rejected

    images = folder / "images"
    present = set(os.listdir(images)) if images.is_dir() else set()
    for name, caption in [*captions, *((name, None) for name in others if name not in captioned)]:
        figure = figures.get(name)
        file_names = [f"{name}.jpg", *([figure] if figure else [])]
        expected = file_names[-1 if tables else 0]
        yield {
            "id": name,
            "split": split,
            "group": folder.name,
            "article": article[0] if (article := ARTICLE.match(figure or "")) else None,
            "figure": figure,
            "image": images / next((file for file in file_names if file in present), expected),
            "text": [] if caption is None else [caption],
            **{column: by_name.get(name) for column, by_name in labels.items()},
        }


def _kaggle_tables(folder: Path, split: str, rejected: list[Rejected]) -> list[Table]:
    """Read the tables that Kaggle adds in the folder, `traindata.csv`, and beside it, `radiologytraindata.csv`."""
    beside = folder.parent.glob(f"{folder.name.replace('-', '*')}*data.csv")
    paths = sorted(path for path in [*folder.glob("*data.csv"), *beside] if not path.name.startswith(HIDDEN))
    return [common.read_records(path, ("id", "name", "caption"), split, rejected) for path in paths]


def _captions(folder: Path, split: str, tables: list[Table], rejected: list[Rejected]) -> list[tuple[str, str]]:
    """Return ids and captions, of `captions.txt` first; ids that one file repeats are repeated."""
    path = folder / "captions.txt"
    if not path.is_file() and not tables:
        raise FileNotFoundError(f"{folder} holds neither captions.txt nor a table such as {split}data.csv")
    listed = [[(name, " ".join(cells)) for name, cells in _read_lines(path, split, None, rejected)]]
    listed += [[(record["id"], record["caption"]) for record in table] for table in tables]
    captions: list[tuple[str, str]] = []
    for pairs in listed:
        known = dict(captions)
        captions += [pair for pair in pairs if pair[0] not in known]
        for name, caption in pairs:
            if caption.split() != known.get(name, caption).split():
                rejected.append(Rejected(name, "second caption of an id", split, "text", caption.strip()))
    return captions


def _figure_names(folder: Path, split: str, tables: list[Table], rejected: list[Rejected]) -> dict[str, str]:
    """Return `PMC…_<figure>.jpg`, which names article and figure, of every id."""
    records = [record for table in tables for record in table]
    names = [(record["id"], name) for record in records if (name := record["name"].strip())]
    for name, cells in _read_lines(folder / "dlinks.txt", split, "figure", rejected):
        if (archive := ARCHIVE.search(cells[0])) and len(cells) == 2:
            names.append((name, f"{archive[1]}_{cells[1].strip()}"))
        else:
            rejected.append(Rejected(name, "article missing", split, "figure", "\t".join(cells)))
    figures: dict[str, str] = {}
    for name, figure in names:
        if figures.setdefault(name, figure) != figure:
            rejected.append(Rejected(name, "second figure of an id", split, "figure", figure))
    return figures


def _labels(path: Path, split: str, column: str, rejected: list[Rejected]) -> dict[str, list[str]]:
    """Return the labels of every id, in order and without repetition; the codes before semantic types are left out."""
    labels: dict[str, list[str]] = {}
    for name, cells in _read_lines(path, split, column, rejected):
        new = [label for cell in cells if (label := cell.strip()) and not SEMANTIC_TYPE_CODE.fullmatch(label)]
        labels[name] = list(dict.fromkeys([*labels.get(name, []), *new]))
    return labels


def _read_lines(
    path: Path, split: str, column: str | None, rejected: list[Rejected]
) -> Iterator[tuple[str, list[str]]]:
    """Yield id and cells of every line of a tab-separated file without quoting; none where it is missing."""
    if not path.is_file():
        return
    with path.open(encoding="utf-8-sig", errors="surrogateescape", newline="\n") as file:
        for number, line in enumerate(file, start=1):
            name, *cells = line.rstrip("\r\n").split("\t")
            if ROCO_ID.fullmatch(name.strip()):
                yield name.strip(), cells or [""]
            elif line.strip():
                name = f"{path.parent.parent.name}/{path.parent.name}/{path.name}, line {number}"
                rejected.append(Rejected(name, "id missing", split, column, line.strip()))


def _read_references(path: Path, rejected: list[Rejected]) -> dict[str, list[str]]:
    """Return the sentences that cite a figure, by its name."""
    below = [] if path.is_file() else visible_files(path)
    files = [path] if path.is_file() else [file for file in below if file.match("roco_*_references.jsonl")]
    if not files:
        raise FileNotFoundError(f"{path} is neither a file nor a folder with roco_*_references.jsonl in it")
    sentences: dict[str, list[str]] = {}
    for file in files:
        for number, record in read_jsonl(file):
            name = f"{file.name}, line {number}"
            if isinstance(record, Broken):
                rejected.append(Rejected(name, record.reason, column="text", detail=record.detail))
            elif not isinstance(record.get("roco_image_id"), str):
                rejected.append(Rejected(name, "id missing", column="text"))
            elif is_nested(record.get("gorc_references")):
                rejected.append(Rejected(record["roco_image_id"], "object in a cell", column="text"))
            else:
                sentences.setdefault(record["roco_image_id"], []).extend(
                    common.cell_texts(record.get("gorc_references"))
                )
    return sentences
