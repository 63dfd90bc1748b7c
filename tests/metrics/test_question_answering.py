import pytest

from m3ae.metrics import VQAAccuracy, is_right

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
    return {name: [question[place] for question in questions] for place, name in enumerate(columns)}


@pytest.mark.parametrize(
    ("prediction", "accepted", "right"),
    [("the Heart", ["heart?"], True), ("heart", ["a", "hearts"], False), ("the", ["an"], False), ("", [], False)],
)
def test_answers_are_compared_after_normalisation(prediction, accepted, right):
    assert is_right(prediction, accepted) is right


def test_accuracy_by_hand():
    assert VQAAccuracy().compute(**inputs()) == {
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
    found = VQAAccuracy().compute(**inputs(), answer_list=["YES", "lung", "spine"])
    ceilings = {name: value for name, value in found.items() if "ceiling" in name}
    assert ceilings == {"ceiling": 4 / 6, "closed_ceiling": 1, "open_ceiling": 2 / 3}


def test_groups_without_questions_are_left_out():
    found = VQAAccuracy().compute(**inputs(QUESTIONS[:1]), answer_list=["yes"])
    assert not any("open" in name for name in found)


def test_an_unknown_answer_type_is_refused():
    with pytest.raises(ValueError, match=r"must be one of \('closed', 'open'\) or empty, got \['CLOSED '\]"):
        VQAAccuracy().compute(**inputs([("yes", ["yes"], "CLOSED ", "")]))
