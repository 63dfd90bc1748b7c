"""The order of samples as a pure function of the seed and the position, which makes resuming exact."""

from collections.abc import Callable, Iterator, Sequence
from functools import lru_cache
from typing import NamedTuple

import numpy as np
from torch.utils.data import Sampler


class Visit(NamedTuple):
    """One visit of a sample.

    Attributes:
        index: Position of the sample in the dataset.
        seed: Seed of everything random about this visit, below 2**63; another one at every visit.
        epoch: Passes over the dataset made before.
    """

    index: int  # type: ignore[assignment]  # hides tuple.index, which nobody needs here
    seed: int
    epoch: int = 0


class MicroBatchSampler(Sampler[list[Visit]]):
    """Yield the micro-batches of one process, from any optimiser step on.

    The run is one endless sequence of visits, epochs that are each a seeded permutation of all samples, cut into
    micro-batches; one that begins in an epoch may end in the next, so that nothing is ever left out. Of A accumulated
    micro-batches a on P processes r, optimiser step s takes number (s·A + a)·P + r. Two processes therefore see what
    one process with twice the accumulation sees.

    Args:
        dataset_size: Number of samples.
        batch_size: Samples of a micro-batch.
        seed: Seed of the run.
        first_step: Optimiser steps already made.
        last_step: Optimiser steps to be made in total.
        gradient_accumulation_steps: Micro-batches of one process for one optimiser step (A).
        num_processes: Number of processes (P).
        process_index: This process (r).
        bucket_batches: This many micro-batches at a time are formed among their samples sorted by length.
        length: Gives the length of a visit's sample; needed for more than one bucket batch.

    Raises:
        ValueError: The dataset is smaller than one micro-batch, or has no lengths to bucket by.
    """

    def __init__(
        self,
        dataset_size: int,
        batch_size: int,
        *,
        seed: int,
        first_step: int,
        last_step: int,
        gradient_accumulation_steps: int = 1,
        num_processes: int = 1,
        process_index: int = 0,
        bucket_batches: int = 1,
        length: Callable[[Visit], int] | None = None,
    ) -> None:
        if dataset_size < batch_size:
            raise ValueError(
                f"training.batch_size: got {batch_size} for {dataset_size} training samples, expected at most as many "
                f"as there are samples; lower training.batch_size"
            )
        if bucket_batches > 1 and length is None:
            raise ValueError(
                f"data.bucket_batches: got {bucket_batches} for training samples without lengths; set it to 0"
            )
        self.dataset_size = dataset_size
        self.batch_size = batch_size
        self.seed = seed
        self.bucket_batches, self.length = bucket_batches, length if bucket_batches > 1 else None
        # With s·A + a as one counter, (s·A + a)·P + r is an arithmetic progression.
        self._numbers = range(
            first_step * gradient_accumulation_steps * num_processes + process_index,
            last_step * gradient_accumulation_steps * num_processes,
            num_processes,
        )

    def __len__(self) -> int:
        return len(self._numbers)

    def __iter__(self) -> Iterator[list[Visit]]:
        window, batches = -1, list[list[Visit]]()
        for number in self._numbers:
            if number // self.bucket_batches != window:
                window = number // self.bucket_batches
                batches = self._window(window)
            yield batches[number % self.bucket_batches]

    def _window(self, number: int) -> list[list[Visit]]:
        """Return the micro-batches that are formed together."""
        size = self.batch_size * self.bucket_batches
        visits = [self._visit(place) for place in range(number * size, (number + 1) * size)]
        if self.length is None:
            return [visits]
        buckets = length_buckets([self.length(visit) for visit in visits], self.batch_size, (self.seed, number))
        return [[visits[position] for position in bucket] for bucket in buckets]

    def _visit(self, place: int) -> Visit:
        epoch, position = divmod(place, self.dataset_size)
        order, seeds = epoch_visits(self.dataset_size, self.seed, epoch)
        return Visit(int(order[position]), int(seeds[position]), epoch)


@lru_cache(maxsize=2)
def epoch_visits(dataset_size: int, seed: int, epoch: int) -> tuple[np.ndarray, np.ndarray]:
    """Return the permutation of the samples in one epoch and the seeds of its visits, each of shape (dataset_size,).

    The seeds lie in [0, 2**63): they fit the generators of NumPy and torch and an int64 tensor.
    """
    draw = np.random.default_rng(np.random.SeedSequence(seed, spawn_key=(epoch,)))
    return draw.permutation(dataset_size), draw.integers(2**63, size=dataset_size, dtype=np.uint64)


def length_buckets(lengths: Sequence[int], batch_size: int, seed: Sequence[int]) -> np.ndarray:
    """Share samples out among batches of similar lengths.

    Args:
        lengths: Of a multiple of `batch_size` samples.
        batch_size: Samples of a batch.
        seed: Decides the order of the batches.

    Returns:
        (batches, batch_size) positions in `lengths`.
    """
    batches = np.argsort(lengths, kind="stable").reshape(-1, batch_size)
    return np.random.default_rng(seed).permutation(batches)
