from PIL import Image

from m3ae.tasks.question_answering import Mistake, common_mistakes, plot_mistakes


def row(question, prediction, *answers):
    return {"question": question, "prediction": prediction, "answers": list(answers)}


ROWS = [
    row("Where is the mass?", "left", "right"),
    row("where is a mass", "left", "right lobe", "right"),
    row("Where is the  mass ?", "heart", "right"),
    row("Where is the mass?", "The left.", "left"),
    row("Is it large?", "no", "yes"),
    row("What is $x$?", "lung", "rib"),
    row("What is $x$?", "rib", "rib"),
    row("Is it a CT?", "yes", "Yes"),
]


def test_mistakes_by_hand():
    assert common_mistakes(ROWS) == [
        Mistake("Where is the mass?", images=4, wrong=3, prediction="left", predicted=2, truth="right"),
        Mistake("Is it large?", images=1, wrong=1, prediction="no", predicted=1, truth="yes"),
        Mistake("What is $x$?", images=2, wrong=1, prediction="lung", predicted=1, truth="rib"),
    ]


def test_the_picture_grows_with_the_questions(tmp_path):
    heights = []
    for limit in (1, 3):
        plot_mistakes(tmp_path / "mistakes.png", ROWS, limit=limit)
        with Image.open(tmp_path / "mistakes.png") as picture:
            heights.append(picture.height)
    assert heights[0] < heights[1]


def test_nothing_wrong_is_a_picture_too(tmp_path):
    plot_mistakes(tmp_path / "none.png", iter(ROWS[-1:]))
    assert (tmp_path / "none.png").stat().st_size > 0
