"""Questions about a phantom study, with answers from its factors.

What a study shows is never asked in a way that tells it: a question names a finding only to ask whether it is there,
once with the right one and once with another, and side, zone and size are asked for where there is one. The answer
cannot be guessed from the question, apart from "no" being a little more frequent than "yes": a healthy study has no
finding to ask for.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Mapping
from typing import Any

from m3ae.data.phantom_report import WORD_OF_FINDING

FINDING_QUESTION = "What is the finding?"
HEALTHY_ANSWER = "normal"
FACTOR_QUESTIONS = {
    "side": "Which side is affected?",
    "zone": "Which zone is affected?",
    "size": "How large is the finding?",
}


def ask(study: Mapping[str, Any]) -> Iterator[dict[str, Any]]:
    """Yield the questions about a study, always the same ones.

    Args:
        study: A row of the source `phantom`, images left out.

    Yields:
        Rows with the columns of a question-answering source, beside image and split.
    """
    finding = study["finding"]
    word = WORD_OF_FINDING.get(finding)
    yield _row(study, "finding", FINDING_QUESTION, word or HEALTHY_ANSWER)
    for factor, question in FACTOR_QUESTIONS.items():
        if study[factor] is not None:
            yield _row(study, factor, question, study[factor])
    others = [other for other in WORD_OF_FINDING.values() if other != word]
    absent = others[hashlib.sha256(study["id"].encode()).digest()[0] % len(others)]
    if word is not None:
        yield _row(study, "presence", _presence_question(word), "yes", name="present")
    yield _row(study, "presence", _presence_question(absent), "no", name="absent")


def _presence_question(word: str) -> str:
    return f"Is there {'an' if word[0] in 'aeiou' else 'a'} {word}?"


def _row(study: Mapping[str, Any], kind: str, question: str, answer: str, name: str = "") -> dict[str, Any]:
    return {
        "id": f"{study['id']}-{name or kind}",
        "question": question,
        "answer": answer,
        "answers": [answer],
        "answer_type": "closed" if kind == "presence" else "open",
        "question_type": kind,
    }
