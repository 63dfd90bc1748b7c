"""Shards of a prepared folder, written one by one, and the note of those that a killed run has finished."""

import json
import re
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
from pydantic import TypeAdapter

from m3ae.data.prepared import Rejected
from m3ae.data.rows import Outcome, PackedRows, Row
from m3ae.files import file_sha256, replacing, write_text

_STEM = "manifest.unfinished"
UNFINISHED = f"{_STEM}.jsonl"  # marks a folder as ours until its manifest is written
ROWS_PER_SHARD = 4096
ROWS_PER_GROUP = 100  # the unit in which Parquet is read: small, because images are large
DICTIONARY_BYTES = 2**28  # more than a group holds, so that an image in several of its rows is stored once


@dataclass(frozen=True)
class Shard:
    """A shard to be written: its split, file name and source rows, `start` to `stop` of those of its split."""

    split: str
    name: str
    split_rows: PackedRows
    start: int
    stop: int

    def __len__(self) -> int:
        return self.stop - self.start

    def rows(self) -> list[Row]:
        """Unpack the source rows."""
        return self.split_rows.between(self.start, self.stop)


@dataclass(frozen=True)
class FinishedShard:
    """A shard on disk."""

    split: str
    name: str
    sha256: str
    counts: dict[str, int]  # non-null cells by column
    rejected: list[Rejected]  # of its source rows


_FINISHED = TypeAdapter(FinishedShard)


def plan_shards(rows: dict[str, PackedRows], num_shards: int | None) -> list[Shard]:
    """Spread the rows of each split over `num_shards` shards, in order; by default one per 4,096 rows."""
    shards = []
    for split, split_rows in rows.items():
        total = len(split_rows)
        count = min(num_shards or ceil(total / ROWS_PER_SHARD), total)
        for index in range(count):
            name = f"{split}-{index:05d}-of-{count:05d}.parquet"
            shards.append(Shard(split, name, split_rows, total * index // count, total * (index + 1) // count))
    return shards


def shards_in(shard_range: str | None) -> slice:
    """Return the slice of all shards that a range such as `0:16` names; None names all, other text is an error."""
    if shard_range is None:
        return slice(None)
    match = re.fullmatch(r"(\d{1,9}):(\d{1,9})", shard_range, re.ASCII)
    if match is None or int(match[1]) >= int(match[2]):
        raise ValueError(f"shard_range is {shard_range!r}, expected first:end with first < end, such as 0:16")
    return slice(int(match[1]), int(match[2]))


def write_shard(folder: Path, shard: Shard, features: datasets.Features, outcomes: Iterable[Outcome]) -> FinishedShard:
    """Write the kept rows of a shard as one Parquet file, which appears when it is whole."""
    counts: Counter[str] = Counter()
    rejected: list[Rejected] = []
    path, kept = folder / shard.name, _kept(outcomes, rejected)
    with (
        replacing(path) as temporary,
        pq.ParquetWriter(temporary, features.arrow_schema, dictionary_pagesize_limit=DICTIONARY_BYTES) as writer,
    ):
        while group := list(islice(kept, ROWS_PER_GROUP)):
            examples = [features.encode_example({column: row[column] for column in features}) for row in group]
            writer.write_table(pa.Table.from_pylist(examples, schema=features.arrow_schema))
            counts.update(column for row in group for column, cell in row.items() if cell is not None)
    return FinishedShard(shard.split, shard.name, file_sha256(path), dict(counts), rejected)


def _kept(outcomes: Iterable[Outcome], rejected: list[Rejected]) -> Iterator[Row]:
    for row, left_out in outcomes:
        rejected += left_out
        if row is not None:
            yield row


def start_progress(folder: Path, plan: dict[str, Any], shard_range: str | None = None) -> dict[str, FinishedShard]:
    """Mark a folder as unfinished, and return the shards that earlier runs with the same plan finished, by name.

    A run of a `shard_range` reads the note of this range; a run of the whole folder takes over all notes.
    """
    path = progress_file(folder, shard_range)
    notes = [path] if shard_range else sorted(folder.glob(f"{_STEM}*.jsonl"))
    finished = [shard for note in notes for shard in _read_progress(note, plan)]
    intact = {shard.name: shard for shard in finished if _is_intact(folder / shard.name, shard.sha256)}
    write_text(path, "".join(map(_line, [plan, *map(asdict, intact.values())])))
    for note in notes:
        if note != path:
            note.unlink()
    return intact


def recorded_shards(folder: Path) -> set[str]:
    """Return the names of the shards that interrupted runs have finished, whatever their plan."""
    lines = (line for note in folder.glob(f"{_STEM}*.jsonl") for line in note.read_text("utf-8").splitlines())
    return {record["name"] for line in lines if (record := _parse(line)) and "sha256" in record}


def record_progress(note: Path, shard: FinishedShard) -> None:
    """Add a finished shard to a note."""
    with note.open("a", encoding="utf-8") as file:
        file.write(_line(asdict(shard)))


def progress_file(folder: Path, shard_range: str | None = None) -> Path:
    """Return the note of the finished shards of a folder, or of a range of its shards."""
    return folder / (f"{_STEM}.{shard_range.replace(':', '-')}.jsonl" if shard_range else UNFINISHED)


def is_progress(path: Path) -> bool:
    """Return whether a file is such a note, or the beginning of one."""
    return path.name.startswith(_STEM)


def _read_progress(note: Path, plan: dict[str, Any]) -> list[FinishedShard]:
    lines = note.read_text(encoding="utf-8").splitlines() if note.exists() else []
    records = [record for line in lines if (record := _parse(line)) is not None]
    if not records or records[0] != plan:
        return []
    return [_FINISHED.validate_python(record) for record in records[1:]]


def _is_intact(path: Path, sha256: str) -> bool:
    return path.is_file() and file_sha256(path) == sha256


def _line(record: dict[str, Any]) -> str:
    return json.dumps(record) + "\n"


def _parse(line: str) -> dict[str, Any] | None:
    try:
        record: dict[str, Any] = json.loads(line)
    except (ValueError, RecursionError):  # the last line of a run that was killed while it wrote
        return None
    return record
