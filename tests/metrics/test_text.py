"""Accuracy of answers, BLEU by hand, and what else is compared of texts."""

from math import exp

import pytest
from sacrebleu.metrics.bleu import BLEU

from m3ae.metrics import is_right, text_metrics, vqa_accuracy
from m3ae.metrics.text import named_class


def test_bleu_by_hand() -> None:
    """Papineni et al. 2002: n-gram counts are clipped by the reference that has most, over the whole corpus."""
    texts = ["The heart is large", "no no effusion"]
    references = [["the heart is very large", "The heart is big"], ["no effusion seen here"]]
    metrics = text_metrics(texts, references)
    # Of the first text all words are right, two of the pairs, one of the triples; of the second two words, one pair.
    # 7 words; the closest references are of 4 words each.
    shortness = exp(1 - 8 / 7)
    assert metrics["bleu_1"] == pytest.approx(shortness * 6 / 7)
    assert metrics["bleu_2"] == pytest.approx(shortness * (6 / 7 * 3 / 5) ** (1 / 2))
    assert metrics["bleu_3"] == pytest.approx(shortness * (6 / 7 * 3 / 5 * 1 / 3) ** (1 / 3))
    assert metrics["bleu_4"] == 0, "no four words in a row are right, and nothing is smoothed"
    assert metrics["exact"] == 0 and metrics["distinct"] == 1


def test_the_texts_themselves_are_right() -> None:
    texts = ["No acute disease.", "Clear lungs , no effusion ."]
    metrics = text_metrics([*texts, "No  acute disease.\n"], [[texts[0]], ["Other.", texts[1]], [texts[0]]])
    assert metrics == pytest.approx({f"bleu_{order}": 1 for order in (1, 2, 3, 4)} | {"exact": 1, "distinct": 2 / 3})


def test_bleu_counts_the_characters_of_scripts_without_blanks() -> None:
    texts, references = ["CT示左肺 结节，考虑炎症。", "两肺未见异常"], ["CT示右肺结节，考虑炎症。", "两肺未见明显异常"]
    metrics = text_metrics(texts, [[reference] for reference in references])
    for order in (1, 2, 3, 4):
        expected = BLEU(tokenize="zh", lowercase=True, max_ngram_order=order, smooth_method="none", force=True)
        assert metrics[f"bleu_{order}"] == pytest.approx(expected.corpus_score(texts, [references]).score / 100)
    assert text_metrics(["ปอดปกติ"], [["ปอดผิดปกติ"]])["bleu_1"] == pytest.approx(exp(1 - 8 / 6))


@pytest.mark.parametrize("references", [[["a"]], [["a"], []]])
def test_texts_have_references(references: list[list[str]]) -> None:
    with pytest.raises(ValueError, match=f"got 2 texts and {len(references)} lists of references"):
        text_metrics(["a", "b"], references)


def test_a_text_tells_the_class_that_it_alone_names() -> None:
    texts = ["A Large heart.", "large or small", "enlarged", "", "small", "(small)"]
    assert named_class(texts, ["small", "large"]).tolist() == [1, -1, -1, -1, 0, 0]
    assert named_class(["左肺结节可见", "CT积液。", "无", "有结节、积液"], ["结节", "积液"]).tolist() == [0, 1, -1, -1]


# prediction, accepted answers, answer type, question type
QUESTIONS = [
    ("yes", ["Yes."], "closed", "presence"),
    ("no", ["yes"], "closed", "presence"),
    ("left lung", ["The left lung", "lung"], "open", "location"),
    ("x-ray", ["X ray"], "open", "modality"),
    ("heart", ["spine", "lung"], "open", "location"),
    ("mri", ["ct"], "", ""),
]


def inputs(questions=QUESTIONS):
    columns = ("predictions", "references", "answer_types", "question_types")
    return {name: [question[column] for question in questions] for column, name in enumerate(columns)}


@pytest.mark.parametrize(
    ("prediction", "accepted", "right"),
    [("the Heart", ["heart?"], True), ("heart", ["a", "hearts"], False), ("the", ["an"], False), ("", [], False)],
)
def test_answers_are_compared_after_normalisation(prediction, accepted, right):
    assert is_right(prediction, accepted) is right


def test_accuracy_by_hand():
    assert vqa_accuracy(**inputs()) == {
        "accuracy": 3 / 6,
        "questions": 6,
        "closed_accuracy": 1 / 2,
        "closed_questions": 2,
        "open_accuracy": 2 / 3,
        "open_questions": 3,
        "location_type_accuracy": 1 / 2,
        "location_type_questions": 2,
        "modality_type_accuracy": 1,
        "modality_type_questions": 1,
        "presence_type_accuracy": 1 / 2,
        "presence_type_questions": 2,
    }


def test_the_ceiling_is_what_the_list_can_answer():
    metrics = vqa_accuracy(**inputs(), answer_list=["YES", "lung", "spine"])
    ceilings = {name: value for name, value in metrics.items() if "ceiling" in name}
    assert ceilings == {"ceiling": 4 / 6, "closed_ceiling": 1, "open_ceiling": 2 / 3}


def test_groups_without_questions_are_left_out():
    metrics = vqa_accuracy(**inputs(QUESTIONS[:1]), answer_list=["yes"])
    assert not any("open" in name for name in metrics)


def test_an_unknown_answer_type_is_refused():
    with pytest.raises(ValueError, match=r"must be one of \('closed', 'open'\) or empty, got \['CLOSED '\]"):
        vqa_accuracy(**inputs([("yes", ["yes"], "CLOSED ", "")]))


def test_a_split_without_questions_is_refused():
    with pytest.raises(ValueError, match=r"got no samples, .* Is the split empty?"):
        vqa_accuracy(**inputs([]))
