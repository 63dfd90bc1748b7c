"""Every row is visited once an epoch, whatever reads it, and a run goes on where it stopped."""

from collections import Counter
from itertools import islice
from types import SimpleNamespace

import pytest
import torch

from m3ae.data.samples import SampleDataset, trunk_columns
from m3ae.data.sets import MixedDataset, SampleStream, StreamedSet
from m3ae.training.batches import micro_batches
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
