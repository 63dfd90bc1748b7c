"""One path from the rows of any source to a prepared folder (see `m3ae.data.prepared`).

A source is a module of `SOURCES` with `FEATURES` and `rows(...)`, an iterator of rows and of `Rejected`. A row has a unique `id`, a
`split`, `text` (a list of strings, or None) and one cell for every other column of `FEATURES`. An image cell is None,
the path of a file still to be decoded, or a picklable function without arguments that returns a PIL image.
"""

import hashlib
import inspect
import json
import os
from collections import Counter, deque
from collections.abc import Callable, Generator, Iterable, Iterator
from concurrent.futures import Future, ProcessPoolExecutor
from contextlib import closing
from dataclasses import asdict, replace
from functools import partial
from importlib import import_module
from itertools import islice
from math import ceil
from multiprocessing import get_all_start_methods, get_context, parent_process
from multiprocessing.context import BaseContext
from pathlib import Path
from threading import Thread
from types import ModuleType
from typing import Any

import datasets
import pyarrow as pa
import pyarrow.parquet as pq
from PIL import Image
from tqdm import tqdm

from m3ae.data.images import UnreadableImageError, encode_image, load_image
from m3ae.data.prepared import MANIFEST, REJECTED, Manifest, Rejected, SplitInfo, load_manifest

Row = dict[str, Any]
Outcome = tuple[Row | None, list[Rejected]]  # the finished row, if it is kept, and everything that was left out of it

SOURCES = {
    "folder": "m3ae.data.sources.folder",
    "iu_xray": "m3ae.data.sources.iu_xray",
    "medicat": "m3ae.data.sources.medicat",
    "melinda": "m3ae.data.sources.melinda",
    "mimic_cxr": "m3ae.data.sources.mimic_cxr",
    "phantom": "m3ae.data.phantom",
    "roco": "m3ae.data.sources.roco",
    "rocov2": "m3ae.data.sources.rocov2",
    "slake": "m3ae.data.sources.slake",
    "vqa_med_2019": "m3ae.data.sources.vqa_med_2019",
    "vqa_rad": "m3ae.data.sources.vqa_rad",
}
UNFINISHED = "manifest.unfinished.json"  # marks a folder as ours until the manifest is there
ROWS_PER_SHARD = 4096
ROWS_PER_GROUP = 100  # the unit in which Parquet is read: small, because images are large
ROWS_PER_TASK = 16
TASKS_PER_WORKER = 4  # fewer are not worth the seconds that a worker takes to start


def prepare(
    name: str,
    output: str | Path,
    *,
    source: str | Path | None = None,
    shorter_side: int = 384,
    min_words: int = 3,
    num_shards: int | None = None,
    num_workers: int | None = None,
    overwrite: bool = False,
    **options: Any,
) -> Manifest:
    """Prepare a source into a folder and print a summary; a folder that already holds just this is reused.

    Nothing is lost silently: an unreadable image becomes null where the row has another one, too short a text where it
    has an image; otherwise the row is left out, as is one whose id was there before; `rejected.jsonl` lists them all.
    The same input gives the same bytes, whatever the number of workers.

    Args:
        name: a key of `SOURCES`.
        output: folder to create; it may exist if it is empty or was made by this function.
        source: folder of the original files, for sources that have one.
        shorter_side: larger images are shrunk to this many pixels on their shorter side.
        min_words: shorter texts are left out.
        num_shards: per split; by default one per 4,096 rows.
        num_workers: processes; by default one per core.
        overwrite: replace what `output` holds, if it was made by this function.
        **options: passed on to the source's `rows`.

    Raises:
        FileExistsError: `output` holds something else.
        FileNotFoundError: a part of the source is missing.
        ValueError: unknown source or option, or a source in the wrong format.
    """
    for option, value in (("shorter_side", shorter_side), ("num_shards", num_shards), ("num_workers", num_workers)):
        if value is not None and value < 1:
            raise ValueError(f"{option} is {value}, expected at least 1")
    module, output = load_source(name), Path(output)
    arguments = _bind(name, module.rows, options if source is None else {"source": Path(source), **options})
    shape = {"shorter_side": shorter_side, "min_words": min_words, "num_shards": num_shards}
    recorded = shape | {option: value for option, value in arguments.items() if option != "source"}
    rows, rejected = _list_rows(module.rows(**arguments))
    planned = Manifest(name, recorded, _digest(rows, rejected), splits={}, rejected={}, dropped={})
    if (existing := _claim(output, planned, overwrite)) is not None:
        print(f"{output} is prepared already and was reused; overwrite it to prepare it again\n{existing}")
        return existing

    manifest = _write_folder(output, planned, module.FEATURES, rows, rejected, num_workers)
    print(manifest)
    return manifest


def load_source(name: str) -> ModuleType:
    """Import the module of a source.

    Raises:
        ValueError: there is no such source.
    """
    if name not in SOURCES:
        raise ValueError(f"unknown source {name!r}: expected one of {', '.join(SOURCES)}")
    return import_module(SOURCES[name])


def finish_rows(rows: list[Row], images: list[str], shorter_side: int, min_words: int) -> list[Outcome]:
    """Encode the images and clean the texts of some rows; `None` stands for a row of which nothing usable is left."""
    return [_finish_row(dict(row), images, shorter_side, min_words) for row in rows]


def _finish_row(row: Row, images: list[str], shorter_side: int, min_words: int) -> Outcome:
    dropped = partial(Rejected, row["id"], split=row["split"])
    left_out: list[Rejected] = []
    for column in images:
        try:
            row[column] = _encode_cell(row[column], shorter_side)
        except UnreadableImageError as error:
            row[column] = None
            left_out.append(dropped(error.reason, column=column, detail=error.detail))
    has_image = any(row[column] is not None for column in images)
    if left_out and not has_image:
        details = "; ".join(str(entry.detail) for entry in left_out)
        return None, [dropped(left_out[0].reason, detail=details)]
    row["text"], reasons = clean_texts(row["text"], min_words)
    if not has_image and row["text"] is None:
        return None, [dropped("neither image nor text", detail="; ".join(reasons) or None)]
    return row, left_out + [dropped(reason, column="text") for reason in reasons]


def _encode_cell(cell: Path | Callable[[], Image.Image] | None, shorter_side: int) -> bytes | None:
    if cell is None:
        return None
    return encode_image(load_image(cell) if isinstance(cell, Path) else cell(), shorter_side)


def clean_texts(texts: list[str] | None, min_words: int) -> tuple[list[str] | None, list[str]]:
    """Collapse white space and leave out texts of fewer than `min_words` words.

    Returns:
        The texts kept, or None if there are none, and one reason for each text left out.
    """
    cleaned = [" ".join(text.split()) for text in texts or []]
    kept = [text for text in cleaned if text and len(text.split()) >= min_words]
    reasons = ["text too short" if text else "text empty" for text in cleaned if text not in kept]
    return kept or None, reasons


def _bind(name: str, function: Callable[..., Any], arguments: dict[str, Any]) -> dict[str, Any]:
    """Check the arguments of a source's `rows` and add its defaults."""
    signature = inspect.signature(function)
    try:
        bound = signature.bind(**arguments)
    except TypeError as error:
        raise ValueError(f"{name}: {error}; its options are {', '.join(signature.parameters)}") from error
    bound.apply_defaults()
    return bound.arguments


def _list_rows(entries: Iterable[Row | Rejected]) -> tuple[dict[str, list[Row]], list[Rejected]]:
    """Sort a source's entries into rows by split and rejected ones, among them those whose id was there before."""
    rows: dict[str, list[Row]] = {}
    rejected: list[Rejected] = []
    seen: set[str] = set()
    for entry in entries:
        if isinstance(entry, Rejected):
            rejected.append(entry)
        elif entry["id"] in seen:
            rejected.append(Rejected(entry["id"], "duplicate id", entry["split"]))
        else:
            seen.add(entry["id"])
            rows.setdefault(entry["split"], []).append(entry)
    return rows, rejected


def _digest(rows: dict[str, list[Row]], rejected: list[Rejected]) -> str:
    """Return a digest of what a source lists, by file name, so that no folder is reused for another source."""
    listed = [rows, [asdict(entry) for entry in rejected]]
    text = json.dumps(listed, default=lambda cell: cell.name if isinstance(cell, Path) else None)
    return hashlib.sha256(text.encode()).hexdigest()


def _claim(output: Path, planned: Manifest, overwrite: bool) -> Manifest | None:
    """Make `output` ready to be written, or return its manifest if it already holds what is planned."""
    output.mkdir(parents=True, exist_ok=True)
    unfinished = (output / UNFINISHED).exists()
    if (output / MANIFEST).exists() and not unfinished and not overwrite:
        existing = load_manifest(output)
        if replace(existing, splits={}, rejected={}, dropped={}) != planned:
            raise FileExistsError(
                f"{output} was prepared from other rows or options ({existing.source} {existing.options}, now "
                f"{planned.source} {planned.options}): pass --overwrite (overwrite=True) or choose another folder"
            )
        return existing
    if any(output.iterdir()) and not unfinished and not (output / MANIFEST).exists():
        raise FileExistsError(f"{output} is not empty and holds no {MANIFEST}: choose an empty or new folder")
    (output / UNFINISHED).touch()
    for pattern in (MANIFEST, REJECTED, "*-?????-of-?????.parquet"):
        for path in [*output.glob(pattern), *output.glob(f"{pattern}.tmp")]:
            path.unlink()
    return None


def _write_folder(
    output: Path,
    planned: Manifest,
    features: datasets.Features,
    rows: dict[str, list[Row]],
    rejected: list[Rejected],
    num_workers: int | None,
) -> Manifest:
    """Finish all rows, write them as shards, then `rejected.jsonl`, then the manifest."""
    options = planned.options
    finish = partial(
        finish_rows,
        images=_image_columns(features),
        shorter_side=options["shorter_side"],
        min_words=options["min_words"],
    )
    ordered = [row for split_rows in rows.values() for row in split_rows]
    splits = {}
    with closing(_map(finish, ordered, num_workers, f"prepare {planned.source}")) as outcomes:
        for split, split_rows in rows.items():
            sizes = _shard_sizes(len(split_rows), options["num_shards"])
            splits[split] = _write_split(output, split, sizes, features, outcomes, rejected)
    lost_rows = Counter(entry.reason for entry in rejected if entry.column is None)
    lost_cells = Counter(f"{entry.column}: {entry.reason}" for entry in rejected if entry.column is not None)
    manifest = replace(planned, splits=splits, rejected=dict(lost_rows), dropped=dict(lost_cells))
    lines = [json.dumps(asdict(entry), ensure_ascii=False) + "\n" for entry in rejected]
    _write_text(output / REJECTED, "".join(lines))
    _write_text(output / MANIFEST, manifest.to_json())
    (output / UNFINISHED).unlink()
    return manifest


def _map(
    function: Callable[[list[Row]], list[Outcome]], rows: list[Row], num_workers: int | None, title: str
) -> Generator[Outcome]:
    """Apply a function of some rows to all of them, in order, with a progress bar."""
    tasks = [rows[start : start + ROWS_PER_TASK] for start in range(0, len(rows), ROWS_PER_TASK)]
    num_workers = min(num_workers or os.cpu_count() or 1, len(tasks) // TASKS_PER_WORKER)
    results = map(function, tasks) if num_workers <= 1 else _run_parallel(function, tasks, num_workers)
    with tqdm(total=len(rows), desc=title, unit="row") as bar:
        for result in results:
            bar.update(len(result))
            yield from result


def _run_parallel(
    function: Callable[[list[Row]], list[Outcome]], tasks: list[list[Row]], num_workers: int
) -> Iterator[list[Outcome]]:
    """Run tasks in processes; results come in order, and only a few wait in memory."""
    with ProcessPoolExecutor(num_workers, mp_context=_worker_context(), initializer=_end_with_parent) as pool:
        pending: deque[Future[list[Outcome]]] = deque()
        for task in tasks:
            pending.append(pool.submit(function, task))
            if len(pending) > TASKS_PER_WORKER * num_workers:
                yield pending.popleft().result()
        while pending:
            yield pending.popleft().result()


def _worker_context() -> BaseContext:
    """Return how to start workers: never forked from here, where Arrow and PyTorch run threads that hold locks."""
    if "forkserver" not in get_all_start_methods():
        return get_context("spawn")
    context = get_context("forkserver")
    context.set_forkserver_preload([__name__])  # the package, PyTorch included, is imported once, not once per worker
    return context


def _end_with_parent() -> None:
    """Make a worker end when its parent is killed; it would wait for work forever."""

    def wait() -> None:
        if (parent := parent_process()) is not None:
            parent.join()
            os._exit(1)

    Thread(target=wait, daemon=True).start()


def _shard_sizes(num_rows: int, num_shards: int | None) -> list[int]:
    num_shards = min(num_shards or ceil(num_rows / ROWS_PER_SHARD), num_rows)
    return [num_rows * (index + 1) // num_shards - num_rows * index // num_shards for index in range(num_shards)]


def _write_split(
    folder: Path,
    split: str,
    sizes: list[int],
    features: datasets.Features,
    outcomes: Iterator[Outcome],
    rejected: list[Rejected],
) -> SplitInfo:
    """Write the next outcomes as the shards of a split, and what they left out to the end of `rejected`."""
    counts: Counter[str] = Counter()
    checksums = {}
    for index, size in enumerate(sizes):
        path = folder / f"{split}-{index:05d}-of-{len(sizes):05d}.parquet"
        counts += _write_shard(path, features, _kept(islice(outcomes, size), rejected))
        with path.open("rb") as file:
            checksums[path.name] = hashlib.file_digest(file, "sha256").hexdigest()
    return SplitInfo(
        rows=counts["id"],
        images={column: counts[column] for column in _image_columns(features)},
        texts=counts["text"],
        rejected=sum(entry.split == split and entry.column is None for entry in rejected),
        shards=checksums,
    )


def _image_columns(features: datasets.Features) -> list[str]:
    return [column for column, feature in features.items() if isinstance(feature, datasets.Image)]


def _kept(outcomes: Iterable[Outcome], rejected: list[Rejected]) -> Iterator[Row]:
    for row, left_out in outcomes:
        rejected += left_out
        if row is not None:
            yield row


def _write_shard(path: Path, features: datasets.Features, rows: Iterator[Row]) -> Counter[str]:
    """Write one Parquet file; return the number of non-null cells by column."""
    counts: Counter[str] = Counter()
    temporary = path.with_name(f"{path.name}.tmp")
    with pq.ParquetWriter(temporary, features.arrow_schema) as writer:
        while group := list(islice(rows, ROWS_PER_GROUP)):
            examples = [features.encode_example({column: row[column] for column in features}) for row in group]
            writer.write_table(pa.Table.from_pylist(examples, schema=features.arrow_schema))
            counts.update(column for row in group for column, cell in row.items() if cell is not None)
    os.replace(temporary, path)
    return counts


def _write_text(path: Path, text: str) -> None:
    temporary = path.with_name(f"{path.name}.tmp")
    temporary.write_text(text, encoding="utf-8")
    os.replace(temporary, path)
