import pytest

from m3ae.data.pairs import PairDataset
from m3ae.training.batches import Visit
from tests.data.folder import grey, write_folder

ROWS = {
    "id": ["a", "b", "c", "d"],
    "frontal": [10, None, 30, None],
    "lateral": [11, 21, None, None],
    "text": [["first report", "second report"], None, ["third report of c"], ["only text here"]],
    "question": ["Where?", "What?", None, "Why?"],
    "answer": ["left lung", None, None, "ill"],
}


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory):
    return write_folder(tmp_path_factory.mktemp("prepared"), ROWS, images=["frontal", "lateral"])


def pairs(folder, text_column="text", **options) -> PairDataset:
    return PairDataset(folder, "train", ["frontal", "lateral"], text_column, **options)


def test_missing_sides_are_none(folder) -> None:
    found = [pairs(folder).first(index, 0) for index in range(4)]
    assert [(p.id, grey(p.image), p.text) for p in found] == [
        ("a", 10, "first report"),
        ("b", 21, None),
        ("c", 30, "third report of c"),
        ("d", None, "only text here"),
    ]


def test_visits_draw_views_and_texts_by_their_seed(folder) -> None:
    dataset = pairs(folder)
    seeds = [view + (text << 32) for view in range(4) for text in range(4)]
    visits = [dataset[Visit(0, seed)] for seed in seeds]
    assert [grey(pair.image) for pair in visits] == [10, 10, 10, 10, 11, 11, 11, 11] * 2
    assert [pair.text for pair in visits] == ["first report", "second report"] * 8
    assert [pair.seed for pair in visits] == seeds


def test_all_texts_are_samples_of_their_own(folder) -> None:
    dataset = pairs(folder, texts="all")
    found = [dataset[Visit(index, 7 << 32)] for index in range(len(dataset))]
    assert [(pair.id, pair.text) for pair in found] == [
        ("a", "first report"),
        ("a", "second report"),
        ("b", None),
        ("c", "third report of c"),
        ("d", "only text here"),
    ]


@pytest.mark.parametrize("texts", ["one", "all"])
def test_the_length_of_a_visit_is_that_of_its_text(folder, texts) -> None:
    dataset = pairs(folder, texts=texts)
    for visit in (Visit(index, seed << 31) for index in range(len(dataset)) for seed in range(6)):
        assert dataset.length(visit) == len(dataset[visit].text or "")


def test_questions_are_texts_and_answers_are_joined_to_them(folder) -> None:
    questions, both = pairs(folder, "question"), pairs(folder, ["question", "answer"])
    assert [questions.first(i, 0).text for i in range(4)] == ["Where?", "What?", None, "Why?"]
    assert [both.first(i, 0).text for i in range(4)] == ["Where? left lung", "What?", None, "Why? ill"]
    assert both.texts() == ["Where? left lung", "What?", "Why? ill"]
    assert both.length(Visit(0, 5)) == len("Where? left lung")


def test_limit_spreads_over_the_split(folder) -> None:
    dataset = pairs(folder, limit=2)
    assert [dataset.first(index, 0).id for index in range(len(dataset))] == ["a", "d"]


def test_texts(folder) -> None:
    assert pairs(folder).texts() == ["first report", "second report", "third report of c", "only text here"]
    assert pairs(folder, None).texts() == []


def test_unknown_columns_list_those_there_are(folder) -> None:
    with pytest.raises(ValueError, match=r"no column 'image'; it has id, frontal, lateral, text, question, answer"):
        PairDataset(folder, "train", ["image"], "text")


def test_lists_of_texts_cannot_be_joined(folder) -> None:
    with pytest.raises(ValueError, match=r"column 'text' of .* only columns of one text each can be joined"):
        pairs(folder, ["question", "text"])
