"""Factors of the chest phantom, the grammar that writes them into a report, and questions about them.

Every factor value has one word, which occurs in the report exactly once if the factor applies and otherwise never.
Nodule, opacity, effusion and pneumothorax share their sentences, and their article stands before the size, where it is
always "a": a report with its word masked does not tell the finding; the picture does. The sentences on other organs
avoid all these words and do not depend on the factors.

A question names a finding only to ask whether it is present, once with the right one and once with another; questions
about side, zone and size are asked where the study has one. A question does not tell its answer, apart from "no" being
a little more frequent than "yes": a healthy study has no finding to ask for.
"""

import dataclasses
import hashlib
import re
from collections.abc import Iterator, Mapping
from typing import Any

import numpy as np

SIDES = ("left", "right")
ZONES = ("upper", "middle", "lower")
SIZES = ("small", "moderate", "large")
HEARTS = ("slender", "dilated")
APPLICABLE = {
    "none": (),
    "nodule": ("side", "zone", "size"),
    "opacity": ("side", "zone", "size"),
    "effusion": ("side", "zone", "size"),
    "pneumothorax": ("side", "zone", "size"),
    "cardiomegaly": ("size",),
    "device": ("side",),
}
FIXED_ZONE = {"effusion": "lower", "pneumothorax": "upper"}  # fluid sinks and air rises in a standing patient
WORD_OF_FINDING = {finding: finding for finding in APPLICABLE if finding != "none"} | {"device": "pacemaker"}

FACTOR_WORDS: dict[str, tuple[str, ...]] = {
    "finding": tuple(WORD_OF_FINDING.values()),
    "side": SIDES,
    "zone": ZONES,
    "size": SIZES,
    "heart": HEARTS,
}

LUNG_SENTENCES = (
    "A {size} {finding} projects over the {side} {zone} zone.",
    "There is a {size} {finding} in the {side} {zone} zone.",
    "The {side} {zone} zone shows a {size} {finding}.",
    "In the {zone} zone of the {side} lung there is a {size} {finding}.",
    "On the {side} side, a {size} {finding} is seen in the {zone} zone.",
    "Within the {zone} zone on the {side} side lies a {size} {finding}.",
    "Note is made of {finding}, {size}, in the {zone} zone on the {side} side.",
    "The study demonstrates {finding} of {size} extent, {zone} zone, {side} side.",
)
HEART_SENTENCES = (
    "There is {size} {finding}.",
    "The cardiac silhouette shows {size} {finding}.",
    "Note is made of {finding} of {size} degree.",
    "The study demonstrates {finding}, {size} in degree.",
    "The cardiac contour is in keeping with {size} {finding}.",
    "In comparison with the thorax, the heart shows {finding} of {size} extent.",
)
HEART_SIZE_SENTENCES = (
    "The heart is {heart}.",
    "The heart appears {heart}.",
    "The cardiac silhouette is {heart}.",
    "The cardiac contour appears {heart}.",
    "In comparison with the thorax, the heart is {heart}.",
    "Note is made of a heart that is {heart}.",
)
DEVICE_SENTENCES = (
    "A {finding} projects over the {side} chest wall.",
    "There is a {finding} on the {side} side.",
    "The {side} chest wall carries a {finding}.",
    "On the {side} side, a {finding} is in place.",
    "Note is made of a {finding} on the {side} side with its lead in place.",
    "The study demonstrates a {finding}, {side} side.",
)
HEALTHY_SENTENCES = (
    "The lungs are clear.",
    "The chest is normal.",
    "The heart and the lungs are normal.",
    "There is no acute cardiopulmonary abnormality.",
    "Heart size is normal and the lungs are well expanded.",
    "No focal abnormality of the lungs is seen.",
    "The study demonstrates no active disease.",
)
OTHER_SENTENCES = (
    "The trachea is central.",
    "The bones are intact.",
    "No acute fracture is seen.",
    "The soft tissues are unremarkable.",
    "The aortic contour is smooth.",
    "Alignment of the thoracic spine is preserved.",
    "The ribs are of normal density.",
    "Both clavicles are in normal position.",
    "Inspiration is adequate.",
    "The exposure is adequate.",
    "No free gas is seen in the abdomen.",
    "The gastric bubble is in its usual place.",
    "The shoulders are unremarkable.",
    "Degenerative change of the spine is mild.",
    "Two views of the chest were obtained.",
)
SENTENCES = {
    "none": HEALTHY_SENTENCES,
    **dict.fromkeys(("nodule", "opacity", "effusion", "pneumothorax"), LUNG_SENTENCES),
    "cardiomegaly": HEART_SENTENCES,
    "device": DEVICE_SENTENCES,
}


@dataclasses.dataclass(frozen=True)
class Factors:
    """The factors of a study; None where a factor does not apply to the finding, or the report omits the heart.

    Raises:
        ValueError: A value is unknown, or the finding cannot have it.
    """

    finding: str
    side: str | None = None
    zone: str | None = None
    size: str | None = None
    heart: str | None = None

    def __post_init__(self) -> None:
        if self.finding not in APPLICABLE:
            raise ValueError(f"unknown finding {self.finding!r}: expected one of {', '.join(APPLICABLE)}")
        fixed = (FIXED_ZONE[self.finding],) if self.finding in FIXED_ZONE else ZONES
        factors = {"side": (self.side, SIDES), "zone": (self.zone, fixed), "size": (self.size, SIZES)}
        for factor, (value, values) in factors.items():
            self._check(f"{factor} of", value, values if factor in APPLICABLE[self.finding] else (None,))
        self._check("heart beside", self.heart, (None,) if self.finding == "cardiomegaly" else (None, *HEARTS))

    def _check(self, what: str, value: str | None, allowed: tuple[str | None, ...]) -> None:
        if value not in allowed:
            raise ValueError(f"{what} {self.finding} is {value!r}: expected {' or '.join(map(repr, allowed))}")


def sample_factors(rng: np.random.Generator) -> Factors:
    """Draw a finding, and independently side, zone and size, all uniform; keep the factors that apply."""
    finding = str(rng.choice(list(APPLICABLE)))
    factors = {"side": str(rng.choice(SIDES)), "zone": str(rng.choice(ZONES)), "size": str(rng.choice(SIZES))}
    factors["zone"] = FIXED_ZONE.get(finding, factors["zone"])
    return Factors(finding, **{factor: factors[factor] for factor in APPLICABLE[finding]})


def sample_independent_factors(rng: np.random.Generator) -> Factors:
    """Draw five factors, uniform and independent: nodule or opacity, side, zone, size, heart."""
    options = (("nodule", "opacity"), SIDES, ZONES, SIZES, HEARTS)
    return Factors(*(str(rng.choice(values)) for values in options))


def write_report(factors: Factors, rng: np.random.Generator) -> str:
    """Write one to three sentences, one of them on the factors, and another on the heart, in any order."""
    others = rng.permutation(len(OTHER_SENTENCES))[: rng.integers(3)]
    sentences = [OTHER_SENTENCES[index] for index in others]
    position = rng.integers(len(sentences) + 1)
    template = str(rng.choice(SENTENCES[factors.finding]))
    words = dataclasses.asdict(factors) | {"finding": WORD_OF_FINDING.get(factors.finding)}
    sentences.insert(int(position), template.format(**words))
    if factors.heart is not None:
        position = rng.integers(len(sentences) + 1)
        sentences.insert(int(position), str(rng.choice(HEART_SIZE_SENTENCES)).format(heart=factors.heart))
    return " ".join(sentences)


def read_factors(report: str) -> Factors | None:
    """Return the factors that a report states: the inverse of `write_report`.

    Returns:
        None where a sentence is not of the grammar, where not exactly one states the finding or that there is none,
        where a sentence stands twice, or where the finding cannot have such factors.
    """
    sentences = [sentence.strip() for sentence in re.findall(r"[^.]*\.|[^.]+$", report)]
    words: dict[str, str] = {}
    findings = 0
    for sentence in sentences:
        matches = [match for pattern in _PATTERNS if (match := pattern.fullmatch(sentence))]
        if not matches and sentence not in HEALTHY_SENTENCES + OTHER_SENTENCES:
            return None
        stated = matches[0].groupdict() if matches else {}
        findings += "finding" in stated or sentence in HEALTHY_SENTENCES
        words = stated | words
    if findings != 1 or len(set(sentences)) < len(sentences):
        return None
    by_word = {word: finding for finding, word in WORD_OF_FINDING.items()}
    try:
        return Factors(**words | {"finding": by_word[words["finding"]] if "finding" in words else "none"})
    except ValueError:
        return None


def _pattern(template: str) -> re.Pattern[str]:
    """Return the pattern of a sentence, with a group for each of its factors."""
    words = {name: "|".join(values) for name, values in FACTOR_WORDS.items()}
    return re.compile(re.sub(r"\\{(\w+)\\}", lambda name: f"(?P<{name[1]}>{words[name[1]]})", re.escape(template)))


_PATTERNS = [*map(_pattern, (*LUNG_SENTENCES, *HEART_SENTENCES, *DEVICE_SENTENCES, *HEART_SIZE_SENTENCES))]


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
        study: A row of the source `phantom`; images are not needed.

    Yields:
        Rows with the columns of a question-answering source, except image and split.
    """
    finding = study["finding"]
    word = WORD_OF_FINDING.get(finding)
    yield _question_row(study, "finding", FINDING_QUESTION, word or HEALTHY_ANSWER)
    for factor, question in FACTOR_QUESTIONS.items():
        if study[factor] is not None:
            yield _question_row(study, factor, question, study[factor])
    others = [other for other in WORD_OF_FINDING.values() if other != word]
    absent = others[hashlib.sha256(study["id"].encode()).digest()[0] % len(others)]
    if word is not None:
        yield _question_row(study, "presence", _presence_question(word), "yes", name="present")
    yield _question_row(study, "presence", _presence_question(absent), "no", name="absent")


def _presence_question(word: str) -> str:
    return f"Is there {'an' if word[0] in 'aeiou' else 'a'} {word}?"


def _question_row(study: Mapping[str, Any], kind: str, question: str, answer: str, name: str = "") -> dict[str, Any]:
    return {
        "id": f"{study['id']}-{name or kind}",
        "question": question,
        "answer": answer,
        "answers": [answer],
        "answer_type": "closed" if kind == "presence" else "open",
        "question_type": kind,
    }
