"""Questions and their answers: rows of question-answering sources, comparison of answers, and lists of answers.

Answers are normalised by the rules of the VQA evaluation (Antol et al. 2015, `vqaEval.py`), as in the published M3AE.
On VQA-RAD they leave 461 different answers in train, and 498, the published number, in train and test.
"""

import re
import unicodedata
from collections import Counter
from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from itertools import chain
from pathlib import Path
from typing import Any

import datasets
import regex

from m3ae.data.prepared import Rejected
from m3ae.data.rows import Row
from m3ae.data.tables import printable, read_json

STRING = datasets.Value("string")
SPLITS = ("train", "validation", "test")
ANSWER_TYPES = ("closed", "open")
ANSWERS_FILE = "answers.json"

# Answers are compared by `answer` and `answers`, both normalised; `answer_raw` is the published answer.
QUESTION_FEATURES = {
    **dict.fromkeys(("id", "split"), STRING),
    "image": datasets.Image(),
    **dict.fromkeys(("question", "answer"), STRING),
    "answers": datasets.List(STRING),
    **dict.fromkeys(("answer_raw", "answer_type", "question_type"), STRING),
}

PUNCTUATION = ';/[]"{}()=+\\_-><@`,?!'
# marks that end a sentence, separate, quote or bracket in other scripts; an apostrophe belongs to its word
OTHER_PUNCTUATION = regex.compile(
    r"[[\p{Terminal_Punctuation}\p{Ps}\p{Pe}\p{Pi}\p{Pf}\p{Pd}\u30fb]--[\p{ASCII}\u2018\u2019]]"
    r"|(?<=\P{ASCII}):|:(?=\P{ASCII})",
    regex.V1,
)
NUMBER_WORDS = ("zero", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine", "ten")
NUMBERS = {"none": "0", **{word: str(number) for number, word in enumerate(NUMBER_WORDS)}}
ARTICLES = ("a", "an", "the")
CONTRACTED = """
    ain't aren't can't could've couldn't couldn't've didn't doesn't don't hadn't hadn't've hasn't haven't he'd
    he'd've he's how'd how'll how's isn't it'd it'd've it'll ma'am might've mightn't mightn't've must've mustn't
    needn't not've o'clock oughtn't 'ow's'at shan't she'd've should've shouldn't shouldn't've somebody'd've
    somebody'll somebody's someone'd someone'd've someone'll someone's something'd something'd've something'll
    that's there'd there'd've there're there's they'd they'd've they'll they're they've 'twas wasn't we'd've we've
    weren't what'll what're what's what've when's where'd where's where've who'd who'd've who'll who's who've
    why'll why're why's won't would've wouldn't wouldn't've y'all y'all'd've y'all'll you'd you'd've you'll you're
    you've
"""
CONTRACTIONS = {  # spelt with one apostrophe too few: "dont", "couldn'tve"
    word[:position] + word[position + 1 :]: word
    for word in CONTRACTED.split()
    for position, letter in enumerate(word)
    if letter == "'"
}


def read_records(path: Path) -> Iterator[tuple[str, dict[str, Any]]]:
    """Yield every record of a JSON list with a name for it; the record is empty if it is no object.

    Raises:
        FileNotFoundError: The file is missing.
        ValueError: The file is not JSON, or not a list with at least one entry.
    """
    records = read_json(path)
    if not isinstance(records, list) or not records:
        raise ValueError(f"{path} holds no list of questions: expected [{{...}}, ...]")
    for number, record in enumerate(records, start=1):
        yield f"{path.name}, record {number}", record if isinstance(record, dict) else {}


def cell_text(record: dict[str, Any], key: str) -> str:
    """Return a cell as text with white space collapsed; empty if it is missing or no text or number."""
    cell = record.get(key)
    return " ".join(str(cell).split()) if isinstance(cell, str | int | float) and cell == cell else ""


def question_row(
    row_id: str,
    split: str,
    image: Path,
    question: str,
    answer_raw: str,
    accepted: Sequence[str],
    answer_type: str,
    question_type: str,
    **columns: Any,
) -> Row | Rejected:
    """Return a row with all right answers `accepted`, the first of which becomes `answer`; or why the row is unusable.

    The source may add further `columns`; `answer_type` must be "closed" or "open".
    """
    answers = list(dict.fromkeys(filter(None, map(normalize_answer, accepted))))
    if not question:
        return Rejected(row_id, "question empty", split)
    if not answers:
        return Rejected(row_id, "answer empty", split, detail=answer_raw or None)
    if answer_type not in ANSWER_TYPES:
        return Rejected(row_id, "answer type neither closed nor open", split, detail=answer_type or None)
    return {
        "id": row_id,
        "split": split,
        "image": image,
        "question": question,
        "answer": answers[0],
        "answers": answers,
        "answer_raw": answer_raw,
        "answer_type": answer_type,
        "question_type": question_type,
        **columns,
    }


def by_image(entries: Iterable[Row | Rejected]) -> list[Row | Rejected]:
    """Sort by split and image: the questions about an image become neighbours, and the image is decoded once."""
    return sorted(entries, key=_split_and_image)


def _split_and_image(entry: Row | Rejected) -> tuple[int, str]:
    if isinstance(entry, Rejected):
        return -1, ""
    return SPLITS.index(entry["split"]), str(entry["image"])


def normalize_answer(answer: str) -> str:
    """Return an answer as the VQA evaluation compares it: `"The T2-weighted."` becomes `"t2 weighted"`.

    Lower case; without articles and punctuation; number words as digits, among them "none" as 0; contractions with
    their apostrophe. Before that, full-width and other compatible forms become plain ones (NFKC), and punctuation that
    those rules do not know becomes a blank. The result is empty where nothing is left.
    """
    plain = OTHER_PUNCTUATION.sub(" ", unicodedata.normalize("NFKC", answer)).lower()
    words = _strip_punctuation(" ".join(plain.split())).split()
    numbered = [NUMBERS.get(word, word) for word in words]
    return " ".join(CONTRACTIONS.get(word, word) for word in numbered if word not in ARTICLES)


def _strip_punctuation(text: str) -> str:
    """Remove marks beside a blank, and all marks where a comma groups digits; other marks become blanks."""
    has_grouped_digits = re.search(r"\d,\d", text) is not None
    stripped = text
    for mark in PUNCTUATION:
        is_removed = has_grouped_digits or f"{mark} " in text or f" {mark}" in text
        stripped = stripped.replace(mark, "" if is_removed else " ")
    return re.sub(r"\.(?!\d)", "", stripped)


def count_answers(rows: Iterable[Mapping[str, Any]]) -> dict[str, int]:
    """Return how many questions accept each answer, the most frequent first, equally frequent ones by alphabet."""
    counts = Counter(chain.from_iterable(row["answers"] for row in rows))
    return dict(sorted(counts.items(), key=lambda item: (-item[1], item[0])))


def count_covered(rows: Collection[Mapping[str, Any]], answers: Collection[str]) -> dict[str, dict[str, int]]:
    """Return the numbers of `questions` and of `covered` ones, with a right answer among `answers`, by answer type.

    The ratio of the two is the highest accuracy that a choice among `answers` can reach. The first type is `overall`.
    """
    known = set(answers)
    coverage = {}
    for name in ("overall", *ANSWER_TYPES):
        members = [row for row in rows if name in ("overall", row["answer_type"])]
        covered = sum(not known.isdisjoint(row["answers"]) for row in members)
        coverage[name] = {"questions": len(members), "covered": covered}
    return coverage


def describe_answers(
    rows: Mapping[str, Collection[Mapping[str, Any]]], published: Iterable[str] | None = None
) -> dict[str, Any]:
    """Return the contents of `answers.json`.

    Args:
        rows: The rows by split, with the columns `answers` (normalised) and `answer_type`.
        published: The published answers to all questions of all splits, in the order of the published M3AE, whose list
            has each where it occurs first: that list knows the test answers, and its ceiling on test is 100 %. None
            makes a list of the answers in train, the most frequent first.

    Returns:
        answers_from: "train", or "all" splits.
        order: "published", only with `published`.
        answers: The list, in the order of a classifier's columns.
        counts: The number of questions by answer, in the splits that the list is made from.
        coverage: The coverage of each split, see `count_covered`.
        summary: All this as text.
    """
    if published is None:
        source, counts = {"answers_from": "train"}, count_answers(rows.get("train", ()))
    else:
        source = {"answers_from": "all", "order": "published"}
        counts = dict(Counter(printable(normalize_answer(answer)) for answer in published))
    coverage = {split: count_covered(members, counts) for split, members in rows.items()}
    return {
        **source,
        "answers": list(counts),
        "counts": counts,
        "coverage": coverage,
        "summary": _summary(len(counts), source["answers_from"], coverage),
    }


def _summary(number: int, answers_from: str, coverage: dict[str, dict[str, dict[str, int]]]) -> str:
    origin = "all splits, test included" if answers_from == "all" else answers_from
    if number == 0:
        return f"no list of answers: no rows in {origin}"
    lines = [
        f"{number} answers from {origin}; share of questions that one of them answers, the ceiling of a classifier:"
    ]
    for split, counts in coverage.items():
        cells = [f"{name} {_percent(**count)}" for name, count in counts.items()]
        lines.append(f"  {split}: {', '.join(cells)}")
    return "\n".join(lines)


def _percent(questions: int, covered: int) -> str:
    return f"{covered / questions:.1%} of {questions:,}" if questions else "none"
