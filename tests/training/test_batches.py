"""Every row is visited once an epoch, whatever reads it, and a run goes on where it stopped."""

import pickle
from collections import Counter
from itertools import islice, pairwise
from types import SimpleNamespace

import pytest
import torch

from m3ae.data.samples import SampleDataset, Visit, trunk_columns
from m3ae.data.sets import MixedDataset, SampleStream, StreamedSet
from m3ae.training.batches import MicroBatchSampler, micro_batches
from tests.data.folder import write_folder
from tests.training.toy import toy_config

ROWS = 60
pytestmark = pytest.mark.filterwarnings("ignore:This DataLoader will create")  # more workers than cores


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory):
    columns = {
        "id": [f"{i:02d}" for i in range(ROWS)],
        "image": list(range(ROWS)),
        "text": [["word " * (1 + i * 7 % 23)] for i in range(ROWS)],
    }
    return write_folder(tmp_path_factory.mktemp("prepared"), columns, ["image"], shards=[31, 17, 12], group=5)


def samples(kind: str, folder):
    columns = trunk_columns(["image"], "text")
    if kind == "stream":
        return SampleStream([StreamedSet(folder, columns)], seed=2)
    return MixedDataset([SampleDataset(folder, "train", columns)], [1.0], seed=2)


def collate(samples):
    return [(sample.id, sample.seed, len(sample.text)) for sample in samples]


def batches(kind, folder, number, *, workers=0, processes=1, process=0, first_step=0, bucket_batches=0):
    config = toy_config(folder, batch_size=5, max_steps=1000, gradient_accumulation_steps=1)
    data = config.data.model_copy(update={"num_workers": workers, "bucket_batches": bucket_batches})
    accelerator = SimpleNamespace(num_processes=processes, process_index=process, device=torch.device("cpu"))
    config = config.model_copy(update={"data": data})
    return list(islice(micro_batches(config, samples(kind, folder), collate, accelerator, first_step), number))


@pytest.mark.parametrize("workers", [0, 1, 3])
def test_an_epoch_by_index_over_workers_and_two_processes_visits_every_row_once(folder, workers):
    shares = [batches("index", folder, 12, workers=workers, processes=2, process=process) for process in range(2)]
    for epoch in range(2):
        visits = Counter(id for share in shares for batch in share[6 * epoch : 6 * epoch + 6] for id, *_ in batch)
        assert visits == {f"{i:02d}": 1 for i in range(ROWS)}


@pytest.mark.parametrize("workers", [0, 1, 3])
def test_an_epoch_of_a_stream_over_workers_and_two_processes_visits_every_row_once(folder, workers):
    # 60 rows in three shards of 7, 4 and 3 row groups, over 2 to 6 readers that each begin the next epoch when they
    # have ended theirs; the seed of a visit tells its epoch.
    stream = samples("stream", folder)
    stream_epochs = [{visit["seed"]: visit["row"]["id"] for visit in stream._visits(e, 0, 1)} for e in range(2)]
    shares = [batches("stream", folder, 30, workers=workers, processes=2, process=process) for process in range(2)]
    seeds = Counter(seed for share in shares for batch in share for _, seed, _ in batch)
    assert set(seeds.values()) == {1}
    for epoch in stream_epochs:
        assert len(epoch) == ROWS and epoch.keys() <= seeds.keys()


@pytest.mark.parametrize("kind", ["index", "stream"])
@pytest.mark.parametrize("workers", [0, 2])
@pytest.mark.parametrize("bucket_batches", [0, 4])
def test_a_run_goes_on_where_it_stopped(kind, folder, workers, bucket_batches):
    options = {"workers": workers, "bucket_batches": bucket_batches, "processes": 2, "process": 1}
    expected = batches(kind, folder, 23, **options)
    for first_step in (1, 6, 19):
        assert batches(kind, folder, 23 - first_step, first_step=first_step, **options) == expected[first_step:]


@pytest.mark.parametrize("kind", ["index", "stream"])
def test_buckets_pad_less(kind, folder):
    def padding(found):
        return sum(max(length for *_, length in batch) - length for batch in found for *_, length in batch)

    assert padding(batches(kind, folder, 12, bucket_batches=12)) < padding(batches(kind, folder, 12)) / 4


def sampled(
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
    visits = [visit for batch in sampled(last_step=10) for visit in batch]
    epochs = [visits[start : start + 10] for start in (0, 10, 20)]  # batches cross their borders
    for number, epoch in enumerate(epochs):
        assert sorted(visit.index for visit in epoch) == list(range(10))
        assert {visit.epoch for visit in epoch} == {number}
    orders = [tuple(visit.index for visit in epoch) for epoch in epochs]
    assert len(set(orders)) == 3


def test_the_order_depends_on_the_seed_alone():
    assert sampled(seed=7) == sampled(seed=7) != sampled(seed=8)


def test_visit_seeds_never_repeat():
    seeds = [visit.seed for batch in sampled(last_step=60) for visit in batch]
    assert len(set(seeds)) == len(seeds) == 180
    assert max(seeds) < 2**63


def test_starting_later_gives_the_rest():
    assert sampled(accumulation=2, first_step=4) == sampled(accumulation=2)[8:]


def test_two_processes_share_what_one_accumulates():
    alone = sampled(accumulation=2)
    together = [sampled(processes=2, process=process) for process in range(2)]
    assert [batch for pair in zip(*together, strict=True) for batch in pair] == alone


def test_a_dataset_of_one_batch_is_enough():
    assert {visit.index for visit in sampled(size=3, last_step=1)[0]} == {0, 1, 2}


def test_a_dataset_smaller_than_a_batch_is_refused():
    with pytest.raises(ValueError, match=r"batch_size: got 4 for 3 training samples.*lower training.batch_size"):
        sampled(size=3, batch_size=4)


def test_visits_reach_worker_processes():
    assert pickle.loads(pickle.dumps(Visit(3, 2**62))) == Visit(index=3, seed=2**62)


def length(visit):
    return (visit.index * 7 + visit.seed) % 50


def test_buckets_hold_the_same_samples_in_batches_of_similar_length():
    plain, bucketed = sampled(last_step=8), sampled(last_step=8, bucket_batches=4, length=length)
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
    alone = sampled(accumulation=2, **options)
    assert sampled(accumulation=2, first_step=first_step, **options) == alone[2 * first_step :]
    together = [sampled(processes=2, process=process, **options) for process in range(2)]
    assert [batch for pair in zip(*together, strict=True) for batch in pair] == alone


def test_buckets_need_lengths():
    with pytest.raises(ValueError, match=r"bucket_batches: got 4 for training samples without lengths"):
        sampled(bucket_batches=4)
