"""The data of a run: prepared where the config says how, checked first, read by index or as a stream."""

from __future__ import annotations

from collections.abc import Collection, Iterable, Iterator, Sequence
from contextlib import suppress
from dataclasses import replace
from pathlib import Path
from typing import Any, TypeVar

import pyarrow as pa
import pyarrow.parquet as pq

from m3ae.data.collate import TrunkCollator
from m3ae.data.leaks import find_leaking_rows, refuse_leaks
from m3ae.data.prepare import prepare
from m3ae.data.prepared import load_manifest
from m3ae.data.samples import Columns, SampleDataset, Texts, trunk_columns
from m3ae.data.sets import MixedDataset, SampleStream, StreamedSet
from m3ae.models.configuration import M3AEConfig
from m3ae.models.modalities import BatchOptions, trunk_modalities
from m3ae.models.processing import M3AEProcessor
from m3ae.tasks.models import check_model
from m3ae.training.config import FineTuningRun, PreTrainingRun, RunConfig
from m3ae.training.engine import process_state
from m3ae.training.sections import DataConfig, MixedDataConfig, PairDataConfig
from m3ae.training.task import Task

TaskT = TypeVar("TaskT", bound=Task[Any])


def open_data(config: RunConfig, *, for_training: bool) -> None:
    """Prepare the data of a run, and make sure that model and data can be opened, trained on or measured.

    Raises:
        FileNotFoundError: The prepared folder is missing and the config does not say how to make it.
        ValueError: The model or a split is missing, a split is empty, or a training image is in a held-out split.
    """
    check_model(config)
    prepare_sets(config.data)
    if not for_training:
        check_splits(config, needed=())
        return
    measured = ["test"] if isinstance(config, FineTuningRun) else []
    check_splits(config, needed=["train", *(["validation"] if config.training.validate_every else measured)])
    refuse_test_rows(config.data)


def check_used_splits(task: TaskT) -> TaskT:
    """Make sure, before the first step, that all splits can be used that the run will use."""
    for split in filter(task.has, ("train", "validation", "test")):
        task.check(split)
    return task


def prepare_sets(data: DataConfig) -> None:
    """Prepare the sets for which the config says how, in one process of each machine."""
    recipes = [(prepared.path, prepared.prepare) for prepared in data.sets if prepared.prepare is not None]
    if not recipes:
        return
    state = process_state()
    if state.is_local_main_process:
        for path, recipe in recipes:
            prepare(output=path, **recipe)
    state.wait_for_everyone()


def check_splits(config: RunConfig, needed: Collection[str]) -> None:
    """Make sure that a prepared set has the splits without which a run cannot end, and that none is empty."""
    path, every, splits = config.data.path, config.training.validate_every, load_manifest(config.data.path).splits
    for split in needed:
        if split not in splits:
            reason = {
                "train": "the model learns from it",
                "validation": f"training.validate_every={every} measures the model on it and keeps the best; "
                "training.validate_every=null trains without",
                "test": "with training.validate_every=null, the last model is measured on it",
            }[split]
            raise ValueError(
                f"{path} has no split {split!r}: {reason}. It has {', '.join(splits) or 'none'}; m3ae prepare makes "
                "such a split of rows that the source assigns to it, or of some of those that it assigns to none."
            )
    for split in ("train", "validation", "test"):
        if split in splits and not splits[split].rows:
            raise ValueError(
                f"split {split!r} of {path} is empty: all its {splits[split].rejected} rows are in rejected.jsonl. "
                "Repair the source and prepare it again."
            )


def is_filled(folder: Path, split: str, columns: Iterable[str]) -> bool:
    """Return whether a row of a split has something in one of the columns; reads up to the first such row."""
    for name in load_manifest(folder).splits[split].shards:
        with suppress(OSError, pa.ArrowException), pq.ParquetFile(folder / name) as file:  # found when it is read
            chosen = [column for column in columns if column in file.schema_arrow.names]
            for batch in file.iter_batches(256, columns=chosen):
                if any(cell not in (None, "", []) for row in batch.to_pylist() for cell in row.values()):
                    return True
    return False


def read_column(folders: Iterable[Path], split: str, column: str) -> Iterator[Any]:
    """Yield the cells of a column of one or several sets, shard by shard."""
    for folder in folders:
        for name in load_manifest(folder).splits[split].shards:
            with suppress(OSError, pa.ArrowException):  # found when it is read
                yield from pq.read_table(folder / name, columns=[column])[column].to_pylist()


def refuse_test_rows(data: DataConfig) -> None:
    """Make sure that no training image is in a known validation or test split, unless the config allows it.

    Raises:
        FileNotFoundError: A prepared folder is missing.
        ValueError: There is such an image (see `m3ae.data.leaks.refuse_leaks`).
    """
    if data.allow_test_rows or (isinstance(data, MixedDataConfig) and data.leave_out_test_rows):
        return
    with process_state().local_main_process_first():  # it leaves the fingerprints for the others
        refuse_leaks([prepared.path for prepared in data.sets], data.held_out)


def rows_left_out(data: MixedDataConfig) -> dict[Path, frozenset[str]]:
    """Return the ids of the training rows that the config leaves out, by folder.

    Raises:
        FileNotFoundError: A prepared folder is missing.
        ValueError: No row of a set is kept.
    """
    paths = [prepared.path for prepared in data.sets]
    if not data.leave_out_test_rows:
        return dict.fromkeys(paths, frozenset())
    with process_state().local_main_process_first():  # it leaves the fingerprints for the others
        leaking = find_leaking_rows(paths, data.held_out)
    for path, ids in leaking.items():
        rows = load_manifest(path).splits["train"].rows
        if len(ids) == rows:
            raise ValueError(f"all {rows} training rows of {path} show images of held-out splits: leave out the set")
        if ids:
            process_state().print(f"{path}: {len(ids):,} of {rows:,} rows show images of held-out splits: left out")
    return {path: frozenset(ids) for path, ids in leaking.items()}


def training_samples(
    data: MixedDataConfig, columns: Sequence[Columns], seed: int, texts: Texts = "one"
) -> MixedDataset | SampleStream:
    """Open the training split of all sets, by index or as a stream.

    Args:
        data: Section of the configuration.
        columns: What is read of each of `data.sets`.
        seed: Decides the order of the samples.
        texts: Whether a visit draws `one` text of a row, or an epoch visits a row with `all` its texts.

    Raises:
        FileNotFoundError: A prepared folder is missing.
        ValueError: A set has no training rows or not the columns that the config names, or none of its rows is kept.
    """
    sets, left_out = [*zip(data.sets, columns, strict=True)], rows_left_out(data)
    if data.streaming:
        streamed = [StreamedSet(rows.path, read, rows.weight, left_out[rows.path]) for rows, read in sets]
        return SampleStream(streamed, seed, texts, data.max_unreadable_shards)
    indexed = [
        SampleDataset(rows.path, "train", read, texts=texts, left_out=left_out[rows.path]) for rows, read in sets
    ]
    return MixedDataset(indexed, [rows.weight for rows in data.sets], seed)


def training_pairs(config: PreTrainingRun) -> MixedDataset | SampleStream:
    """Open the images and texts of all sets of pre-training, see `training_samples`."""
    data = config.data
    columns = [trunk_columns(rows.image_columns, rows.text_column, data.view_names) for rows in data.sets]
    return training_samples(data, columns, config.training.seed, data.texts)


def evaluation_samples(config: PreTrainingRun, split: str) -> SampleDataset:
    """Open a split of the main set."""
    data = config.data
    limit = data.max_validation_samples if split == "validation" else None
    columns = trunk_columns(data.image_columns, data.text_column, data.view_names)
    return SampleDataset(data.path, split, columns, limit=limit)


def trunk_collator(
    data: PairDataConfig, model_config: M3AEConfig, processor: M3AEProcessor, *, training: bool
) -> TrunkCollator:
    """Build what makes batches: training has the config's augmentations and missing modalities, else centre crops."""
    options = BatchOptions(processor.tokenizer, data.max_text_length, word_ids=model_config.whole_word_masking)
    if training:
        options = replace(options, augmentation=data.augmentation, crop_scale=data.crop_scale)
    rate = data.missing_rate if training else 0.0
    return TrunkCollator(trunk_modalities(model_config, data.view_names), options, missing_rate=rate)
