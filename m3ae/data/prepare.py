"""From the rows of any source to a prepared folder (see `m3ae.data.prepared`)."""

import inspect
import json
import re
import sys
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping
from contextlib import closing, suppress
from dataclasses import asdict, dataclass, replace
from itertools import groupby, islice
from pathlib import Path
from types import ModuleType
from typing import Any

import datasets
import pyarrow.parquet as pq
from pydantic import BaseModel
from tqdm import tqdm

from m3ae.data.parallel import map_in_order, worker_count
from m3ae.data.prepared import (
    MANIFEST,
    REJECTED,
    Manifest,
    Rejected,
    SplitInfo,
    array_shape,
    image_columns,
    load_manifest,
)
from m3ae.data.rows import ROWS_PER_TASK, Outcome, Row, RowFinisher, cut_tasks, list_rows
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

    Nothing is lost silently: an unreadable image becomes null where its row has another one, and a text that is too
    short where its row has an image; other rows, and those whose id an earlier row has, are left out.
    `rejected.jsonl` lists them all. The same input gives the same bytes, whatever the number of workers, and however
    often the run was interrupted: the next run continues behind the last finished shard. Several machines may share
    the work through the file system: each writes a `shard_range`, and a last call without one completes the folder.

    Args:
        name: A key of `m3ae.data.sources.SOURCES`.
        output: folder to write: a new or empty one, or one that was prepared before.
        source: folder of the original files, for sources that have one.
        shorter_side: shrink larger images to this many pixels on their shorter side.
        keep_original: shrink nothing, and keep the very bytes of upright 8-bit JPEG and PNG files.
        quality: quality of the JPEG, 1 to 95, of images that cannot keep their bytes.
        min_words: leave out texts of fewer words.
        num_shards: shards per split; by default one per 4,096 rows.
        num_workers: processes; by default one per core.
        overwrite: replace what was prepared in `output` before.
        shard_range: write only these shards, counted over all splits: 0:16 for the first sixteen.
        **options: Options of the source's `rows`.

    Returns:
        The manifest, or None for a `shard_range`.

    Raises:
        BlockingIOError: Another process is preparing `output`.
        FileExistsError: `output` holds something else.
        FileNotFoundError: A file of the source is missing.
        ValueError: The source or an option is unknown, or the source has the wrong format.
    """
    shards = shards_in(shard_range)
    if shard_range is not None and overwrite:
        raise ValueError("shard_range with overwrite: machines would delete each other's shards; remove the folder")
    shape = {"shorter_side": shorter_side, "quality": quality, "min_words": min_words, "num_shards": num_shards}
    others = {"keep_original": keep_original, "num_workers": num_workers, "overwrite": overwrite}
    plan = _plan(name, Path(output), shape, others, options if source is None else options | {"source": source})
    if (existing := _existing(plan, overwrite)) is not None:
        print(f"{output} is prepared already and was reused; overwrite it to prepare it again", file=sys.stderr)
    elif shard_range is not None:
        _write_range(plan, shard_range, shards)
        return None
    manifest = existing or _write_folder(plan)
    print(manifest)
    return manifest


def check_recipe(recipe: Mapping[str, Any]) -> BaseModel:
    """Return the options of a set to be prepared, typed.

    Args:
        recipe: The `name` of a source, and options of `prepare` and of the source.

    Raises:
        OptionsError: A source or an option is unknown or missing, or a value has the wrong type or range.
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


@dataclass(frozen=True)
class _Plan:
    """A folder to be prepared, before any image is opened."""

    output: Path
    module: ModuleType  # of the source
    features: datasets.Features  # the columns
    arguments: dict[str, Any]  # of the source's `rows`
    manifest: Manifest  # without its counts
    rejected: list[Rejected]  # by the source
    shards: list[Shard]  # of all splits
    finisher: RowFinisher
    num_workers: int | None


def _plan(name: str, output: Path, shape: dict[str, Any], others: dict[str, Any], options: Mapping[str, Any]) -> _Plan:
    """List the rows of a source and plan their shards; `shape` and `others` do, and do not, decide the contents."""
    module = load_source(name)
    try:
        checked = check_recipe({"name": name, **shape, **others, **options})
    except OptionsError as error:
        raise ValueError(f"{name}: {'; '.join(error.problems)}") from error
    arguments = {option: getattr(checked, option) for option in inspect.signature(module.rows).parameters}
    roots = [value for value in arguments.values() if isinstance(value, Path)]
    listing = list_rows(module.rows(**arguments), roots)
    if others["keep_original"]:
        shape["shorter_side"] = None
    # No folder is recorded: folders differ between machines.
    named = {option: value.name if isinstance(value, Path) else value for option, value in arguments.items()}
    recorded = shape | {option: value for option, value in named.items() if option != "source"}
    manifest = Manifest(name, recorded, listing.digest, splits={}, rejected={}, dropped={}, metadata=listing.metadata)
    num_shards = shape.pop("num_shards")
    features = listing.features or module.FEATURES
    arrays = {name: size for name, feature in features.items() if (size := array_shape(feature))}
    return _Plan(
        output=output,
        module=module,
        features=features,
        arguments=arguments,
        manifest=manifest,
        rejected=listing.rejected,
        shards=plan_shards(listing.rows, num_shards),
        finisher=RowFinisher(image_columns(features), roots, **shape, arrays=arrays),
        num_workers=others["num_workers"],
    )


def _existing(plan: _Plan, overwrite: bool) -> Manifest | None:
    """Return the manifest of a folder that holds the planned rows already, or None if the folder may be written."""
    output, path = plan.output, plan.output / MANIFEST
    files = [*output.iterdir()] if output.exists() else []
    if any(is_progress(file) and file.suffix == ".jsonl" for file in files):
        return None
    _written(output)  # raises if the manifest is not ours
    if path.exists() and not overwrite:
        existing = load_manifest(output)
        if difference := _difference(existing, plan.manifest):
            raise FileExistsError(
                f"{output} was prepared from {difference}: pass --overwrite (overwrite=True) or choose another folder"
            )
        return existing
    if not path.exists() and any(not is_progress(file) and file.name != LOCK for file in files):
        raise FileExistsError(f"{output} is not empty and holds no {MANIFEST}: choose an empty or new folder")
    return None


def _difference(existing: Manifest, planned: Manifest) -> str:
    """Say how a prepared folder differs from the plan, or return an empty string."""
    if existing.source != planned.source:
        return f"the source {existing.source}, now {planned.source}"
    names = [*dict.fromkeys([*existing.options, *planned.options])]
    options = [(name, existing.options.get(name), planned.options.get(name)) for name in names]
    if changed := [f"{name} {before!r}, now {now!r}" for name, before, now in options if before != now]:
        return "other options: " + "; ".join(changed)
    return "" if existing.rows_sha256 == planned.rows_sha256 else "other rows than the source lists now"


def _written(output: Path) -> set[str]:
    """Return the files that the manifest of a folder lists; a damaged one may lack some, another's is an error."""
    path = output / MANIFEST
    if not path.exists():
        return set()
    with suppress(ValueError):
        manifest = load_manifest(output)
        return {*manifest.files, *(name for info in manifest.splits.values() for name in info.shards)}
    check_replaceable(path, '"source"', '"options"')
    text = path.read_text(encoding="utf-8", errors="replace")
    return {*re.findall(r'"([^"/\\]+(?:-\d{5}-of-\d{5}\.parquet|\.ids\.txt|rejected\.jsonl))"', text)}


def _write_folder(plan: _Plan) -> Manifest:
    """Write all shards that earlier runs have not finished, and what stands beside them."""
    output = plan.output
    with only_process(output):
        earlier = _written(output) | recorded_shards(output)
        finished = start_progress(output, asdict(plan.manifest))
        remove_files(output, [*(earlier - finished.keys()), MANIFEST])
        for path in output.glob("*-?????-of-?????.parquet.tmp"):  # a shard that a killed run was writing
            path.unlink()
        _write_shards(plan, plan.shards, finished, progress_file(output))
        return _complete(plan, [finished[shard.name] for shard in plan.shards])


def _write_range(plan: _Plan, shard_range: str, selected: slice) -> None:
    """Write a range of the shards, and leave alone what other machines write."""
    plan.output.mkdir(parents=True, exist_ok=True)
    finished = start_progress(plan.output, asdict(plan.manifest), shard_range)
    shards = plan.shards[selected]
    _write_shards(plan, shards, finished, progress_file(plan.output, shard_range))
    rest = "once all are written, the same without a range ends it"
    print(f"{plan.output}: {len(shards)} of {len(plan.shards)} shards; {rest}", file=sys.stderr)


def _write_shards(plan: _Plan, shards: list[Shard], finished: dict[str, FinishedShard], note: Path) -> None:
    """Write the shards that are not finished yet and add them to `finished` and to the note of finished shards."""
    todo = [shard for shard in shards if shard.name not in finished]
    tasks = (task for shard in todo for task in cut_tasks(shard.rows(), plan.finisher.image_columns))
    total, left = (sum(map(len, some)) for some in (shards, todo))
    num_workers = worker_count(left // ROWS_PER_TASK, plan.num_workers)
    try:
        with (
            closing(map_in_order(plan.finisher, tasks, num_workers)) as results,
            tqdm(total=total, initial=total - left, desc="prepare", unit="row") as bar,
        ):
            outcomes = _count(results, bar)
            for shard in todo:
                shard_outcomes = islice(outcomes, len(shard))
                finished[shard.name] = write_shard(plan.output, shard, plan.features, shard_outcomes)
                record_progress(note, finished[shard.name])
    except KeyboardInterrupt:
        done = f"interrupted after {len(finished)} of {len(shards)} shards"
        print(f"{done}: run the same again to continue", file=sys.stderr)
        raise


def _count(results: Iterable[list[Outcome]], bar: "tqdm[Any]") -> Iterator[Outcome]:
    for result in results:
        bar.update(len(result))
        yield from result


def _complete(plan: _Plan, shards: list[FinishedShard]) -> Manifest:
    """Write the files beside the shards, the manifest last."""
    output, features = plan.output, plan.features
    rejected = [*plan.rejected, *(entry for shard in shards for entry in shard.rejected)]
    by_split = {split: list(members) for split, members in groupby(shards, key=lambda shard: shard.split)}
    paths = {split: [output / shard.name for shard in members] for split, members in by_split.items()}
    contents = {
        f"{split}.ids.txt": "".join(f"{row['id']}\n" for row in _read(files, ["id"])) for split, files in paths.items()
    }
    contents[REJECTED] = "".join(entry.to_json() for entry in rejected)
    summaries = {}
    if hasattr(plan.module, "extras"):
        columns = [column for column in features if column not in image_columns(features)]
        rows = {split: _read(files, columns) for split, files in paths.items()}
        for name, content in plan.module.extras(rows, plan.arguments).items():
            contents[name] = json.dumps(content, indent=2, ensure_ascii=False) + "\n"
            if isinstance(content, dict) and "summary" in content:
                summaries[name] = content["summary"]
    for name, text in contents.items():
        write_text(output / name, text)
    manifest = replace(
        plan.manifest,
        splits={split: _split_info(split, members, features, rejected) for split, members in by_split.items()},
        rejected=dict(Counter(entry.reason for entry in rejected if entry.column is None)),
        dropped=dict(Counter(f"{entry.column}: {entry.reason}" for entry in rejected if entry.column is not None)),
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
