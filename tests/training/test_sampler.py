import pickle

import pytest

from m3ae.training.sampler import MicroBatchSampler, Visit


def batches(size=10, batch_size=3, *, first_step=0, last_step=6, accumulation=1, processes=1, process=0, seed=7):
    sampler = MicroBatchSampler(
        size,
        batch_size,
        seed=seed,
        first_step=first_step,
        last_step=last_step,
        gradient_accumulation_steps=accumulation,
        num_processes=processes,
        process_index=process,
    )
    found = list(sampler)
    assert len(sampler) == len(found)
    return found


def test_an_epoch_visits_each_sample_at_most_once_in_a_new_order():
    first, second = batches(last_step=6)[:3], batches(last_step=6)[3:]
    for epoch in (first, second):
        indices = [visit.index for batch in epoch for visit in batch]
        assert len(indices) == len(set(indices)) == 9  # the tenth would make an incomplete batch
    assert first != second


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
