"""The order of samples as a pure function of the seed and the position, which makes resuming exact."""

from collections.abc import Iterator
from typing import NamedTuple

import numpy as np
from torch.utils.data import Sampler


class Visit(NamedTuple):
    """One visit of a sample.

    Attributes:
        index: Position of the sample in the dataset.
        seed: Seed of everything random about this visit; differs from visit to visit, below 2**63.
    """

    index: int  # type: ignore[assignment]  # hides tuple.index, which nobody needs here
    seed: int


class MicroBatchSampler(Sampler[list[Visit]]):
    """Yield the micro-batches of one process, from any optimiser step on.

    The run is one endless sequence of micro-batches: epochs that are each a seeded permutation cut into batches, the
    incomplete last one dropped. Of A accumulated micro-batches a on P processes r, optimiser step s takes number
    (s·A + a)·P + r. Two processes therefore see what one process with twice the accumulation sees.

    Args:
        dataset_size: Number of samples.
        batch_size: Samples of a micro-batch.
        seed: Seed of the run.
        first_step: Optimiser steps already made.
        last_step: Optimiser steps to be made in total.
        gradient_accumulation_steps: Micro-batches of one process for one optimiser step (A).
        num_processes: Number of processes (P).
        process_index: This process (r).

    Raises:
        ValueError: The dataset is smaller than one micro-batch.
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
    ) -> None:
        if dataset_size < batch_size:
            raise ValueError(
                f"training.batch_size: got {batch_size} for {dataset_size} training samples, expected at most as many "
                f"as there are samples; lower training.batch_size"
            )
        self.dataset_size = dataset_size
        self.batch_size = batch_size
        self.seed = seed
        # With s·A + a as one counter, (s·A + a)·P + r is an arithmetic progression.
        self._numbers = range(
            first_step * gradient_accumulation_steps * num_processes + process_index,
            last_step * gradient_accumulation_steps * num_processes,
            num_processes,
        )

    def __len__(self) -> int:
        return len(self._numbers)

    def __iter__(self) -> Iterator[list[Visit]]:
        batches_per_epoch = self.dataset_size // self.batch_size
        current_epoch = -1
        for number in self._numbers:
            epoch, position = divmod(number, batches_per_epoch)
            if epoch != current_epoch:
                order, current_epoch = epoch_order(self.dataset_size, self.seed, epoch), epoch
            start = position * self.batch_size
            indices = order[start : start + self.batch_size]
            yield [Visit(int(index), visit_seed(self.seed, epoch, int(index))) for index in indices]


def epoch_order(dataset_size: int, seed: int, epoch: int) -> np.ndarray:
    """Return the permutation of the samples in one epoch, shape (dataset_size,)."""
    return np.random.default_rng(np.random.SeedSequence(seed, spawn_key=(epoch,))).permutation(dataset_size)


def visit_seed(seed: int, epoch: int, index: int) -> int:
    """Return the seed of one visit, in [0, 2**63): it fits the generators of NumPy and torch and an int64 tensor."""
    state = np.random.SeedSequence(seed, spawn_key=(epoch, index)).generate_state(1, np.uint64)
    return int(state[0] >> np.uint64(1))
