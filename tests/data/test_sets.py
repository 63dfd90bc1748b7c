from collections import Counter
from itertools import chain, islice

import pytest

from m3ae.data.samples import SampleDataset, Visit, trunk_columns
from m3ae.data.sets import MixedDataset, SampleStream, StreamedSet
from m3ae.training.batches import MicroBatchSampler
from tests.data.folder import grey, write_folder

REPORTS = trunk_columns(["frontal", "lateral"], "text")


@pytest.fixture(scope="module")
def sets(tmp_path_factory: pytest.TempPathFactory) -> list[SampleDataset]:
    reports = {
        "id": [f"r{i}" for i in range(6)],
        "frontal": list(range(6)),
        "text": [[f"report {i}"] for i in range(6)],
    }
    questions = {"id": [f"q{i}" for i in range(4)], "image": list(range(4)), "question": [f"q {i}?" for i in range(4)]}
    first = write_folder(tmp_path_factory.mktemp("reports"), reports, images=["frontal"])
    second = write_folder(tmp_path_factory.mktemp("questions"), questions, images=["image"])
    columns = trunk_columns(["frontal"], "text"), trunk_columns(["image"], "question")
    return [SampleDataset(path, "train", read) for path, read in zip((first, second), columns, strict=True)]


def epoch(mixed: MixedDataset, number: int) -> Counter[str]:
    return Counter(mixed[Visit(index, 1, number)].id for index in range(len(mixed)))


def test_whole_weights_visit_every_row_that_often(sets) -> None:
    mixed = MixedDataset(sets, [1, 2], seed=0)
    assert len(mixed) == 6 + 2 * 4
    for number in range(3):
        assert epoch(mixed, number) == {f"r{i}": 1 for i in range(6)} | {f"q{i}": 2 for i in range(4)}


def test_half_a_weight_takes_the_other_half_in_the_next_epoch(sets) -> None:
    mixed = MixedDataset(sets, [0.5, 1.5], seed=0)
    assert len(mixed) == 3 + 6
    first, second, third, fourth = (epoch(mixed, number) for number in range(4))
    assert first + second == third + fourth == {f"r{i}": 1 for i in range(6)} | {f"q{i}": 3 for i in range(4)}
    assert set(first.values()) | set(second.values()) == {1, 2} and max(first[f"q{i}"] for i in range(4)) == 2
    assert [epoch(MixedDataset(sets, [0.5, 1.5], seed=0), number) for number in range(2)] == [first, second]
    assert any(epoch(MixedDataset(sets, [0.5, 1.5], seed=seed), 0) != first for seed in (1, 2, 3))


def test_lengths_and_texts_are_those_of_the_sets(sets) -> None:
    mixed = MixedDataset(sets, [0.5, 2], seed=3)
    for visit in (Visit(index, 11, number) for index in range(len(mixed)) for number in range(3)):
        assert mixed.length(visit) == len(mixed[visit].text)
    assert mixed.texts() == [f"report {i}" for i in range(6)] + [f"q {i}?" for i in range(4)]


def test_a_run_mixes_the_sets_and_leaves_nothing_out(sets) -> None:
    mixed = MixedDataset(sets, [1, 2], seed=0)
    sampler = MicroBatchSampler(len(mixed), 4, seed=5, first_step=0, last_step=7)
    batches = [[mixed[visit].id for visit in batch] for batch in sampler]  # 28 visits: two epochs
    assert Counter(id for batch in batches for id in batch) == {f"r{i}": 2 for i in range(6)} | {
        f"q{i}": 4 for i in range(4)
    }
    assert sum({id[0] for id in batch} == {"r", "q"} for batch in batches) >= 5


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


def take(stream: SampleStream, number: int, skip: int = 0) -> list[str]:
    return [sample.id for sample in islice(stream.share(0, 1, skip), number)]


def test_epochs_hold_every_row_once_in_new_orders(reports) -> None:
    stream = SampleStream([StreamedSet(reports, REPORTS)], seed=3)
    assert len(stream) == 23
    ids = take(stream, 69)
    epochs = [ids[start : start + 23] for start in (0, 23, 46)]
    assert all(sorted(epoch) == sorted(f"r{i}" for i in range(23)) for epoch in epochs)
    assert epochs[0] != epochs[1] != epochs[2] != epochs[0]
    assert take(stream, 69) == ids
    assert take(SampleStream([StreamedSet(reports, REPORTS)], seed=4), 23) != epochs[0]


def test_pairs_are_those_of_the_rows(reports) -> None:
    samples = list(islice(SampleStream([StreamedSet(reports, REPORTS)], seed=3).share(0, 1), 23 * 12))
    for sample in samples:
        number = int(sample.id[1:])
        assert sample.text in ([None] if number == 7 else [f"report {number}", f"note {number}"][: 1 + number % 2])
        assert grey(sample.picture) in [10 * number + 5] if number == 4 else [10 * number, 10 * number + 5]
    assert len({sample.seed for sample in samples}) == len(samples)
    two_views = {grey(sample.picture) for sample in samples if sample.id == "r2"}
    assert two_views == {20, 25}
    assert {sample.text for sample in samples if sample.id == "r3"} == {"report 3", "note 3"}


@pytest.mark.parametrize("skip", [1, 22, 23, 24, 50])
def test_skipping_continues_where_reading_would_have_been(reports, skip) -> None:
    stream = SampleStream([StreamedSet(reports, REPORTS)], seed=3)
    expected = [(sample.id, sample.seed) for sample in islice(stream.share(0, 1), skip, skip + 30)]
    assert [(sample.id, sample.seed) for sample in islice(stream.share(0, 1, skip), 30)] == expected


@pytest.mark.parametrize("num_processes", [2, 3, 5])
def test_processes_share_an_epoch_out(reports, num_processes) -> None:
    stream = SampleStream([StreamedSet(reports, REPORTS)], seed=1)
    shares = [
        [visit["row"]["id"] for visit in stream._visits(2, process, num_processes)] for process in range(num_processes)
    ]
    assert sorted(chain(*shares)) == sorted(f"r{i}" for i in range(23))
    assert max(map(len, shares)) - min(map(len, shares)) <= 4


def test_sets_are_mixed_with_their_weights(reports, questions) -> None:
    asked = StreamedSet(questions, trunk_columns(["image"], ["question", "answer"]), weight=2.0)
    stream = SampleStream([StreamedSet(reports, REPORTS, weight=0.5), asked], seed=0)
    epochs = [Counter(visit["row"]["id"] for visit in stream._visits(epoch, 0, 1)) for epoch in range(4)]
    both = {f"r{i}": 1 for i in range(23)} | {f"q{i}": 4 for i in range(5)}
    assert epochs[0] + epochs[1] == epochs[2] + epochs[3] == both
    assert all(5 <= sum(id.startswith("r") for id in epoch) <= 18 for epoch in epochs)
    assert len({visit["seed"] for visit in stream._visits(0, 0, 1)}) == epochs[0].total()
    assert "What 0? lung" in stream.texts() and "What 1?" in stream.texts() and "note 1" in stream.texts()


def test_all_texts_are_visits_of_their_own(reports) -> None:
    stream = SampleStream([StreamedSet(reports, REPORTS)], seed=0, texts="all")
    found = Counter((sample.id, sample.text) for sample in islice(stream.share(0, 1), 33))  # 10 rows have two texts
    assert max(found.values()) == 1 and len(found) == 33
    assert ("r7", None) in found and ("r3", "report 3") in found and ("r3", "note 3") in found


def test_too_many_readers_are_refused(questions) -> None:
    stream = SampleStream([StreamedSet(questions, trunk_columns(["image"], None))], seed=0)
    with pytest.raises(ValueError, match="got 6 loading processes for 5 rows"):
        next(stream.share(0, 6))


def test_a_missing_column_is_named(questions) -> None:
    with pytest.raises(ValueError, match=r"no column 'text'; it has id, image, question, answer"):
        SampleStream([StreamedSet(questions, trunk_columns(["image"], "text"))], seed=0)
