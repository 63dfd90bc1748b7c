"""Several prepared sets visited as one, each as often as its weight says: by index, or as a stream.

A stream reads the shards of sets that are too large to be copied into a cache first. The unit of reading is a slice
of a Parquet row group. Every epoch shuffles the slices of all sets, shares them out among the processes and their
workers, and mixes the rows within each of these by a buffer: between them they visit each row once. Which row comes
when is a function of the seed and of the numbers of processes and workers, as long as every shard can be read.
"""

from __future__ import annotations

import os
import sys
from bisect import bisect_right
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import lru_cache, partial
from itertools import accumulate, count, islice
from math import ceil, floor
from pathlib import Path
from typing import Any, NamedTuple

import datasets
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from datasets.distributed import split_dataset_by_node
from torch.utils.data import get_worker_info

from m3ae.data.prepared import load_manifest, shard_features, typed_rows
from m3ae.data.samples import Columns, Sample, SampleDataset, Texts, Visit
from m3ae.files import digest

SHUFFLE_BUFFER = 1000  # rows
SLICES_PER_WORKER = 4  # at least, where the rows suffice: workers then differ little in how much they have to read


class MixedDataset:
    """Several sets as one map-style dataset whose length is the number of visits in an epoch.

    The visits of a set are an endless sequence of its permutations, of which every epoch takes the next weight·n: at a
    weight of 1 an epoch visits every sample once, at 2 twice, and at 0.5 two epochs together visit every sample once.

    Args:
        datasets: The sets.
        weights: Visits of each sample per epoch, by set; positive.
        seed: Decides which samples an epoch takes where the weight is no whole number.
    """

    def __init__(self, datasets: Sequence[SampleDataset], weights: Sequence[float], seed: int) -> None:
        self.datasets, self.seed = list(datasets), seed
        self.visits = [max(1, round(weight * len(rows))) for rows, weight in zip(datasets, weights, strict=True)]
        self._ends = list(accumulate(self.visits))

    def __len__(self) -> int:
        return self._ends[-1]

    def __getitem__(self, visit: Visit) -> Sample:
        """Load the sample of visit number `visit.index` in epoch `visit.epoch`."""
        dataset, visit = self._locate(visit)
        return dataset[visit]

    def length(self, visit: Visit) -> int:
        """Return the number of characters of the text that `self[visit]` has, without loading the row."""
        dataset, visit = self._locate(visit)
        return dataset.length(visit)

    def texts(self) -> list[str]:
        """Return all texts of all sets."""
        return [text for dataset in self.datasets for text in dataset.texts()]

    def _locate(self, visit: Visit) -> tuple[SampleDataset, Visit]:
        """Return the set of a visit, and the visit of a sample of this set."""
        number = bisect_right(self._ends, visit.index)
        size, visits = len(self.datasets[number]), self.visits[number]
        pass_number, index = divmod(visit.epoch * visits + visit.index - (self._ends[number] - visits), size)
        if visits % size:  # of whole passes, the order within them is the sampler's
            index = int(_pass_order(size, self.seed, number, pass_number)[index])
        return self.datasets[number], visit._replace(index=index)


@lru_cache(maxsize=16)
def _pass_order(size: int, seed: int, set_number: int, pass_number: int) -> np.ndarray:
    """Return the order (size,) of a pass over a set."""
    return np.random.default_rng(np.random.SeedSequence(seed, spawn_key=(set_number, pass_number))).permutation(size)


class UnreadableShardError(ValueError):
    """A shard that cannot be read."""


@dataclass
class ShardBudget:
    """How many shards may be left out because they cannot be read, and which are.

    Attributes:
        max_unreadable: How many, of a process or a worker; each is named in a warning.
        unreadable: Their paths.
    """

    max_unreadable: int = 0
    unreadable: set[str] = field(default_factory=set)

    @contextmanager
    def reading(self, path: str) -> Iterator[None]:
        """Name the shard that the block cannot read, and end the block if it may be left out.

        Raises:
            UnreadableShardError: It may not.
        """
        try:
            yield
        except (OSError, pa.ArrowException, UnicodeDecodeError) as error:
            remark = f"{path} cannot be read ({' '.join(str(error).split())})"
            if len(self.unreadable | {path}) > self.max_unreadable:
                raise UnreadableShardError(
                    f"{remark}; restore it, prepare its folder again, or raise data.max_unreadable_shards "
                    f"(now {self.max_unreadable})"
                ) from error
            if path not in self.unreadable:
                print(f"warning: {remark}; going on without its rows", file=sys.stderr, flush=True)
            self.unreadable.add(path)


@dataclass(frozen=True)
class StreamedSet:
    """The training rows of a prepared folder but those `left_out`, by id, and how often an epoch visits each of them.

    Raises:
        FileNotFoundError: There is no such prepared folder, or it lacks a shard.
        ValueError: It has no training rows.
    """

    folder: Path
    columns: Columns
    weight: float = 1.0
    left_out: frozenset[str] = frozenset()

    def __post_init__(self) -> None:
        info = load_manifest(self.folder).splits.get("train")
        if info is None or info.rows == 0:
            raise ValueError(f"{self.folder} has no rows in split 'train' to train on.")
        if missing := [path for path in self.paths if not os.path.isfile(path)]:  # False for too long a name
            raise FileNotFoundError(f"{missing[0]} is missing: prepare its folder again with --overwrite")

    @property
    def paths(self) -> list[str]:
        """The shards."""
        return [str(self.folder / name) for name in load_manifest(self.folder).splits["train"].shards]

    def visits(self, id: str, epoch: int) -> int:
        """Return how often an epoch visits a row: with weight 0.5 in every second epoch, every row in its own turn."""
        if id in self.left_out:
            return 0
        phase = digest(id.encode()) / 2**56
        return floor((epoch + 1) * self.weight + phase) - floor(epoch * self.weight + phase)


class _Slice(NamedTuple):
    """Rows `start` to `stop` of a row group; where rows are visited several times in an epoch, for visit `repeat`."""

    set_number: int
    path: str
    group: int
    start: int
    stop: int
    repeat: int


class SampleStream:
    """Several sets as one endless stream of samples.

    Shards that change later count as unreadable: a run would go on with other rows than it has begun with.

    Args:
        sets: The sets.
        seed: Decides the order, and the seed of every visit.
        texts: Whether a visit draws `one` text of a row, or an epoch visits a row with `all` its texts.
        max_unreadable: Number of shards that may be left out because they cannot be read.

    Raises:
        UnreadableShardError: More shards cannot be read; also while samples are drawn.
        ValueError: A set has not the columns.
    """

    def __init__(self, sets: Sequence[StreamedSet], seed: int, texts: Texts = "one", max_unreadable: int = 0) -> None:
        self.sets, self.seed, self.all_texts = tuple(sets), seed, texts == "all"
        self._shards = ShardBudget(max_unreadable)
        self._versions: dict[str, tuple[int, int]] = {}
        self._groups: list[tuple[int, str, int, int]] = []
        for number, streamed in enumerate(self.sets):
            for path in streamed.paths:
                with self._shards.reading(path), pq.ParquetFile(path) as file:
                    self._versions[path] = _version(path)
                    streamed.columns.check(streamed.folder, shard_features(file.schema_arrow))
                    sizes = [file.metadata.row_group(group).num_rows for group in range(file.num_row_groups)]
                    self._groups += [(number, path, group, rows) for group, rows in enumerate(sizes)]

    def __len__(self) -> int:
        """Return the number of rows, however often an epoch visits them."""
        return sum(rows for *_, rows in self._groups) - sum(len(streamed.left_out) for streamed in self.sets)

    def texts(self) -> list[str]:
        """Return all texts of all sets."""
        texts: list[str] = []
        for streamed in self.sets:
            columns = streamed.columns.text_columns
            for path in streamed.paths if columns else []:
                with self._shards.reading(path):
                    rows = pq.read_table(path, columns=["id", *columns]).to_pylist()
                    kept = (row for row in rows if row["id"] not in streamed.left_out)
                    texts += [text for row in kept for text in streamed.columns.texts_of(row)]
        return texts

    def share(self, process_index: int, num_processes: int, skip: int = 0) -> Iterator[Sample]:
        """Yield this process's (in a worker: this worker's) share of epoch after epoch.

        Args:
            process_index: This process.
            num_processes: Number of processes.
            skip: Number of samples to leave out: of whole epochs no image is read, of the last one none is decoded.

        Raises:
            UnreadableShardError: Too many shards, or all of them, cannot be read.
            ValueError: There are fewer rows than workers.
        """
        for epoch in count():
            if all(path in self._shards.unreadable for _, path, *_ in self._groups):
                raise UnreadableShardError(
                    "no shard is left that can be read; restore them, or prepare the data again"
                )
            if skip:
                size = sum(1 for _ in self._visits(epoch, process_index, num_processes, images=False))
                if size <= skip:
                    skip -= size
                    continue
            for visit in islice(self._visits(epoch, process_index, num_processes), skip, None):
                yield self.sets[visit["set_number"]].columns.sample(visit["row"], visit["seed"], visit["text"])
            skip = 0

    def length(self, sample: Sample) -> int:
        """Return the number of characters of a sample's texts."""
        return sum(len(sample.cells[name] or "") for name in self.sets[0].columns.texts)

    def _visits(self, epoch: int, rank: int, world_size: int, *, images: bool = True) -> Iterator[dict[str, Any]]:
        """Yield rows, still undecoded, with the seed of their visit and the number of its text, None to draw one."""
        worker = get_worker_info()
        slices = self._slices(world_size * (worker.num_workers if worker else 1))
        options = {"slices": slices, "read": partial(self._read, epoch=epoch, images=images)}
        stream = datasets.IterableDataset.from_generator(_read, gen_kwargs=options)
        stream = stream.shuffle(generator=np.random.default_rng([self.seed, epoch]), buffer_size=SHUFFLE_BUFFER)
        yield from split_dataset_by_node(stream, rank, world_size, strategy="shards")  # `datasets` splits over workers

    def _slices(self, num_readers: int) -> list[_Slice]:
        pieces = ceil(SLICES_PER_WORKER * num_readers / len(self._groups))
        slices = [
            _Slice(number, path, group, rows * i // pieces, rows * (i + 1) // pieces, repeat)
            for number, path, group, rows in self._groups
            for i in range(pieces)
            if rows * i // pieces < rows * (i + 1) // pieces
            for repeat in range(ceil(self.sets[number].weight))
        ]
        if len(slices) < num_readers:
            raise ValueError(
                f"data.streaming: got {num_readers} loading processes for {len(self)} rows, which make {len(slices)} "
                f"slices, expected at least one for each process; lower data.num_workers"
            )
        return slices

    def _read(self, piece: _Slice, epoch: int, images: bool) -> Iterator[dict[str, Any]]:
        streamed = self.sets[piece.set_number]
        columns, rows = streamed.columns, list[dict[str, Any]]()
        names = columns.names if images else ["id", *columns.text_columns]
        with self._shards.reading(piece.path), pq.ParquetFile(piece.path) as file:
            if _version(piece.path) != self._versions[piece.path]:
                raise OSError("it has changed since the run's start")
            table = file.read_row_group(piece.group, columns=names)
            rows = typed_rows(table.slice(piece.start, piece.stop - piece.start).to_pylist(), table.schema)
        for row in rows:
            if streamed.visits(row["id"], epoch) <= piece.repeat:
                continue
            for text in range(max(1, len(columns.texts_of(row)))) if self.all_texts else [None]:
                key = f"{self.seed} {epoch} {piece.repeat} {piece.set_number} {row['id']} {text}"
                yield {"set_number": piece.set_number, "row": row, "text": text, "seed": digest(key.encode())}


def _version(path: str) -> tuple[int, int]:
    """Return the size and the time of a file, which a file that replaces it does not have."""
    status = os.stat(path)
    return status.st_size, status.st_mtime_ns


def _read(slices: list[_Slice], read: Callable[[_Slice], Iterator[dict[str, Any]]]) -> Iterator[dict[str, Any]]:
    for piece in slices:
        yield from read(piece)
