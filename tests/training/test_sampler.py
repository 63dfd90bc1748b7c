import pickle
from itertools import pairwise

import pytest

from m3ae.data.samples import Visit
from m3ae.training.batches import MicroBatchSampler


def batches(
    size=10, batch_size=3, *, first_step=0, last_step=6, accumulation=1, processes=1, process=0, seed=7, **options
):
    sampler = MicroBatchSampler(
        size,
        batch_size,
        seed=seed,
        first_step=first_step,
        last_step=last_step,
        gradient_accumulation_steps=accumulation,
        num_processes=processes,
        process_index=process,
        **options,
    )
    found = list(sampler)
    assert len(sampler) == len(found)
    return found


def test_an_epoch_visits_each_sample_once_in_a_new_order():
    visits = [visit for batch in batches(last_step=10) for visit in batch]
    epochs = [visits[start : start + 10] for start in (0, 10, 20)]  # batches cross their borders
    for number, epoch in enumerate(epochs):
        assert sorted(visit.index for visit in epoch) == list(range(10))
        assert {visit.epoch for visit in epoch} == {number}
    orders = [tuple(visit.index for visit in epoch) for epoch in epochs]
    assert len(set(orders)) == 3


def test_the_order_depends_on_the_seed_alone():
    assert batches(seed=7) == batches(seed=7) != batches(seed=8)


def test_visit_seeds_never_repeat():
    seeds = [visit.seed for batch in batches(last_step=60) for visit in batch]
    assert len(set(seeds)) == len(seeds) == 180
    assert max(seeds) < 2**63


def test_starting_later_gives_the_rest():
    assert batches(accumulation=2, first_step=4) == batches(accumulation=2)[8:]


def test_two_processes_share_what_one_accumulates():
    alone = batches(accumulation=2)
    together = [batches(processes=2, process=process) for process in range(2)]
    assert [batch for pair in zip(*together, strict=True) for batch in pair] == alone


def test_a_dataset_of_one_batch_is_enough():
    assert {visit.index for visit in batches(size=3, last_step=1)[0]} == {0, 1, 2}


def test_a_dataset_smaller_than_a_batch_is_refused():
    with pytest.raises(ValueError, match=r"batch_size: got 4 for 3 training samples.*lower training.batch_size"):
        batches(size=3, batch_size=4)


def test_visits_reach_worker_processes():
    assert pickle.loads(pickle.dumps(Visit(3, 2**62))) == Visit(index=3, seed=2**62)


def length(visit):
    return (visit.index * 7 + visit.seed) % 50


def test_buckets_hold_the_same_samples_in_batches_of_similar_length():
    plain, bucketed = batches(last_step=8), batches(last_step=8, bucket_batches=4, length=length)
    for start in (0, 4):
        window = [visit for batch in plain[start : start + 4] for visit in batch]
        found = bucketed[start : start + 4]
        assert sorted(visit for batch in found for visit in batch) == sorted(window)
        spans = sorted((min(map(length, batch)), max(map(length, batch))) for batch in found)
        assert all(first[1] <= second[0] for first, second in pairwise(spans))
        assert [min(map(length, batch)) for batch in found] != [span[0] for span in spans] or start == 0


@pytest.mark.parametrize("first_step", [1, 3])
def test_buckets_are_a_function_of_the_step(first_step):
    options = {"bucket_batches": 4, "length": length}
    alone = batches(accumulation=2, **options)
    assert batches(accumulation=2, first_step=first_step, **options) == alone[2 * first_step :]
    together = [batches(processes=2, process=process, **options) for process in range(2)]
    assert [batch for pair in zip(*together, strict=True) for batch in pair] == alone


def test_buckets_need_lengths():
    with pytest.raises(ValueError, match=r"bucket_batches: got 4 for training samples without lengths"):
        batches(bucket_batches=4)
