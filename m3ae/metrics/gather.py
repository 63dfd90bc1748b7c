"""Samples of all processes in their order, each once."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TypeVar

from accelerate.utils import gather_object

RowT = TypeVar("RowT")


def gather_rows(rows: Sequence[RowT]) -> list[RowT]:
    """Return the rows of all P processes in the order of the samples, in every process; each has to call this.

    Process p holds the rows of the samples p, p + P, p + 2P, …, one a sample: `range(process_index, size,
    num_processes)`. No process pads its share, so no sample is counted twice.

    Args:
        rows: Anything that can be pickled, on the CPU.

    Raises:
        ValueError: The processes hold other numbers of rows than such shares have.
    """
    shares = gather_object([list(rows)])
    sizes = [len(share) for share in shares]
    size, processes = sum(sizes), len(shares)
    expected = [len(range(process, size, processes)) for process in range(processes)]
    if sizes != expected:
        raise ValueError(
            f"the processes hold {sizes} rows, expected {expected}: process p of P takes the samples p, p + P, …"
        )
    return [shares[index % processes][index // processes] for index in range(size)]
