"""Answers of question-answering sources: how they are compared, and which of them a classifier can give.

Answers are normalised by the rules of the VQA evaluation (Antol et al. 2015, `vqaEval.py`), as in the published M3AE.
On VQA-RAD they leave 461 different answers in train, and 498, the published number, in train and test.
"""

import re
import unicodedata
from collections import Counter
from collections.abc import Collection, Iterable, Mapping
from itertools import chain
from typing import Any

import regex

from m3ae.data.tables import printable

ANSWER_TYPES = ("closed", "open")
ANSWERS_FILE = "answers.json"

PUNCTUATION = ';/[]"{}()=+\\_-><@`,?!'
# what ends a sentence, separates, quotes or brackets in other scripts; an apostrophe is part of a word
OTHER_PUNCTUATION = regex.compile(
    r"[[\p{Terminal_Punctuation}\p{Ps}\p{Pe}\p{Pi}\p{Pf}\p{Pd}\u30fb]--[\p{ASCII}\u2018\u2019]]"
    r"|(?<=\P{ASCII}):|:(?=\P{ASCII})",
    regex.V1,
)
NUMBERS = {
    "none": "0",
    "zero": "0",
    "one": "1",
    "two": "2",
    "three": "3",
    "four": "4",
    "five": "5",
    "six": "6",
    "seven": "7",
    "eight": "8",
    "nine": "9",
    "ten": "10",
}
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


def normalize_answer(answer: str) -> str:
    """Return an answer as the VQA evaluation compares it: `"The T2-weighted."` becomes `"t2 weighted"`.

    Lower case; without articles and punctuation; number words as digits, among them "none" as 0; contractions with
    their apostrophe. Before that, full-width and other compatible forms become plain ones (NFKC), and punctuation that
    those rules do not know becomes a blank. Empty where nothing is left.
    """
    plain = OTHER_PUNCTUATION.sub(" ", unicodedata.normalize("NFKC", answer)).lower()
    words = _strip_punctuation(" ".join(plain.split())).split()
    numbered = [NUMBERS.get(word, word) for word in words]
    return " ".join(CONTRACTIONS.get(word, word) for word in numbered if word not in ARTICLES)


def _strip_punctuation(text: str) -> str:
    """Remove marks beside a blank, and all of them where a comma groups digits; other marks become blanks."""
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
    """Return the number of questions, and of those with a right answer among `answers`, overall and by answer type.

    Their ratio is the highest accuracy that a choice among `answers` can reach.
    """
    known = set(answers)
    coverage = {}
    for name in ("overall", *ANSWER_TYPES):
        chosen = [row for row in rows if name in ("overall", row["answer_type"])]
        covered = sum(not known.isdisjoint(row["answers"]) for row in chosen)
        coverage[name] = {"questions": len(chosen), "covered": covered}
    return coverage


def describe_answers(
    rows: Mapping[str, Collection[Mapping[str, Any]]], published: Iterable[str] | None = None
) -> dict[str, Any]:
    """Return the contents of `answers.json`.

    Args:
        rows: by split, with the columns `answers` (normalised) and `answer_type`.
        published: the answer to every question of all splits as it was published, in the order of the published M3AE,
            whose list has each where it occurs first: that list knows the test answers, and its ceiling on test is
            100 %. None makes a list of the answers in train, the most frequent first.

    Returns:
        answers_from: "train", or "all" splits.
        order: "published", only if so.
        answers: the list, in the order of a classifier's columns.
        counts: questions by answer, in the splits that the list is made from.
        coverage: of each split, see `count_covered`.
        summary: all this as text.
    """
    if published is None:
        source, counts = {"answers_from": "train"}, count_answers(rows.get("train", ()))
    else:
        source = {"answers_from": "all", "order": "published"}
        counts = dict(Counter(printable(normalize_answer(answer)) for answer in published))
    coverage = {split: count_covered(own, counts) for split, own in rows.items()}
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
