from collections import Counter

import pytest

from m3ae.data.mixing import MixedPairs
from m3ae.data.pairs import PairDataset
from m3ae.training.batches import MicroBatchSampler, Visit
from tests.data.folder import write_folder


@pytest.fixture(scope="module")
def sets(tmp_path_factory: pytest.TempPathFactory) -> list[PairDataset]:
    reports = {
        "id": [f"r{i}" for i in range(6)],
        "frontal": list(range(6)),
        "text": [[f"report {i}"] for i in range(6)],
    }
    questions = {"id": [f"q{i}" for i in range(4)], "image": list(range(4)), "question": [f"q {i}?" for i in range(4)]}
    first = write_folder(tmp_path_factory.mktemp("reports"), reports, images=["frontal"])
    second = write_folder(tmp_path_factory.mktemp("questions"), questions, images=["image"])
    return [PairDataset(first, "train", ["frontal"], "text"), PairDataset(second, "train", ["image"], "question")]


def epoch(mixed: MixedPairs, number: int) -> Counter[str]:
    return Counter(mixed[Visit(index, 1, number)].id for index in range(len(mixed)))


def test_whole_weights_visit_every_row_that_often(sets) -> None:
    mixed = MixedPairs(sets, [1, 2], seed=0)
    assert len(mixed) == 6 + 2 * 4
    for number in range(3):
        assert epoch(mixed, number) == {f"r{i}": 1 for i in range(6)} | {f"q{i}": 2 for i in range(4)}


def test_half_a_weight_takes_the_other_half_in_the_next_epoch(sets) -> None:
    mixed = MixedPairs(sets, [0.5, 1.5], seed=0)
    assert len(mixed) == 3 + 6
    first, second, third, fourth = (epoch(mixed, number) for number in range(4))
    assert first + second == third + fourth == {f"r{i}": 1 for i in range(6)} | {f"q{i}": 3 for i in range(4)}
    assert set(first.values()) | set(second.values()) == {1, 2} and max(first[f"q{i}"] for i in range(4)) == 2
    assert [epoch(MixedPairs(sets, [0.5, 1.5], seed=0), number) for number in range(2)] == [first, second]
    assert any(epoch(MixedPairs(sets, [0.5, 1.5], seed=seed), 0) != first for seed in (1, 2, 3))


def test_lengths_and_texts_are_those_of_the_sets(sets) -> None:
    mixed = MixedPairs(sets, [0.5, 2], seed=3)
    for visit in (Visit(index, 11, number) for index in range(len(mixed)) for number in range(3)):
        assert mixed.length(visit) == len(mixed[visit].text)
    assert mixed.texts() == [f"report {i}" for i in range(6)] + [f"q {i}?" for i in range(4)]


def test_a_run_mixes_the_sets_and_leaves_nothing_out(sets) -> None:
    mixed = MixedPairs(sets, [1, 2], seed=0)
    sampler = MicroBatchSampler(len(mixed), 4, seed=5, first_step=0, last_step=7)
    batches = [[mixed[visit].id for visit in batch] for batch in sampler]  # 28 visits: two epochs
    assert Counter(id for batch in batches for id in batch) == {f"r{i}": 2 for i in range(6)} | {
        f"q{i}": 4 for i in range(4)
    }
    assert sum({id[0] for id in batch} == {"r", "q"} for batch in batches) >= 5
