"""Writing the shards of a prepared folder one by one, so that a run that was killed continues behind the last one."""

import hashlib
import json
import os
from collections import Counter
from collections.abc import Iterable, Iterator
from dataclasses import asdict, dataclass
from itertools import islice
from math import ceil
from pathlib import Path
from typing import Any

import datasets
import pyarrow as pa
import pyarrow.parquet as pq

from m3ae.data.finish import Outcome, Row
from m3ae.data.prepared import Rejected

UNFINISHED = "manifest.unfinished.jsonl"  # marks a folder as ours until the manifest is there
ROWS_PER_SHARD = 4096
ROWS_PER_GROUP = 100  # the unit in which Parquet is read: small, because images are large
DICTIONARY_BYTES = 2**28  # more than a group holds, so that an image in several of its rows is stored once


@dataclass(frozen=True)
class Shard:
    """A shard to be written: its split, file name and source rows."""

    split: str
    name: str
    rows: list[Row]


@dataclass(frozen=True)
class FinishedShard:
    """A shard on disk.

    Attributes:
        split: which it is part of.
        name: of the file.
        sha256: of its contents.
        counts: non-null cells by column.
        rejected: what was left out of its source rows.
    """

    split: str
    name: str
    sha256: str
    counts: dict[str, int]
    rejected: list[Rejected]


def plan_shards(rows: dict[str, list[Row]], num_shards: int | None) -> list[Shard]:
    """Spread the rows of each split over shards, in order.

    Args:
        rows: by split.
        num_shards: per split; by default one per 4,096 rows.
    """
    shards = []
    for split, split_rows in rows.items():
        total = len(split_rows)
        count = min(num_shards or ceil(total / ROWS_PER_SHARD), total)
        for index in range(count):
            part = slice(total * index // count, total * (index + 1) // count)
            shards.append(Shard(split, f"{split}-{index:05d}-of-{count:05d}.parquet", split_rows[part]))
    return shards


def write_shard(folder: Path, shard: Shard, features: datasets.Features, outcomes: Iterable[Outcome]) -> FinishedShard:
    """Write the rows of a shard that were kept as one Parquet file, which appears when it is whole."""
    counts: Counter[str] = Counter()
    rejected: list[Rejected] = []
    path, temporary = folder / shard.name, folder / f"{shard.name}.tmp"
    kept = _kept(outcomes, rejected)
    with pq.ParquetWriter(temporary, features.arrow_schema, dictionary_pagesize_limit=DICTIONARY_BYTES) as writer:
        while group := list(islice(kept, ROWS_PER_GROUP)):
            examples = [features.encode_example({column: row[column] for column in features}) for row in group]
            writer.write_table(pa.Table.from_pylist(examples, schema=features.arrow_schema))
            counts.update(column for row in group for column, cell in row.items() if cell is not None)
    os.replace(temporary, path)
    return FinishedShard(shard.split, shard.name, file_sha256(path), dict(counts), rejected)


def _kept(outcomes: Iterable[Outcome], rejected: list[Rejected]) -> Iterator[Row]:
    for row, left_out in outcomes:
        rejected += left_out
        if row is not None:
            yield row


def start_progress(folder: Path, plan: dict[str, Any]) -> dict[str, FinishedShard]:
    """Mark a folder as unfinished, and return the shards that an earlier run with the same plan finished, by name."""
    path = folder / UNFINISHED
    lines = path.read_text(encoding="utf-8").splitlines() if path.exists() else []
    records = [record for line in lines if (record := _parse(line)) is not None]
    same = bool(records) and records[0] == plan
    finished = [_finished_shard(record) for record in records[1:]] if same else []
    intact = {shard.name: shard for shard in finished if _is_intact(folder / shard.name, shard.sha256)}
    write_text(path, "".join(map(_line, [plan, *map(asdict, intact.values())])))
    return intact


def record_progress(folder: Path, shard: FinishedShard) -> None:
    """Note that a shard is finished."""
    with (folder / UNFINISHED).open("a", encoding="utf-8") as file:
        file.write(_line(asdict(shard)))


def write_text(path: Path, text: str) -> None:
    """Write a file that appears when it is whole."""
    temporary = path.with_name(f"{path.name}.tmp")
    temporary.write_text(text, encoding="utf-8")
    os.replace(temporary, path)


def file_sha256(path: Path) -> str:
    """Return the SHA-256 of a file."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _is_intact(path: Path, sha256: str) -> bool:
    return path.is_file() and file_sha256(path) == sha256


def _line(record: dict[str, Any]) -> str:
    return json.dumps(record) + "\n"


def _parse(line: str) -> dict[str, Any] | None:
    try:
        record: dict[str, Any] = json.loads(line)
    except json.JSONDecodeError:  # the last line of a run that was killed while it wrote it
        return None
    return record


def _finished_shard(record: dict[str, Any]) -> FinishedShard:
    return FinishedShard(**record | {"rejected": [Rejected(**entry) for entry in record["rejected"]]})
