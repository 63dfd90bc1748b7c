"""The rows of what people have: images, a folder of images, a table, or a prepared set; images are not decoded yet.

Images alone need no extra; tables and prepared sets need the extra `train`.
"""

from __future__ import annotations

import hashlib
import sys
from collections import Counter
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, NamedTuple

from tqdm import tqdm

from m3ae.data.tables import TABLE_SUFFIXES, visible_files
from m3ae.images.files import ImageFile, StoredImage, UnreadableImageError, is_image

MANIFEST = "manifest.json"
TABLES = (*TABLE_SUFFIXES, ".json", ".json.gz")
ARRAY = ".npy"
ROWS_READ = 32  # of a shard, at once


class Row(NamedTuple):
    """A row of a table or of a prepared set, or an image.

    Attributes:
        id: The name of the row.
        images: The images that the row has, by column.
        texts: The texts of the row.
        question: The question of the row.
        labels: The labels of the row; None where they are not known.
        split: The split of a prepared set.
    """

    id: str
    images: Mapping[str, ImageFile | StoredImage]
    texts: list[str]
    question: str | None = None
    labels: list[str] | None = None
    split: str | None = None


class Rejection(NamedTuple):
    """A row of a table, or a file, that cannot be used."""

    id: str
    reason: str
    detail: str

    def __str__(self) -> str:
        return f"{self.reason}: {self.detail}" if self.detail else self.reason


class Folder(NamedTuple):
    """The contents of a plain folder or of a table.

    Attributes:
        rows: The rows that can be used, as far as that is known before an image is decoded.
        rejected: The others.
        digest: A digest of the tables and images.
    """

    rows: list[Row]
    rejected: list[Rejection]
    digest: str


def is_prepared(path: Path) -> bool:
    """Return whether a folder is a prepared set."""
    return (path / MANIFEST).is_file()


def read_rows(source: Path, split: str | None = None) -> Iterator[Row | Rejection]:
    """Yield the rows of an image, a folder, a table or a prepared set.

    Args:
        source: The file or folder.
        split: The split of a prepared set; by default all of them.

    Raises:
        FileNotFoundError: There is no such file or folder.
        ValueError: The source holds neither a table nor an image, or there is no such split.
    """
    if is_prepared(source):
        yield from _prepared_rows(source, split)
        return
    if split is not None:
        raise ValueError(f"split {split!r}: {source} is no prepared set, and has no splits")
    if source.is_dir() or source.name.lower().endswith(TABLES):
        rows, rejected, _ = read_folder(source)
        yield from rows
        yield from rejected
    else:
        yield Row(str(source), {"image": ImageFile(source)}, [])


def read_folder(source: Path) -> Folder:
    """Read a plain folder, or a table of images in its folder or below.

    The rows are those that `m3ae prepare folder` would make; a folder without a table has a row for each image.

    Raises:
        FileNotFoundError: There is no such folder or table.
        PermissionError: A folder below cannot be read.
        ValueError: The folder holds neither a table nor an image, or it is a prepared set that is not finished.
    """
    if not source.exists():
        raise FileNotFoundError(f"{source} does not exist: expected a folder of images, a table or a prepared set")
    folder = source if source.is_dir() else source.parent
    files = visible_files(folder) if source == folder else [source]
    tables = [path for path in files if source != folder or _is_table(path, folder)]
    if tables:
        rows, rejected = _table_rows(folder, tables, None if source == folder else source.name)
    else:
        names = {path: path.relative_to(folder).as_posix() for path in files}
        rows = [Row(names[path], {"image": ImageFile(path, (folder,))}, []) for path in files if is_image(path)]
        rejected = [Rejection(names[path], "not an image", "by its suffix") for path in files if not is_image(path)]
        if not rows:
            raise ValueError(f"{folder} holds no image (.jpg, .png, .tif, .dcm, …)")
    images = [image.path for row in rows for image in row.images.values() if isinstance(image, ImageFile)]
    return Folder(rows, rejected, _digest([*tables, *(path for path in images if path.is_file())]))


def report(problem: UnreadableImageError | str) -> None:
    """Print on the standard error, without disturbing a progress bar, what is left out."""
    tqdm.write(f"left out: {problem}", file=sys.stderr)


def _is_table(path: Path, folder: Path) -> bool:
    """Return whether a file of a folder is a table; a list of records in JSON beside the images is one, too."""
    name = path.name.lower()
    return name.endswith(TABLE_SUFFIXES) or (name.endswith(".json") and path.parent == folder)


def _table_rows(folder: Path, tables: list[Path], table: str | None) -> tuple[list[Row], list[Rejection]]:
    from m3ae.data.prepared import Rejected
    from m3ae.data.shards import is_progress
    from m3ae.data.sources.folder import rows as source_rows

    if any(path.parent == folder and is_progress(path) for path in tables):
        raise ValueError(f"{folder} is a prepared set that is not finished: run the same m3ae prepare again")
    rows, rejected = list[Row](), list[Rejection]()
    for cells in source_rows(folder, table=table, split="none"):
        if isinstance(cells, Rejected):
            rejected.append(Rejection(cells.id, cells.reason, cells.detail or ""))
        elif isinstance(cells, dict):
            files = {name: cell for name, cell in cells.items() if isinstance(cell, Path) and cell.suffix != ARRAY}
            images = {column: ImageFile(path, (folder,)) for column, path in files.items()}
            rows.append(Row(cells["id"], images, cells["text"] or [], cells["question"], cells.get("labels")))
    for reason, number in Counter(row.reason for row in rejected).items():
        report(f"{number} of the rows: {reason}, such as {next(row.id for row in rejected if row.reason == reason)}")
    return rows, rejected


def _prepared_rows(folder: Path, split: str | None) -> Iterator[Row]:
    import pyarrow.parquet as pq

    from m3ae.data.prepared import load_manifest

    splits = load_manifest(folder).splits
    if split is not None and split not in splits:
        raise ValueError(f"{folder} has no split {split!r}: it has {', '.join(splits)}")
    for name, info in splits.items():
        for shard in info.shards if split in (None, name) else ():
            with pq.ParquetFile(folder / shard) as file:
                names = {"id", "text", "question", "labels", *info.images}.intersection(file.schema_arrow.names)
                for batch in file.iter_batches(ROWS_READ, columns=sorted(names)):
                    yield from (_prepared_row(cells, [*info.images], name) for cells in batch.to_pylist())


def _prepared_row(cells: dict[str, Any], columns: list[str], split: str) -> Row:
    stored = {column: (cells[column] or {}).get("bytes") for column in columns}
    images = {column: StoredImage(content, cells["id"]) for column, content in stored.items() if content}
    texts, labels = ([cell] if isinstance(cell, str) else cell for cell in (cells.get("text"), cells.get("labels")))
    return Row(cells["id"], images, texts or [], cells.get("question"), labels, split)


def _digest(files: list[Path]) -> str:
    """Return a digest of the names, sizes and times of files."""
    lines = (f"{file}\0{(stat := file.stat()).st_size}\0{stat.st_mtime_ns}\n" for file in files)
    return hashlib.sha256("".join(lines).encode("utf-8", "surrogateescape")).hexdigest()
