"""One path from the rows of any source to a prepared folder (see `m3ae.data.prepared`)."""

import inspect
import json
import re
import sys
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping
from contextlib import closing, nullcontext, suppress
from dataclasses import asdict, replace
from itertools import groupby, islice
from pathlib import Path
from types import ModuleType
from typing import Any

import datasets
import pyarrow.parquet as pq
from pydantic import BaseModel
from tqdm import tqdm

from m3ae.data.finish import Outcome, Row, RowFinisher, cut_tasks
from m3ae.data.listing import list_rows
from m3ae.data.parallel import map_in_order
from m3ae.data.prepared import MANIFEST, REJECTED, Manifest, Rejected, SplitInfo, image_columns, load_manifest
from m3ae.data.shards import (
    UNFINISHED,
    FinishedShard,
    Shard,
    is_progress,
    plan_shards,
    progress_file,
    record_progress,
    recorded_shards,
    shards_in,
    start_progress,
    write_shard,
)
from m3ae.data.sources import SOURCES, load_source
from m3ae.files import LOCK, check_replaceable, file_sha256, only_process, remove_files, write_text
from m3ae.options import OptionsError, check_options, describe, function_options

RANGES = {
    "shorter_side": (1, sys.maxsize),
    "quality": (1, 95),
    "num_shards": (1, sys.maxsize),
    "num_workers": (1, sys.maxsize),
}


def prepare(
    name: str,
    output: str | Path,
    *,
    source: str | Path | None = None,
    shorter_side: int = 384,
    keep_original: bool = False,
    quality: int = 95,
    min_words: int = 3,
    num_shards: int | None = None,
    num_workers: int | None = None,
    overwrite: bool = False,
    shard_range: str | None = None,
    **options: Any,
) -> Manifest | None:
    """Prepare a source into a folder and print a summary; a folder that already holds just this is reused.

    Nothing is lost silently: an unreadable image becomes null where the row has another one, too short a text where it
    has an image; otherwise the row is left out, as is one whose id was there before; `rejected.jsonl` lists them all.
    The same input gives the same bytes, whatever the number of workers, and however often the run was interrupted: it
    continues behind the last finished shard. Several machines may share the work through the file system: each writes
    a `shard_range`, and the same call without one, when all have ended, completes the folder.

    Args:
        name: a key of `m3ae.data.sources.SOURCES`.
        output: folder to write: a new or empty one, or one that was prepared before.
        source: folder of the original files, for sources that have one.
        shorter_side: shrink larger images to this many pixels on their shorter side.
        keep_original: shrink nothing, and keep the very bytes of upright 8-bit JPEG and PNG files.
        quality: of the JPEG that images are stored as where they cannot keep their bytes, 1 to 95.
        min_words: leave out texts of fewer words.
        num_shards: shards per split; by default one per 4,096 rows.
        num_workers: processes; by default one per core.
        overwrite: replace what was prepared in `output` before.
        shard_range: write only these shards, counted over all splits: 0:16 for the first sixteen.
        **options: passed on to the source's `rows`.

    Returns:
        The manifest, or None for a `shard_range`.

    Raises:
        BlockingIOError: another process is preparing `output`.
        FileExistsError: `output` holds something else.
        FileNotFoundError: a part of the source is missing.
        ValueError: unknown source or option, or a source in the wrong format.
    """
    shape: dict[str, Any] = {"shorter_side": shorter_side, "quality": quality, "min_words": min_words}
    common = shape | {"num_shards": num_shards, "num_workers": num_workers, "keep_original": keep_original}
    origin = {} if source is None else {"source": source}
    arguments = _bind(name, common | {"overwrite": overwrite} | origin | options)
    part = shards_in(shard_range)
    if shard_range is not None and overwrite:
        raise ValueError("shard_range with overwrite: machines would delete each other's shards; remove the folder")
    module, output = load_source(name), Path(output)
    roots = [value for value in arguments.values() if isinstance(value, Path)]
    listing = list_rows(module.rows(**arguments), roots)
    shape["shorter_side"] = None if keep_original else shorter_side
    recorded = shape | {"num_shards": num_shards} | _recorded(arguments)
    planned = Manifest(name, recorded, listing.digest, splits={}, rejected={}, dropped={}, metadata=listing.metadata)
    if (existing := _existing(output, planned, overwrite)) is not None:
        print(f"{output} is prepared already and was reused; overwrite it to prepare it again", file=sys.stderr)
        print(existing)
        return existing

    shards = plan_shards(listing.rows, num_shards)
    own = shards[part]
    finisher = RowFinisher(image_columns(module.FEATURES), roots, **shape)
    with only_process(output) if shard_range is None else nullcontext():
        finished = _claim(output, planned) if shard_range is None else _claim_part(output, planned, shard_range)
        progress = progress_file(output, shard_range)
        try:
            _write_shards(output, progress, own, finished, module.FEATURES, finisher, num_workers)
        except KeyboardInterrupt:
            done = f"interrupted after {len(finished)} of {len(own)} shards"
            print(f"{done}: run the same again to continue", file=sys.stderr)
            raise
        if shard_range is not None:
            rest = "once all are written, the same without a range ends it"
            print(f"{output}: {len(own)} of {len(shards)} shards; {rest}", file=sys.stderr)
            return None
        written = [finished[shard.name] for shard in shards]
        manifest = _complete(output, planned, module, arguments, written, listing.rejected)
    print(manifest)
    return manifest


def check_recipe(recipe: Mapping[str, Any]) -> BaseModel:
    """Return what a configuration says about a set to be prepared: the `name` of a source and its options, typed.

    Raises:
        OptionsError: There is no such source or option, one is missing, or a value has the wrong type or range.
    """
    name, options = recipe.get("name"), {key: value for key, value in recipe.items() if key != "name"}
    if not isinstance(name, str) or name not in SOURCES:
        raise OptionsError([f"name: got {describe(name)}, expected one of {', '.join(SOURCES)}"])
    decided = ("name", "output", "source", "shard_range", "options")
    common = function_options(prepare, skip=decided)
    model = check_options(function_options(load_source(name).rows, base=common), options)
    for option, (smallest, largest) in RANGES.items():
        value = getattr(model, option)
        if value is not None and not smallest <= value <= largest:
            raise OptionsError([f"{option}: got {value}, expected {smallest} to {largest}"])
    return model


def _bind(name: str, options: dict[str, Any]) -> dict[str, Any]:
    """Return the arguments of a source's `rows`, defaults included."""
    rows = load_source(name).rows
    try:
        model = check_recipe({"name": name, **options})
    except OptionsError as error:
        raise ValueError(f"{name}: {'; '.join(error.problems)}") from error
    return {option: getattr(model, option) for option in inspect.signature(rows).parameters}


def _recorded(arguments: dict[str, Any]) -> dict[str, Any]:
    """Return the options of a source as the manifest has them: no folders, which differ between machines."""
    named = {option: value.name if isinstance(value, Path) else value for option, value in arguments.items()}
    return {option: value for option, value in named.items() if option != "source"}


def _existing(output: Path, planned: Manifest, overwrite: bool) -> Manifest | None:
    """Return the manifest of a folder that already holds what is planned, or None if it may be written.

    Raises:
        FileExistsError: it may not.
    """
    if output.exists() and any(map(is_progress, output.glob("*.jsonl"))):
        return None
    _written(output)  # raises if the manifest is that of something else
    if (output / MANIFEST).exists() and not overwrite:
        existing = load_manifest(output)
        if difference := _difference(existing, planned):
            raise FileExistsError(
                f"{output} was prepared from {difference}: pass --overwrite (overwrite=True) or choose another folder"
            )
        return existing
    foreign = output.exists() and not all(is_progress(path) or path.name == LOCK for path in output.iterdir())
    if foreign and not (output / MANIFEST).exists():
        raise FileExistsError(f"{output} is not empty and holds no {MANIFEST}: choose an empty or new folder")
    return None


def _difference(existing: Manifest, planned: Manifest) -> str:
    """Say in what a prepared folder differs from what is planned, or return an empty string."""
    if existing.source != planned.source:
        return f"the source {existing.source}, now {planned.source}"
    names = [*dict.fromkeys([*existing.options, *planned.options])]
    options = [(name, existing.options.get(name), planned.options.get(name)) for name in names]
    if changed := [f"{name} {before!r}, now {now!r}" for name, before, now in options if before != now]:
        return "other options: " + "; ".join(changed)
    return "" if existing.rows_sha256 == planned.rows_sha256 else "other rows than the source lists now"


def _claim(output: Path, planned: Manifest) -> dict[str, FinishedShard]:
    """Make a folder ready to be written, and return the shards that an interrupted run finished, by name."""
    output.mkdir(parents=True, exist_ok=True)
    earlier = _written(output) | recorded_shards(output)
    finished = start_progress(output, asdict(planned))
    remove_files(output, [*(earlier - finished.keys()), MANIFEST])
    for path in output.glob("*-?????-of-?????.parquet.tmp"):  # a shard that a run was writing when it was killed
        path.unlink()
    return finished


def _written(output: Path) -> set[str]:
    """Return the names of the files that the manifest of a folder lists, without those of a damaged one that are lost.

    Raises:
        FileExistsError: it is the manifest of something else.
    """
    path = output / MANIFEST
    if not path.exists():
        return set()
    with suppress(ValueError):
        manifest = load_manifest(output)
        return {*manifest.files, *(name for info in manifest.splits.values() for name in info.shards)}
    check_replaceable(path, '"source"', '"options"')
    text = path.read_text(encoding="utf-8", errors="replace")
    return {*re.findall(r'"([^"/\\]+(?:-\d{5}-of-\d{5}\.parquet|\.ids\.txt|rejected\.jsonl))"', text)}


def _claim_part(output: Path, planned: Manifest, shard_range: str) -> dict[str, FinishedShard]:
    """Like `_claim`, and leave alone what other machines write."""
    output.mkdir(parents=True, exist_ok=True)
    return start_progress(output, asdict(planned), shard_range)


def _write_shards(
    output: Path,
    progress: Path,
    shards: list[Shard],
    finished: dict[str, FinishedShard],
    features: datasets.Features,
    finisher: RowFinisher,
    num_workers: int | None,
) -> None:
    """Write the shards that are not finished yet and add them to those that are."""
    todo = [shard for shard in shards if shard.name not in finished]
    tasks = [task for shard in todo for task in cut_tasks(shard.rows, finisher.image_columns)]
    total = sum(len(shard.rows) for shard in shards)
    initial = sum(len(shard.rows) for shard in shards if shard.name in finished)
    with (
        closing(map_in_order(finisher, tasks, num_workers)) as results,
        tqdm(total=total, initial=initial, desc="prepare", unit="row") as bar,
    ):
        outcomes = _count(results, bar)
        for shard in todo:
            part = islice(outcomes, len(shard.rows))
            finished[shard.name] = write_shard(output, shard, features, part)
            record_progress(progress, finished[shard.name])


def _count(results: Iterable[list[Outcome]], bar: "tqdm[Any]") -> Iterator[Outcome]:
    for result in results:
        bar.update(len(result))
        yield from result


def _complete(
    output: Path,
    planned: Manifest,
    module: ModuleType,
    arguments: Mapping[str, Any],
    shards: list[FinishedShard],
    rejected: list[Rejected],
) -> Manifest:
    """Write what stands beside the shards, the manifest last."""
    rejected = [*rejected, *(entry for shard in shards for entry in shard.rejected)]
    by_split = {split: list(part) for split, part in groupby(shards, key=lambda shard: shard.split)}
    paths = {split: [output / shard.name for shard in part] for split, part in by_split.items()}
    contents = {
        f"{split}.ids.txt": "".join(f"{row['id']}\n" for row in _read(own, ["id"])) for split, own in paths.items()
    }
    contents[REJECTED] = "".join(entry.to_json() for entry in rejected)
    summaries = {}
    if hasattr(module, "extras"):
        columns = [column for column in module.FEATURES if column not in image_columns(module.FEATURES)]
        rows = {split: _read(own, columns) for split, own in paths.items()}
        for name, content in module.extras(rows, arguments).items():
            contents[name] = json.dumps(content, indent=2, ensure_ascii=False) + "\n"
            if isinstance(content, dict) and "summary" in content:
                summaries[name] = content["summary"]
    for name, content in contents.items():
        write_text(output / name, content)

    lost_rows = Counter(entry.reason for entry in rejected if entry.column is None)
    lost_cells = Counter(f"{entry.column}: {entry.reason}" for entry in rejected if entry.column is not None)
    manifest = replace(
        planned,
        splits={split: _split_info(split, part, module.FEATURES, rejected) for split, part in by_split.items()},
        rejected=dict(lost_rows),
        dropped=dict(lost_cells),
        files={name: file_sha256(output / name) for name in contents},
        summaries=summaries,
    )
    write_text(output / MANIFEST, manifest.to_json())
    (output / UNFINISHED).unlink()
    return manifest


def _split_info(
    split: str, shards: list[FinishedShard], features: datasets.Features, rejected: list[Rejected]
) -> SplitInfo:
    counts = sum((Counter(shard.counts) for shard in shards), Counter())
    return SplitInfo(
        rows=counts["id"],
        images={column: counts[column] for column in image_columns(features)},
        texts=counts["text"] if "text" in features else None,
        rejected=sum(entry.split == split and entry.column is None for entry in rejected),
        shards={shard.name: shard.sha256 for shard in shards},
    )


def _read(shards: list[Path], columns: list[str]) -> list[Row]:
    return [row for shard in shards for row in pq.read_table(shard, columns=columns).to_pylist()]
