"""Factors and reports of the built-in data."""

import itertools
from collections import Counter

import numpy as np
import pytest

from m3ae.data.phantom.report import (
    APPLICABLE,
    DEVICE_SENTENCES,
    FACTOR_WORDS,
    FIXED_ZONE,
    HEALTHY_SENTENCES,
    HEART_SENTENCES,
    HEART_SIZE_SENTENCES,
    LUNG_SENTENCES,
    OTHER_SENTENCES,
    Factors,
    ask,
    sample_factors,
    sample_independent_factors,
    write_report,
)

DRAWN = [sample_factors(np.random.default_rng(seed)) for seed in range(600)]
INDEPENDENT = [sample_independent_factors(np.random.default_rng(seed)) for seed in range(1200)]
LUNG_FINDINGS = ("nodule", "opacity", "effusion", "pneumothorax")


def expected_words(factors: Factors) -> set[str]:
    finding = {"none": None, "device": "pacemaker"}.get(factors.finding, factors.finding)
    return {word for word in (finding, factors.side, factors.zone, factors.size, factors.heart) if word}


def test_the_vocabulary() -> None:
    assert FACTOR_WORDS == {
        "finding": ("nodule", "opacity", "effusion", "pneumothorax", "cardiomegaly", "pacemaker"),
        "side": ("left", "right"),
        "zone": ("upper", "middle", "lower"),
        "size": ("small", "moderate", "large"),
        "heart": ("slender", "dilated"),
    }


def test_each_word_of_an_applicable_factor_stands_in_the_report_once_and_no_other_does() -> None:
    for seed, factors in enumerate([*DRAWN, *INDEPENDENT]):
        report = write_report(factors, np.random.default_rng(seed))
        # Substrings count too ("enlarged", "upright"), and a capital would make another token of the same word.
        found = {word: report.lower().count(word) for word in itertools.chain(*FACTOR_WORDS.values())}
        assert {word: count for word, count in found.items() if count} == dict.fromkeys(expected_words(factors), 1)
        assert all(f" {word}" in report for word in expected_words(factors))
        assert 1 <= report.count(".") - (factors.heart is not None) <= 3


def test_every_template_states_each_of_its_factors_once() -> None:
    for templates, fields in (
        (LUNG_SENTENCES, ("finding", "side", "zone", "size")),
        (HEART_SENTENCES, ("finding", "size")),
        (DEVICE_SENTENCES, ("finding", "side")),
        (HEART_SIZE_SENTENCES, ("heart",)),
        (HEALTHY_SENTENCES + OTHER_SENTENCES, ()),
    ):
        assert len(set(templates)) == len(templates) >= 6
        for template in templates:
            assert sorted(part.split("}")[0] for part in template.split("{")[1:]) == sorted(fields)


def test_with_its_word_masked_a_report_does_not_tell_the_finding() -> None:
    def masked(finding: str, seed: int) -> str:
        factors = Factors(finding, "left", FIXED_ZONE.get(finding, "middle"), "small")
        report = write_report(factors, np.random.default_rng(seed))
        return report.replace(finding, "_").replace(f"{factors.zone}", "_")

    for seed in range(60):
        assert len({masked(finding, seed) for finding in LUNG_FINDINGS}) == 1


def test_reports_vary() -> None:
    factors = Factors("nodule", "left", "upper", "small")
    assert len({write_report(factors, np.random.default_rng(seed)) for seed in range(100)}) > 70


def test_only_applicable_factors_are_set() -> None:
    for factors in DRAWN:
        present = tuple(name for name in ("side", "zone", "size") if getattr(factors, name) is not None)
        assert present == APPLICABLE[factors.finding]
    zones = {finding: {factors.zone for factors in DRAWN if factors.finding == finding} for finding in FIXED_ZONE}
    assert zones == {"effusion": {"lower"}, "pneumothorax": {"upper"}}
    assert len(Counter(DRAWN)) == 1 + 2 * 18 + 2 * 6 + 3 + 2  # every combination there is


def test_all_five_factors_are_independent_on_request() -> None:
    counts = Counter(INDEPENDENT)
    assert len(counts) == 2 * 2 * 3 * 3 * 2, "every combination there is"
    expected = len(INDEPENDENT) / 72
    assert sum((count - expected) ** 2 / expected for count in counts.values()) < 102  # χ² with 71 degrees, p = 0.01


@pytest.mark.parametrize(
    ("values", "message"),
    [
        (("fracture",), "unknown finding 'fracture': expected one of none, nodule"),
        (("nodule", "left", "upper", None), "size of nodule is None: expected 'small' or 'moderate' or 'large'"),
        (("none", "left"), "side of none is 'left': expected None"),
        (("none", None, None, None, "large"), "heart beside none is 'large': expected None or 'slender' or 'dilated'"),
        (("cardiomegaly", None, None, "large", "dilated"), "heart beside cardiomegaly is 'dilated': expected None"),
        (("effusion", "left", "upper", "small"), "zone of effusion is 'upper': expected 'lower'"),
    ],
)
def test_factors_that_do_not_fit_the_finding_are_refused(values: tuple[str | None, ...], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        Factors(*values)


NODULE = {"id": "phantom-0-000001", "finding": "nodule", "side": "left", "zone": "upper", "size": "small"}
HEALTHY = {"id": "phantom-0-000002", "finding": "none", "side": None, "zone": None, "size": None}


def test_questions_about_a_nodule() -> None:
    rows = list(ask(NODULE))
    assert [(row["question"], row["answer"], row["answer_type"]) for row in rows[:5]] == [
        ("What is the finding?", "nodule", "open"),
        ("Which side is affected?", "left", "open"),
        ("Which zone is affected?", "upper", "open"),
        ("How large is the finding?", "small", "open"),
        ("Is there a nodule?", "yes", "closed"),
    ]
    assert rows[5]["answer"] == "no" and rows[5]["question"] != "Is there a nodule?"
    assert [row["id"].removeprefix("phantom-0-000001-") for row in rows] == [
        "finding",
        "side",
        "zone",
        "size",
        "present",
        "absent",
    ]
    assert rows[0]["answers"] == ["nodule"] and rows[0]["question_type"] == "finding"
    assert list(ask(NODULE)) == rows


def test_a_healthy_study_has_no_side_and_nothing_that_is_there() -> None:
    assert [(row["question_type"], row["answer"]) for row in ask(HEALTHY)] == [
        ("finding", "normal"),
        ("presence", "no"),
    ]


def test_only_what_applies_is_asked_for() -> None:
    device = {"id": "phantom-0-000003", "finding": "device", "side": "right", "zone": None, "size": None}
    assert [row["question_type"] for row in ask(device)] == ["finding", "side", "presence", "presence"]
    heart = {"id": "phantom-0-000004", "finding": "cardiomegaly", "side": None, "zone": None, "size": "large"}
    assert [row["answer"] for row in ask(heart)] == ["cardiomegaly", "large", "yes", "no"]


def test_the_finding_that_is_not_there_is_any_other_one() -> None:
    rng = np.random.default_rng(0)
    asked: Counter[str] = Counter()
    for index in range(300):
        study = {"id": f"phantom-0-{index:06d}", **vars(sample_factors(rng))}
        *_, absent = ask(study)
        own = next(ask(study))["answer"]
        assert absent["answer"] == "no" and own not in absent["question"]
        asked[absent["question"]] += 1
    assert len(asked) == 6 and "Is there an effusion?" in asked and min(asked.values()) > 20
