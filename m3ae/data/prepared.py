"""The prepared folder, which `m3ae.data.prepare` writes, and its manifest.

```
train-00000-of-00002.parquet   rows of a split: images as encoded bytes, null for what is missing
train.ids.txt                  ids of the rows of a split, in order
rejected.jsonl                 one line per source row, image or text that was left out, with its reason
*.json                         what else the source derives from its rows, such as a list of answers
manifest.json                  source, options, counts, checksums; written last, so where it is the folder is complete
```
"""

import json
import os
import sys
from collections.abc import Collection, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import datasets
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from pydantic import TypeAdapter

from m3ae.data.tables import printable
from m3ae.files import digest

FORMAT_VERSION = 1
MANIFEST = "manifest.json"
REJECTED = "rejected.jsonl"


@dataclass(frozen=True)
class Rejected:
    """A source row that was left out, or, where `column` is set, one cell of a row that was kept.

    Attributes:
        id: of the row, as the source calls it.
        reason: a short fixed phrase, so that equal reasons can be counted.
        split: where the row would have gone, if that is known.
        column: the cell that became null (or, of several texts, lost one).
        detail: the file, the decoder's message and the like.
    """

    id: str
    reason: str
    split: str | None = None
    column: str | None = None
    detail: str | None = None

    def to_json(self) -> str:
        """Return a line of `rejected.jsonl`."""
        cells = {name: cell and printable(cell) for name, cell in asdict(self).items()}
        return json.dumps(cells, ensure_ascii=False) + "\n"


@dataclass(frozen=True)
class Metadata:
    """What a source says about all its rows, for `Manifest.metadata`: the scale of its values and the like.

    Attributes:
        name: key in the manifest.
        value: anything that JSON holds.
    """

    name: str
    value: Any


@dataclass(frozen=True)
class PreparedColumns:
    """The columns of a source's rows, where they depend on what the source reads; else they are its `FEATURES`."""

    features: datasets.Features


@dataclass(frozen=True)
class SplitInfo:
    """One split: rows, non-null images by column, rows with a text, rows rejected, SHA-256 by shard name.

    `texts` is None where the source has no column `text`.
    """

    rows: int
    images: dict[str, int]
    texts: int | None
    rejected: int
    shards: dict[str, str]


@dataclass(frozen=True)
class Manifest:
    """Description of a prepared folder; the same input gives the same manifest.

    Attributes:
        source: name of the source.
        options: all options that shape the result.
        rows_sha256: digest of the source's rows, image contents excepted.
        splits: counts and shards by split.
        rejected: number of source rows left out, by reason.
        dropped: number of cells left out of rows that were kept, by column and reason.
        files: SHA-256 of every file beside the shards, by name.
        summaries: of files that the source derived from its rows, by file name.
        metadata: what the source says about all its rows.
        format_version: of the folder's layout.
    """

    source: str
    options: dict[str, Any]
    rows_sha256: str
    splits: dict[str, SplitInfo]
    rejected: dict[str, int]
    dropped: dict[str, int]
    files: dict[str, str] = field(default_factory=dict)
    summaries: dict[str, str] = field(default_factory=dict)
    metadata: dict[str, Any] = field(default_factory=dict)
    format_version: int = FORMAT_VERSION

    def rejected_share(self, by_choice: Collection[str] = ()) -> float:
        """Share of the source's rows that was left out, reasons in `by_choice` aside; 1 where it has no rows."""
        rows = sum(info.rows for info in self.splits.values())
        rejected = sum(count for reason, count in self.rejected.items() if reason not in by_choice)
        return rejected / (rows + rejected) if rows + rejected else 1.0

    def to_json(self) -> str:
        """Return the text of `manifest.json`."""
        return json.dumps(asdict(self), indent=2, ensure_ascii=False) + "\n"

    def __str__(self) -> str:
        lines = [_heading(self.splits)]
        for name, info in self.splits.items():
            texts = [] if info.texts is None else [info.texts]
            lines.append([name, *map(str, (info.rows, *info.images.values(), *texts, info.rejected))])
        widths = [max(map(len, column)) for column in zip(*lines, strict=True)]
        table = ["  ".join([cells[0].ljust(widths[0]), *map(str.rjust, cells[1:], widths[1:])]) for cells in lines]
        for title, counts in (("rejected rows", self.rejected), ("dropped cells", self.dropped)):
            reasons = ", ".join(f"{count} {reason}" for reason, count in counts.items())
            table.append(f"{title}: {sum(counts.values())}" + (f" ({reasons})" if reasons else ""))
        return "\n".join([*table, *self.summaries.values()])


_MANIFESTS = TypeAdapter(Manifest)


def _heading(splits: dict[str, SplitInfo]) -> list[str]:
    info = next(iter(splits.values()), SplitInfo(0, {}, None, 0, {}))
    return ["split", "rows", *info.images, *([] if info.texts is None else ["texts"]), "rejected"]


def load_manifest(folder: Path) -> Manifest:
    """Read the manifest of a prepared folder.

    Raises:
        FileNotFoundError: there is no such folder, or it holds no manifest.
        ValueError: the manifest is damaged or of another format version.
    """
    if not folder.is_dir():
        raise FileNotFoundError(f"prepared folder {folder} does not exist: make it with m3ae prepare")
    path = folder / MANIFEST
    if not path.is_file():
        raise FileNotFoundError(f"{folder} holds no {MANIFEST}: prepare it, or finish it, with m3ae prepare")
    again = "prepare the folder again with --overwrite"
    try:
        text = path.read_text(encoding="utf-8")
        version = json.loads(text)["format_version"]
        manifest = _MANIFESTS.validate_json(text, strict=True) if version == FORMAT_VERSION else None
    except (ValueError, KeyError, TypeError, RecursionError) as error:
        raise ValueError(f"{path} is damaged ({' '.join(str(error).split())}): {again}") from error
    if manifest is None:
        raise ValueError(f"{path} has format version {version}, expected {FORMAT_VERSION}: {again}")
    if outside := [name for info in manifest.splits.values() for name in info.shards if Path(name).name != name]:
        raise ValueError(f"{path} names {outside[0]!r}, which is no file in its folder: {again}")
    return manifest


def image_columns(features: datasets.Features) -> list[str]:
    """Return the columns that hold images."""
    return [column for column, feature in features.items() if isinstance(feature, datasets.Image)]


def array_shape(feature: Any) -> tuple[int, ...]:
    """Return the shape of the arrays of numbers in a column, lists of fixed length; () if it holds something else."""
    shape: list[int] = []
    while isinstance(feature, datasets.List):
        shape.append(feature.length)
        feature = feature.feature
    is_number = isinstance(feature, datasets.Value) and feature.dtype.startswith(("float", "int", "uint"))
    return tuple(shape) if is_number and min(shape, default=0) > 0 else ()


def typed_rows(rows: Sequence[dict[str, Any]], schema: pa.Schema) -> list[dict[str, Any]]:
    """Give arrays that were read as Python lists the type of their columns: those of 8 bits mean 0 to 255."""
    types = {}
    for column in schema:
        kind = column.type
        while pa.types.is_fixed_size_list(kind):
            kind = kind.value_type
        if kind != column.type and pa.types.is_primitive(kind):
            types[column.name] = kind.to_pandas_dtype()
    arrays = ({name: np.asarray(row[name], dtype) for name, dtype in types.items() if row[name]} for row in rows)
    return [row | of_row for row, of_row in zip(rows, arrays, strict=True)]


def shard_features(schema: pa.Schema) -> datasets.Features:
    """Return the columns of a shard.

    Raises:
        pyarrow.ArrowInvalid: Their description is damaged.
    """
    try:
        return datasets.Features.from_arrow_schema(schema)
    except Exception as error:  # it parses JSON and looks names up
        raise pa.ArrowInvalid(f"its description of the columns is damaged: {error}") from error


@contextmanager
def _bars_in_terminals() -> Iterator[None]:
    """Keep the progress bars of `datasets` out of logs."""
    silenced = not sys.stderr.isatty() and not datasets.are_progress_bars_disabled()
    if silenced:
        datasets.disable_progress_bars()
    try:
        yield
    finally:
        if silenced:
            datasets.enable_progress_bars()


def _is_readable(shard: Path) -> bool:
    try:
        with pq.ParquetFile(shard) as file:
            shard_features(file.schema_arrow)
            for batch in file.iter_batches():
                batch.validate(full=True)
    except (OSError, pa.ArrowException):
        return False
    return True


def load_split(folder: Path, split: str) -> datasets.Dataset:
    """Open one split of a prepared folder, memory-mapped, for reading by index; images stay encoded, as `bytes`.

    `datasets` keeps an Arrow copy in its cache (`HF_DATASETS_CACHE`), keyed by the manifest's checksums of the shards,
    and by their paths and times.

    Raises:
        FileNotFoundError: the folder, its manifest or a shard is missing.
        ValueError: the manifest or a shard is damaged, there is no such split, or the split has no rows.
    """
    manifest = load_manifest(folder)
    if split not in manifest.splits:
        raise ValueError(f"{folder} has no split {split!r}: it has {', '.join(manifest.splits) or 'none'}")
    info = manifest.splits[split]
    if info.rows == 0:
        raise ValueError(f"split {split!r} of {folder} is empty: all its {info.rejected} rows are in {REJECTED}")
    shards = [folder / name for name in info.shards]
    if missing := [shard.name for shard in shards if not os.path.isfile(shard)]:  # False for too long a name
        raise FileNotFoundError(f"{folder} lacks {', '.join(missing)}: prepare it again with --overwrite")
    key = f"m3ae-{digest(json.dumps(info.shards).encode()):014x}"
    try:
        with _bars_in_terminals():
            dataset = datasets.Dataset.from_parquet([str(shard) for shard in shards], split=split, dataset_name=key)
        for column in set(dataset.features) - set(image_columns(dataset.features)):
            dataset.data.column(column).validate(full=True)  # texts that are no UTF-8, for instance
    except Exception as error:  # as each library puts it; a full disk or too little memory is no fault of the shards
        if not (unreadable := [shard.name for shard in shards if not _is_readable(shard)]):
            raise
        raise ValueError(
            f"{folder}: {', '.join(unreadable)} cannot be read: prepare it again with --overwrite"
        ) from error
    if len(dataset) != info.rows:
        raise ValueError(f"{folder}: {split} has {len(dataset)} rows, {MANIFEST} says {info.rows}: use --overwrite")
    for column in image_columns(dataset.features):
        dataset = dataset.cast_column(column, datasets.Image(decode=False))
    return dataset
