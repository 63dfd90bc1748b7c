"""Several sets of pairs visited as one, each as often as its weight says."""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Sequence
from functools import lru_cache
from itertools import accumulate
from typing import NamedTuple

import numpy as np

from m3ae.data.pairs import Pair, PairDataset
from m3ae.data.samples import Visit


class _OwnVisit(NamedTuple):
    """A visit as one of the sets sees it."""

    index: int  # type: ignore[assignment]  # hides tuple.index, which nobody needs here
    seed: int
    epoch: int


class MixedPairs:
    """Sets of pairs as one map-style dataset whose length is the number of visits in an epoch.

    The visits of a set are an endless sequence of its permutations, of which every epoch takes the next weight·n: at a
    weight of 1 an epoch visits every sample once, at 2 twice, and at 0.5 two epochs together visit every sample once.

    Args:
        datasets: The sets.
        weights: Visits of each sample per epoch, by set; positive.
        seed: Decides which samples an epoch takes where the weight is no whole number.
    """

    def __init__(self, datasets: Sequence[PairDataset], weights: Sequence[float], seed: int) -> None:
        self.datasets, self.seed = list(datasets), seed
        self.visits = [max(1, round(weight * len(part))) for part, weight in zip(datasets, weights, strict=True)]
        self._ends = list(accumulate(self.visits))

    def __len__(self) -> int:
        return self._ends[-1]

    def __getitem__(self, visit: Visit) -> Pair:
        """Load the sample that takes place `visit.index` in epoch `visit.epoch`."""
        part, own = self._locate(visit)
        return self.datasets[part][own]

    def length(self, visit: Visit) -> int:
        """Return the number of characters of the text that `self[visit]` has, without loading the row."""
        part, own = self._locate(visit)
        return self.datasets[part].length(own)

    def texts(self) -> list[str]:
        """Return all texts of all sets."""
        return [text for part in self.datasets for text in part.texts()]

    def _locate(self, visit: Visit) -> tuple[int, _OwnVisit]:
        part = bisect_right(self._ends, visit.index)
        size, visits = len(self.datasets[part]), self.visits[part]
        place = visit.epoch * visits + visit.index - (self._ends[part] - visits)
        if visits % size == 0:  # whole passes: the order within them is the sampler's
            return part, _OwnVisit(place % size, visit.seed, visit.epoch)
        number, position = divmod(place, size)
        return part, _OwnVisit(int(_pass_order(size, self.seed, part, number)[position]), visit.seed, visit.epoch)


@lru_cache(maxsize=16)
def _pass_order(size: int, seed: int, part: int, number: int) -> np.ndarray:
    """Return the order (size,) of pass `number` over set `part`."""
    return np.random.default_rng(np.random.SeedSequence(seed, spawn_key=(part, number))).permutation(size)
