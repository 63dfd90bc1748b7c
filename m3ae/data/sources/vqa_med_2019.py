"""VQA-Med 2019 (Ben Abacha et al. 2019): questions about modality, plane and organ of images from MedPix.

Two layouts are understood, mixed too: that of the published M3AE, `train/QA/Modality.csv` with lines
`image|question|answer` and `train/images/*.jpg`, and that of the release, with folders
`ImageClef-2019-VQA-Med-Training/QAPairsByCategory/C1_Modality_train.txt` and `…/Train_images`. The official test set
is one file, `VQAMed2019_Test_Questions_w_Ref_Answers.txt`, with lines `image|category|question|answer`.
"""

import re
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, Literal, NamedTuple

import datasets

from m3ae.data import questions
from m3ae.data.prepared import Rejected
from m3ae.data.rows import Row
from m3ae.data.sources._common import SPLIT_NAMES
from m3ae.data.tables import require_folder, visible_files

LEFT_OUT_BY_CHOICE = ("question about abnormality",)

FEATURES = datasets.Features(questions.QUESTION_FEATURES)

CATEGORIES = ("modality", "organ", "plane")  # in the order of the published M3AE
LEFT_OUT = "abnormality"  # free text, hardly an answer twice: left out in the published M3AE, too


class _Line(NamedTuple):
    """A line of a table: `cells` are image, question and answer, unless the line is broken."""

    id: str
    images: Path
    split: str
    category: str
    cells: list[str]
    text: str


def rows(source: Path, *, answers_from: Literal["train", "all"] = "train") -> Iterator[Row | Rejected]:
    """Yield one row per question, in the order of the images; the id is made of split, category and line.

    Where `a#b` is the answer, both are right; with the published list, which has `a#b` as one answer, so is `a#b`.
    Questions about abnormality are left out. The answer type, which is not published, is closed where the answer is
    yes or no.

    Args:
        source: the folder that holds the unpacked parts.
        answers_from: splits that the list of answers is made from: train, or all of them, test included, which gives
            the list of the published M3AE in its order.
    """
    require_folder(source, "the VQA-Med 2019 folder with the unpacked training, validation and test parts")
    yield from questions.by_image(_row(line, answers_from == "all") for line in _lines(source))


def extras(rows: dict[str, list[Row]], options: Mapping[str, Any]) -> dict[str, Any]:
    """Return the list of answers as the contents of `answers.json`, see `m3ae.data.questions.describe_answers`."""
    published = published_answers(options["source"]) if options["answers_from"] == "all" else None
    return {questions.ANSWERS_FILE: questions.describe_answers(rows, published)}


def published_answers(source: Path) -> list[str]:
    """Return the answers of all splits in the published order, by category and line; `a#b` is one of them."""
    lines = [line for line in _lines(source) if line.category in CATEGORIES and len(line.cells) == 3]
    lines.sort(key=lambda line: (questions.SPLITS.index(line.split), CATEGORIES.index(line.category)))
    return [line.cells[2] for line in lines]


def _is_table(path: Path) -> bool:
    """Return whether a file holds the questions of a category, or the test questions with their answers."""
    if path.suffix.lower() not in (".csv", ".txt"):
        return False
    return _category(path.stem) is not None or {"test", "answers"} <= set(_words(path.stem))


def _lines(source: Path) -> Iterator[_Line]:
    tables = [path for path in visible_files(source) if _is_table(path)]
    if not tables:
        raise FileNotFoundError(
            f"{source} holds no questions: expected train/QA/Modality.csv, C1_Modality_train.txt and the like, or "
            "VQAMed2019_Test_Questions_w_Ref_Answers.txt"
        )
    for path in tables:
        yield from _table_lines(source, path)


def _table_lines(source: Path, path: Path) -> Iterator[_Line]:
    split = next(filter(None, map(_split, (path.stem, *reversed(path.relative_to(source).parts[:-1])))), None)
    if split is None:
        raise ValueError(f"{path}: neither its name nor its folders say train, validation or test")
    images = _image_folder(source, path, split)
    # not by the csv module, to which a quotation mark at the start of a question would swallow the lines after it
    lines = path.read_text(encoding="utf-8-sig", errors="surrogateescape").split("\n")
    for number, line in enumerate(lines, start=1):
        if line.strip():
            category, cells = _category(path.stem), [" ".join(cell.split()) for cell in line.split("|")]
            if category is None:
                category = cells.pop(1).lower() if len(cells) == 4 else "unknown"
            yield _Line(f"{split}-{category}-{number}", images, split, category, cells, line)


def _row(line: _Line, accept_both: bool) -> Row | Rejected:
    row_id, images, split, category, cells, text = line
    if len(cells) != 3:
        return Rejected(row_id, "line not image|question|answer or image|category|question|answer", split, detail=text)
    if category == LEFT_OUT:
        return Rejected(row_id, "question about abnormality", split)
    if category not in CATEGORIES:
        return Rejected(row_id, "category unknown", split, detail=category)
    image, question, answer = cells
    accepted = answer.split("#")
    is_closed = all(choice.strip().lower() in ("yes", "no") for choice in accepted)
    answer_type = "closed" if is_closed else "open"
    if accept_both and answer.strip("# "):
        accepted.append(answer)
    return questions.question_row(
        row_id, split, images / f"{image}.jpg", question, answer, accepted, answer_type, category
    )


def _image_folder(source: Path, table: Path, split: str) -> Path:
    """Find the images of a table in its folder or in the one above: `images`, `Train_images` and the like."""
    for folder in (table.parent, table.parent.parent):
        if folder.is_relative_to(source):
            for path in sorted(folder.iterdir()):
                if path.is_dir() and _words(path.name)[-1:] == ["images"] and _split(path.name) in (split, None):
                    return path
    return source / "images"


def _words(name: str) -> list[str]:
    return re.findall("[a-z]+", name.lower())


def _split(name: str) -> str | None:
    return next((SPLIT_NAMES[word] for word in _words(name) if word in SPLIT_NAMES), None)


def _category(name: str) -> str | None:
    return next((word for word in _words(name) if word in (*CATEGORIES, LEFT_OUT)), None)
