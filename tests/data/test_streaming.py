from collections import Counter
from itertools import chain, islice

import pytest

from m3ae.data.pairs import PairColumns
from m3ae.data.streaming import PairStream, StreamedSet
from tests.data.folder import grey, write_folder

REPORTS = PairColumns(("frontal", "lateral"), ("text",))


@pytest.fixture(scope="module")
def reports(tmp_path_factory: pytest.TempPathFactory):
    columns = {
        "id": [f"r{i}" for i in range(23)],
        "frontal": [None if i == 4 else 10 * i for i in range(23)],
        "lateral": [None if i % 2 else 10 * i + 5 for i in range(23)],
        "text": [None if i == 7 else [f"report {i}", f"note {i}"][: 1 + i % 2] for i in range(23)],
    }
    return write_folder(
        tmp_path_factory.mktemp("reports"), columns, ["frontal", "lateral"], shards=[11, 9, 3], group=4
    )


@pytest.fixture(scope="module")
def questions(tmp_path_factory: pytest.TempPathFactory):
    columns = {
        "id": [f"q{i}" for i in range(5)],
        "image": list(range(5)),
        "question": [f"What {i}?" for i in range(5)],
        "answer": ["lung", None, "heart", "yes", "no"],
    }
    return write_folder(tmp_path_factory.mktemp("questions"), columns, ["image"])


def take(stream: PairStream, number: int, skip: int = 0) -> list[str]:
    return [pair.id for pair in islice(stream.samples(0, 1, skip), number)]


def test_epochs_hold_every_row_once_in_new_orders(reports) -> None:
    stream = PairStream([StreamedSet(reports, REPORTS)], seed=3)
    assert len(stream) == 23
    ids = take(stream, 69)
    epochs = [ids[start : start + 23] for start in (0, 23, 46)]
    assert all(sorted(epoch) == sorted(f"r{i}" for i in range(23)) for epoch in epochs)
    assert epochs[0] != epochs[1] != epochs[2] != epochs[0]
    assert take(stream, 69) == ids
    assert take(PairStream([StreamedSet(reports, REPORTS)], seed=4), 23) != epochs[0]


def test_pairs_are_those_of_the_rows(reports) -> None:
    pairs = list(islice(PairStream([StreamedSet(reports, REPORTS)], seed=3).samples(0, 1), 23 * 12))
    for pair in pairs:
        number = int(pair.id[1:])
        assert pair.text in ([None] if number == 7 else [f"report {number}", f"note {number}"][: 1 + number % 2])
        assert grey(pair.image) in [10 * number + 5] if number == 4 else [10 * number, 10 * number + 5]
    assert len({pair.seed for pair in pairs}) == len(pairs)
    two_views = {grey(pair.image) for pair in pairs if pair.id == "r2"}
    assert two_views == {20, 25}
    assert {pair.text for pair in pairs if pair.id == "r3"} == {"report 3", "note 3"}


@pytest.mark.parametrize("skip", [1, 22, 23, 24, 50])
def test_skipping_continues_where_reading_would_have_been(reports, skip) -> None:
    stream = PairStream([StreamedSet(reports, REPORTS)], seed=3)
    expected = [(pair.id, pair.seed) for pair in islice(stream.samples(0, 1), skip, skip + 30)]
    assert [(pair.id, pair.seed) for pair in islice(stream.samples(0, 1, skip), 30)] == expected


@pytest.mark.parametrize("num_processes", [2, 3, 5])
def test_processes_share_an_epoch_out(reports, num_processes) -> None:
    stream = PairStream([StreamedSet(reports, REPORTS)], seed=1)
    shares = [
        [visit["row"]["id"] for visit in stream._visits(2, process, num_processes)] for process in range(num_processes)
    ]
    assert sorted(chain(*shares)) == sorted(f"r{i}" for i in range(23))
    assert max(map(len, shares)) - min(map(len, shares)) <= 4


def test_sets_are_mixed_with_their_weights(reports, questions) -> None:
    asked = StreamedSet(questions, PairColumns(("image",), ("question", "answer")), weight=2.0)
    stream = PairStream([StreamedSet(reports, REPORTS, weight=0.5), asked], seed=0)
    epochs = [Counter(visit["row"]["id"] for visit in stream._visits(epoch, 0, 1)) for epoch in range(4)]
    both = {f"r{i}": 1 for i in range(23)} | {f"q{i}": 4 for i in range(5)}
    assert epochs[0] + epochs[1] == epochs[2] + epochs[3] == both
    assert all(5 <= sum(id.startswith("r") for id in epoch) <= 18 for epoch in epochs)
    assert len({visit["seed"] for visit in stream._visits(0, 0, 1)}) == epochs[0].total()
    assert "What 0? lung" in stream.texts() and "What 1?" in stream.texts() and "note 1" in stream.texts()


def test_all_texts_are_visits_of_their_own(reports) -> None:
    stream = PairStream([StreamedSet(reports, REPORTS)], seed=0, texts="all")
    found = Counter((pair.id, pair.text) for pair in islice(stream.samples(0, 1), 33))  # 10 rows have two texts
    assert max(found.values()) == 1 and len(found) == 33
    assert ("r7", None) in found and ("r3", "report 3") in found and ("r3", "note 3") in found


def test_too_many_readers_are_refused(questions) -> None:
    stream = PairStream([StreamedSet(questions, PairColumns(("image",), ()))], seed=0)
    with pytest.raises(ValueError, match="got 6 loading processes for 5 rows"):
        next(stream.samples(0, 6))


def test_a_missing_column_is_named(questions) -> None:
    with pytest.raises(ValueError, match=r"no column 'text'; it has id, image, question, answer"):
        PairStream([StreamedSet(questions, PairColumns(("image",), ("text",)))], seed=0)
