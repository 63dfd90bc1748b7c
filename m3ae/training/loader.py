"""The micro-batches of a run, from any optimiser step on, of samples read by index or of a stream."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from itertools import count, islice
from typing import Any, Protocol, runtime_checkable

import torch
from accelerate import Accelerator
from torch.utils.data import DataLoader, IterableDataset

from m3ae.training.config import RunConfig
from m3ae.training.interruption import ignore_stop_signals
from m3ae.training.sampler import MicroBatchSampler, Visit, length_buckets


class TrainingSamples(Protocol):
    """A map-style dataset of visits: all randomness of a sample comes from `Visit.seed`.

    For `data.bucket_batches` it also has `length(visit)`, which costs little.
    """

    def __len__(self) -> int: ...

    def __getitem__(self, visit: Visit, /) -> Any: ...


@runtime_checkable
class TrainingStream(Protocol):
    """Samples in an order of their own, shared out among processes and workers."""

    def samples(self, process_index: int, num_processes: int, skip: int = 0) -> Iterator[Any]:
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
    skipped = 0
    if isinstance(samples, TrainingStream):
        seen = first_step * config.training.gradient_accumulation_steps
        workers = max(1, config.data.num_workers)
        # Workers take turns, and a fresh loader begins with the first: all start at the last full round.
        order: dict[str, Any] = {
            "dataset": _stream_batches(config, samples, accelerator, seen // workers),
            "batch_size": None,
        }
        skipped = seen % workers
    else:
        order = {"dataset": samples, "batch_sampler": _sampler(config, samples, accelerator, first_step)}
    loader: DataLoader[Any] = DataLoader(
        **order,
        collate_fn=collate,
        num_workers=config.data.num_workers,
        worker_init_fn=ignore_stop_signals,
        pin_memory=accelerator.device.type == "cuda",
        # A generator of its own: the loader would otherwise draw from the one of dropout when it starts.
        generator=torch.Generator().manual_seed(config.training.seed),
    )
    return islice(loader, skipped, None)


@contextmanager
def dead_workers_explained() -> Iterator[None]:
    """Say what to do when a process that loads data has died, which shows at any moment of a step.

    Raises:
        ChildProcessError: One has died.
    """
    try:
        yield
    except RuntimeError as error:
        if not str(error).startswith("DataLoader worker (pid"):
            raise
        raise ChildProcessError(
            f"a process that loads data has died: {str(error).splitlines()[0]} It was killed most likely for want of "
            f"memory, of the machine or of /dev/shm: lower data.num_workers or training.batch_size, or give the job "
            f"more memory; data.num_workers=0 shows an error of the data themselves. --resume continues the run"
        ) from error


def _sampler(
    config: RunConfig, samples: TrainingSamples, accelerator: Accelerator, first_step: int
) -> MicroBatchSampler:
    settings = config.training
    return MicroBatchSampler(
        len(samples),
        settings.batch_size,
        seed=settings.seed,
        first_step=first_step,
        last_step=settings.max_steps,
        gradient_accumulation_steps=settings.gradient_accumulation_steps,
        num_processes=accelerator.num_processes,
        process_index=accelerator.process_index,
        bucket_batches=config.data.batches_formed_together,
        length=getattr(samples, "length", None),
    )


def _stream_batches(
    config: RunConfig, stream: TrainingStream, accelerator: Accelerator, first_batch: int
) -> StreamBatches:
    return StreamBatches(
        stream,
        config.training.batch_size,
        seed=config.training.seed,
        first_batch=first_batch,
        num_processes=accelerator.num_processes,
        process_index=accelerator.process_index,
        bucket_batches=config.data.batches_formed_together,
    )


@dataclass
class StreamBatches(IterableDataset[Sequence[Any]]):
    """The endless micro-batches that a process, or one of its workers, forms of a stream.

    Attributes:
        stream: The samples.
        batch_size: Samples of a micro-batch.
        seed: Seed of the run.
        first_batch: Micro-batches of this process or worker already made.
        num_processes: Number of processes.
        process_index: This process.
        bucket_batches: This many micro-batches at a time are formed among their samples sorted by length.
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
        samples = self.stream.samples(self.process_index, self.num_processes, skip=first_window * size)
        for number in count(first_window):
            window = list(islice(samples, size))
            lengths = [self.stream.length(sample) for sample in window]
            for bucket in length_buckets(lengths, self.batch_size, (self.seed, number))[made:]:
                yield [window[position] for position in bucket]
            made = 0
