"""The data of a pre-training run: prepared where the config says how, read by index or as a stream."""

from __future__ import annotations

from m3ae.data.check import refuse_leaks
from m3ae.data.collate import PairCollator
from m3ae.data.mixing import MixedPairs
from m3ae.data.pairs import PairColumns, PairDataset
from m3ae.data.prepare import prepare
from m3ae.data.streaming import PairStream, StreamedSet
from m3ae.models.configuration import M3AEConfig, M3AEImageConfig
from m3ae.models.processing import M3AEProcessor
from m3ae.training.config import DataConfig, RunConfig
from m3ae.training.engine import process_state


def prepare_sets(data: DataConfig) -> None:
    """Prepare the sets for which the config says how, in one process of each machine."""
    recipes = [(part.path, part.prepare) for part in (data, *data.also) if part.prepare is not None]
    if not recipes:
        return
    state = process_state()
    if state.is_local_main_process:
        for path, recipe in recipes:
            prepare(output=path, **recipe)
    state.wait_for_everyone()


def refuse_test_rows(data: DataConfig) -> None:
    """Make sure that no training image is in a known validation or test split, unless the config allows it.

    Raises:
        FileNotFoundError: A prepared folder is missing.
        ValueError: There is such an image (see `m3ae.data.check.refuse_leaks`).
    """
    if data.allow_test_rows:
        return
    with process_state().local_main_process_first():  # it leaves the fingerprints for the others
        refuse_leaks([part.path for part in (data, *data.also)], data.held_out)


def training_pairs(config: RunConfig) -> MixedPairs | PairStream:
    """Open the training split of all sets.

    Raises:
        FileNotFoundError: A prepared folder is missing.
        ValueError: A set has no training rows or not the columns that the config names.
    """
    data, seed = config.data, config.training.seed
    parts = [data, *data.also]
    if data.streaming:
        columns = [PairColumns.of(part.image_columns, part.text_column) for part in parts]
        sets = [StreamedSet(part.path, read, part.weight) for part, read in zip(parts, columns, strict=True)]
        return PairStream(sets, seed, data.texts, data.max_unreadable_shards)
    datasets = [
        PairDataset(part.path, "train", part.image_columns, part.text_column, texts=data.texts) for part in parts
    ]
    return MixedPairs(datasets, [part.weight for part in parts], seed)


def evaluation_pairs(config: RunConfig, split: str) -> PairDataset:
    """Open a split of the main set."""
    data = config.data
    limit = data.max_validation_samples if split == "validation" else None
    return PairDataset(data.path, split, data.image_columns, data.text_column, limit)


def collator(config: RunConfig, model_config: M3AEConfig, processor: M3AEProcessor, *, training: bool) -> PairCollator:
    """Build what makes batches: with the augmentations of the config in training, with centre crops otherwise."""
    assert isinstance(model_config.image_config, M3AEImageConfig)
    return PairCollator(
        processor,
        model_config.image_config.num_patches,
        config.data.max_text_length,
        augmentation=config.data.augmentation if training else "crop",
        crop_scale=config.data.crop_scale if training else (1.0, 1.0),
        whole_words=model_config.whole_word_masking,
    )
