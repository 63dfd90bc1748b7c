"""Metrics of reports against published implementations, and the grammar of phantoms."""

import dataclasses
from math import exp, log, sqrt

import numpy as np
import pytest

from m3ae.data.phantom.report import Factors, read_factors, sample_factors, sample_independent_factors, write_report
from m3ae.metrics import text_metrics
from m3ae.metrics.reports import CiderD, ReportJudge, rouge_l

TEXTS = ["the heart is large", "no pleural effusion or pneumothorax", "a a b", ""]
REFERENCES = [
    ["the heart is enlarged", "heart size is large"],
    ["there is no pleural effusion or pneumothorax"],
    ["a b a b"],
    ["clear lungs"],
]


def test_rouge_l_is_that_of_rouge_score() -> None:
    assert rouge_l(TEXTS, REFERENCES) == pytest.approx([0.75, 5 / 6, 6 / 7, 0])  # rouge-score 0.1.2


def test_cider_d_is_that_of_pycocoevalcap() -> None:
    expected = [3.60576923, 7.55023988, 3.89832592, 0]  # pycocoevalcap 1.2
    assert CiderD(REFERENCES)(TEXTS) == pytest.approx(expected)


def test_cider_d_by_hand() -> None:
    """Vedantam et al. 2015, eq. 2 to 4: of two words, one of which all samples have, only the other counts."""
    score = CiderD([["a b"], ["a c"]])(["a b b", "a c"])
    unigrams = min(2, 1) * 1 / (2 * 1)  # clipped, over the norms; log 2 cancels
    bigrams = 1 / (sqrt(1**2 + log(2) ** 2 / log(2) ** 2))  # "a b" of one reference, "b b" of none, weigh log 2
    assert score == pytest.approx([10 / 4 * (unigrams + bigrams) * exp(-1 / 72), 5])


@pytest.mark.parametrize("sample", [sample_factors, sample_independent_factors])
def test_the_grammar_reads_the_reports_that_it_writes(sample) -> None:
    rng = np.random.default_rng(0)
    for _ in range(200):
        factors = sample(rng)
        assert read_factors(write_report(factors, rng)) == factors


@pytest.mark.parametrize(
    "report",
    [
        "",
        "The trachea is central.",  # no word on the finding
        "A small nodule projects over the left upper zone. The lungs are clear.",
        "A small nodule projects over the left upper zone. A large nodule projects over the left upper zone.",
        "A small nodule projects over the left upper zone",
        "A tiny nodule projects over the left upper zone.",
        "There is small nodule.",
        "The lungs are clear. The lungs are clear.",
    ],
)
def test_what_is_not_of_the_grammar_states_nothing(report: str) -> None:
    assert read_factors(report) is None


def test_factors_are_judged_where_they_apply() -> None:
    truth = [Factors("nodule", "left", "upper", "small"), Factors("none"), Factors("device", "right")]
    texts = [
        "A small nodule projects over the right upper zone.",
        "The lungs are clear. The trachea is central.",
        "There is a pacemaker on the right side.",
    ]
    metrics = ReportJudge([["x"]] * 3, factors=truth).score(texts).metrics()
    assert metrics["all_factors"] == pytest.approx(2 / 3) and metrics["finding_accuracy"] == 1
    assert (metrics["side_accuracy"], metrics["zone_accuracy"], metrics["size_accuracy"]) == (0.5, 1, 1)
    assert "heart_accuracy" not in metrics
    assert {field.name for field in dataclasses.fields(Factors)} >= {"finding", "side", "zone", "size"}


def test_the_metrics_of_some_rows_are_those_of_these_texts_alone() -> None:
    labels = np.array([[1, 0], [0, 1], [1, -100], [0, 1]])
    judge = ReportJudge(REFERENCES, read_labels=lambda texts: np.array([[True, False]] * len(texts)), labels=labels)
    scores, rows = judge.score(TEXTS), np.array([1, 1, 2])
    metrics = scores.metrics(rows)
    expected = text_metrics([TEXTS[row] for row in rows], [REFERENCES[row] for row in rows])
    assert {name: metrics[name] for name in expected if name != "distinct"} == pytest.approx(
        {name: value for name, value in expected.items() if name != "distinct"}
    )
    assert metrics["label_micro_f1"] == pytest.approx(2 / (2 + 2 + 2)), "one right, two wrong, two missed"
    assert 0 < scores.metrics()["chrf"] < 1
