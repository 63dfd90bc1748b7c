from collections import Counter

import numpy as np

from m3ae.data.phantom.report import ask, sample_factors

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
