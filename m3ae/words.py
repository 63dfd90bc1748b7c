"""What a word is, in any script: preparation, masking, controls and metrics count, hide and compare the same words.

Most scripts put blanks between words, whose letters and digits carry combining marks. Chinese, Japanese, Thai, Lao,
Khmer, Burmese and their like do not: as in Unicode's word boundaries without a dictionary (UAX 29), each of their
characters is a word, together with its marks.
"""

from collections.abc import Iterable

import regex

UNSPACED = r"[[\p{LB=SA}\p{scx=Hani}\p{scx=Hira}\p{scx=Kana}\p{scx=Bopo}]&&[\p{L}\p{N}]]"  # SA: of South East Asia
LETTER = rf"[[\p{{L}}\p{{N}}_]--{UNSPACED}]"
CHARACTER = rf"(?={UNSPACED})\X\p{{M}}*"
LETTERS = rf"{LETTER}[{LETTER}\p{{M}}\u200c\u200d]*"  # joiners stand inside Persian and Indic words

_CHARACTER = regex.compile(CHARACTER, regex.V1)
_LETTERS = regex.compile(f"{CHARACTER}|{LETTERS}", regex.V1)
_BLANK_SEPARATED = regex.compile(rf"{CHARACTER}|{LETTER}(?:(?!{UNSPACED})\S)*", regex.V1)

# letters and digits with inner apostrophes, or punctuation; never both
WORD = regex.compile(rf"{CHARACTER}|{LETTERS}(?:['\u2019]{LETTERS})*|[^\p{{L}}\p{{N}}_\s]+", regex.V1)


def count_words(text: str) -> int:
    """Count what blanks separate, and each character of a script without blanks."""
    pieces = text.split()
    return len(pieces) if text.isascii() else sum(max(1, len(_BLANK_SEPARATED.findall(piece))) for piece in pieces)


def split_words(text: str) -> list[str]:
    """Return the runs of letters and digits of a text, and each character of a script without blanks."""
    words: list[str] = _LETTERS.findall(text)
    return words


def space_words(text: str) -> str:
    """Return a text with blanks around each character of a script without blanks."""
    return str(_CHARACTER.sub(r" \g<0> ", text))


def name_pattern(names: Iterable[str]) -> regex.Pattern[str]:
    """Return the pattern of any of several names, in upper or lower case, that is no part of a longer word."""
    choice = "|".join(map(regex.escape, names))
    start = rf"(?:(?<!{LETTER}\p{{M}}*)|(?={UNSPACED}))"
    end = rf"(?!\p{{M}})(?:(?!{LETTER})|(?<={UNSPACED}\p{{M}}*))"
    return regex.compile(f"(?-f){start}({choice}){end}", regex.V1 | regex.IGNORECASE)  # -f: ss is not ß
