"""The micro-batches of a run from any optimiser step on, their order a pure function of the seed and the position."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import lru_cache
from itertools import count, islice
from typing import Any, Protocol, runtime_checkable

import numpy as np
import torch
from accelerate import Accelerator
from torch.utils.data import DataLoader, IterableDataset, Sampler

from m3ae.data.samples import Visit
from m3ae.training.config import RunConfig
from m3ae.training.safety import ignore_stop_signals


class TrainingSamples(Protocol):
    """A map-style dataset of visits: all randomness of a sample comes from `Visit.seed`.

    For `data.bucket_batches` it also has `length(visit)`, which costs little.
    """

    def __len__(self) -> int: ...

    def __getitem__(self, visit: Visit, /) -> Any: ...


@runtime_checkable
class TrainingStream(Protocol):
    """Samples in the order of a stream, shared out among processes and workers."""

    def share(self, process_index: int, num_processes: int, skip: int = 0) -> Iterator[Any]:
        """Yield the share of this process (in a worker: of this worker) for ever, without its first `skip` samples."""

    def length(self, sample: Any) -> int:
        """Return the length by which samples are bucketed."""


def micro_batches(
    config: RunConfig,
    samples: TrainingSamples | TrainingStream,
    collate: Callable[[Sequence[Any]], dict[str, Any]],
    accelerator: Accelerator,
    first_step: int,
) -> Iterator[dict[str, Any]]:
    """Return this process's micro-batches from `first_step` to the end of the run."""
    training, skipped = config.training, 0
    common: dict[str, Any] = {
        "batch_size": training.batch_size,
        "seed": training.seed,
        "num_processes": accelerator.num_processes,
        "process_index": accelerator.process_index,
        "bucket_batches": config.data.batches_formed_together,
    }
    order: dict[str, Any]
    if isinstance(samples, TrainingStream):
        # Workers take turns, and a fresh loader begins with the first: all start at the last full round.
        seen = first_step * training.gradient_accumulation_steps
        first_batch, skipped = divmod(seen, max(1, config.data.num_workers))
        order = {"dataset": StreamBatches(samples, first_batch=first_batch, **common), "batch_size": None}
    else:
        sampler = MicroBatchSampler(
            len(samples),
            first_step=first_step,
            last_step=training.max_steps,
            gradient_accumulation_steps=training.gradient_accumulation_steps,
            length=getattr(samples, "length", None),
            **common,
        )
        order = {"dataset": samples, "batch_sampler": sampler}
    loader: DataLoader[Any] = DataLoader(
        **order,
        collate_fn=collate,
        num_workers=config.data.num_workers,
        worker_init_fn=ignore_stop_signals,
        pin_memory=accelerator.device.type == "cuda",
        # Without a generator the loader would draw from that of dropout when it starts.
        generator=torch.Generator().manual_seed(training.seed),
    )
    return islice(loader, skipped, None)


@dataclass(eq=False)
class MicroBatchSampler(Sampler[list[Visit]]):
    """Yield the micro-batches of one process, from any optimiser step on.

    The run is one endless sequence of visits, epochs that are each a seeded permutation of all samples, cut into
    micro-batches; one that begins in an epoch may end in the next, so that nothing is ever left out. Of A accumulated
    micro-batches a on P processes r, optimiser step s takes number (s·A + a)·P + r. Two processes therefore see what
    one process with twice the accumulation sees.

    Attributes:
        dataset_size: Number of samples.
        batch_size: Samples of a micro-batch.
        seed: Seed of the run.
        first_step: Optimiser steps already made.
        last_step: Optimiser steps to be made in total.
        gradient_accumulation_steps: Micro-batches of one process for one optimiser step (A).
        num_processes: Number of processes (P).
        process_index: This process (r).
        bucket_batches: This many micro-batches at a time are formed among their samples sorted by length.
        length: Function from a visit to the length of its sample; needed for more than one bucket batch.

    Raises:
        ValueError: The dataset is smaller than one micro-batch, or has no lengths to bucket by.
    """

    dataset_size: int
    batch_size: int
    seed: int
    first_step: int
    last_step: int
    gradient_accumulation_steps: int = 1
    num_processes: int = 1
    process_index: int = 0
    bucket_batches: int = 1
    length: Callable[[Visit], int] | None = None

    def __post_init__(self) -> None:
        if self.dataset_size < self.batch_size:
            raise ValueError(
                f"training.batch_size: got {self.batch_size} for {self.dataset_size} training samples, expected at "
                f"most as many as there are samples; lower training.batch_size"
            )
        if self.bucket_batches > 1 and self.length is None:
            raise ValueError(
                f"data.bucket_batches: got {self.bucket_batches} for training samples without lengths; set it to 0"
            )

    @property
    def numbers(self) -> range:
        """The numbers of the micro-batches: with s·A + a as one counter they are an arithmetic progression."""
        steps = self.gradient_accumulation_steps * self.num_processes
        return range(self.first_step * steps + self.process_index, self.last_step * steps, self.num_processes)

    def __len__(self) -> int:
        return len(self.numbers)

    def __iter__(self) -> Iterator[list[Visit]]:
        window, batches = -1, list[list[Visit]]()
        for number in self.numbers:
            if number // self.bucket_batches != window:
                window = number // self.bucket_batches
                batches = self._window(window)
            yield batches[number % self.bucket_batches]

    def _window(self, number: int) -> list[list[Visit]]:
        """Return the micro-batches that are formed together."""
        size = self.batch_size * self.bucket_batches
        visits = [self._visit(position) for position in range(number * size, (number + 1) * size)]
        if self.length is None or self.bucket_batches == 1:
            return [visits]
        buckets = length_buckets([self.length(visit) for visit in visits], self.batch_size, (self.seed, number))
        return [[visits[position] for position in bucket] for bucket in buckets]

    def _visit(self, position: int) -> Visit:
        epoch, position = divmod(position, self.dataset_size)
        order, seeds = epoch_visits(self.dataset_size, self.seed, epoch)
        return Visit(int(order[position]), int(seeds[position]), epoch)


@dataclass
class StreamBatches(IterableDataset[Sequence[Any]]):
    """The endless micro-batches that a process, or one of its workers, forms of a stream.

    `first_batch` is the number of micro-batches already made; the others are those of `MicroBatchSampler`.
    """

    stream: TrainingStream
    batch_size: int
    seed: int
    first_batch: int = 0
    num_processes: int = 1
    process_index: int = 0
    bucket_batches: int = 1

    def __iter__(self) -> Iterator[Sequence[Any]]:
        first_window, made = divmod(self.first_batch, self.bucket_batches)
        size = self.batch_size * self.bucket_batches
        samples = self.stream.share(self.process_index, self.num_processes, skip=first_window * size)
        for number in count(first_window):
            window = list(islice(samples, size))
            lengths = [self.stream.length(sample) for sample in window]
            for bucket in length_buckets(lengths, self.batch_size, (self.seed, number))[made:]:
                yield [window[position] for position in bucket]
            made = 0


@lru_cache(maxsize=2)
def epoch_visits(dataset_size: int, seed: int, epoch: int) -> tuple[np.ndarray, np.ndarray]:
    """Return the permutation of the samples in one epoch and the seeds of its visits, each of shape (dataset_size,).

    The seeds lie in [0, 2**63): they fit the generators of NumPy and torch and an int64 tensor.
    """
    generator = np.random.default_rng(np.random.SeedSequence(seed, spawn_key=(epoch,)))
    return generator.permutation(dataset_size), generator.integers(2**63, size=dataset_size, dtype=np.uint64)


def length_buckets(lengths: Sequence[int], batch_size: int, seed: Sequence[int]) -> np.ndarray:
    """Share samples out among batches of similar lengths, which come in an order that `seed` decides.

    Args:
        lengths: The lengths of a multiple of `batch_size` samples.
        batch_size: Samples of a batch.
        seed: Seed of the order.

    Returns:
        (batches, batch_size) positions in `lengths`.
    """
    batches = np.argsort(lengths, kind="stable").reshape(-1, batch_size)
    return np.random.default_rng(seed).permutation(batches)
