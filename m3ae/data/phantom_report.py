"""Factors of the chest phantom, and the grammar that writes them into a report.

Every factor value has one word, which stands in the report exactly once if the factor applies and otherwise never.
Nodule, opacity, effusion and pneumothorax share their sentences, and an article before them stands before the size,
where it is always "a": with its word masked, a report does not tell the finding; the picture does. The sentences on
other organs avoid all these words and do not depend on the factors.
"""

import dataclasses

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
    """What a study shows; None where a factor does not apply to the finding, or no word is said of the heart.

    Raises:
        ValueError: an unknown value, or one that the finding cannot have.
    """

    finding: str
    side: str | None = None
    zone: str | None = None
    size: str | None = None
    heart: str | None = None

    def __post_init__(self) -> None:
        if self.finding not in APPLICABLE:
            raise ValueError(f"unknown finding {self.finding!r}: expected one of {', '.join(APPLICABLE)}")
        for factor, values in (("side", SIDES), ("zone", ZONES), ("size", SIZES)):
            value = getattr(self, factor)
            allowed = self._allowed(factor, values)
            if value not in allowed:
                expected = " or ".join(map(repr, allowed))
                raise ValueError(f"{factor} of {self.finding} is {value!r}: expected {expected}")
        hearts = (None,) if self.finding == "cardiomegaly" else (None, *HEARTS)
        if self.heart not in hearts:
            expected = " or ".join(map(repr, hearts))
            raise ValueError(f"heart beside {self.finding} is {self.heart!r}: expected {expected}")

    def _allowed(self, factor: str, values: tuple[str, ...]) -> tuple[str | None, ...]:
        if factor not in APPLICABLE[self.finding]:
            return (None,)
        if factor == "zone" and self.finding in FIXED_ZONE:
            return (FIXED_ZONE[self.finding],)
        return values


def sample_factors(rng: np.random.Generator) -> Factors:
    """Draw a finding, and independently side, zone and size, all uniform; what does not apply is dropped."""
    finding = str(rng.choice(list(APPLICABLE)))
    drawn = {"side": str(rng.choice(SIDES)), "zone": str(rng.choice(ZONES)), "size": str(rng.choice(SIZES))}
    drawn["zone"] = FIXED_ZONE.get(finding, drawn["zone"])
    return Factors(finding, **{factor: drawn[factor] for factor in APPLICABLE[finding]})


def sample_independent_factors(rng: np.random.Generator) -> Factors:
    """Draw what applies to every study, uniform and independent: nodule or opacity, side, zone, size, heart."""
    options = (("nodule", "opacity"), SIDES, ZONES, SIZES, HEARTS)
    return Factors(*(str(rng.choice(values)) for values in options))


def write_report(factors: Factors, rng: np.random.Generator) -> str:
    """Write one to three sentences, one of which tells the factors, and another on the heart, in any order."""
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
