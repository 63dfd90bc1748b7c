"""Whole archives as vectors: a prepared set, shard by shard, on as many machines as there are.

```
train-00000-of-00002.parquet   as the prepared set's shard: id, features; with a contrastive head also image, text
embeddings.json                model, data, rows and checksums; written last, so where it is the folder is complete
```

Shapes: B rows, D width of the model, E size of the contrastive head.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator
from itertools import chain
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import torch
from tqdm import tqdm

from m3ae.data.collate import PairCollator
from m3ae.data.pairs import Pair, PairColumns
from m3ae.data.prepared import MANIFEST, Manifest, load_manifest, shard_features
from m3ae.data.shards import shards_in
from m3ae.files import check_replaceable, file_sha256, replacing, write_text
from m3ae.inference.inputs import BATCH_SIZE, find_model, load_model, saved_class
from m3ae.inference.search import SEARCHING, Searching
from m3ae.models.decoders import ContrastiveHead
from m3ae.models.modeling import STREAMS, M3AEModel
from m3ae.models.processing import M3AEProcessor

DESCRIPTION = "embeddings.json"
_PLAN = b"m3ae_plan"  # key in the metadata of a shard
INPUTS = ("pixel_values", "input_ids", "attention_mask", "image_present", "text_present")


def embed_set(
    data: Path,
    output: Path,
    *,
    model: str,
    image_columns: str | None = None,
    text_column: str = "text",
    batch_size: int = BATCH_SIZE,
    shard_range: str | None = None,
    device: str | None = None,
) -> dict[str, Any] | None:
    """Write the vectors of every row of a prepared set: its first view with its first text, either of them missing.

    `features` (2·D) is what the fusion makes of both, the text's half first and zero for what is missing. A model with
    a contrastive head adds the unit vectors `image` and `text` (E), null for what is missing, whose products are
    cosines. A run that was interrupted continues behind the last finished shard. Several machines may share the work
    through the file system: each writes a `shard_range`, and the same call without one, when all have ended, completes
    the folder.

    Args:
        data: a prepared set.
        output: folder to write: a new or empty one, or one of just these vectors.
        model: folder of the model or of its run, or a hub name.
        image_columns: columns of images, separated by commas; by default all of them.
        text_column: column of texts, if the set has it.
        batch_size: rows at once.
        shard_range: write only these shards, counted over all splits: 0:16 for the first sixteen.
        device: such as cuda:1; a GPU if there is one, by default.

    Returns:
        What `embeddings.json` holds, or None for a `shard_range`.

    Raises:
        FileExistsError: `output` holds something else.
        FileNotFoundError: there is no such prepared set, or it lacks a shard.
        ValueError: a shard is damaged, a column is missing, the set has neither images nor texts, or there is no such
            model.
    """
    saved_class(model)  # there is one
    manifest = load_manifest(data)
    shards = {name: split for split, info in manifest.splits.items() for name in info.shards}
    own = [*shards][shards_in(shard_range)]
    columns = _columns(data, manifest, image_columns, text_column)
    plan = {
        "model_sha256": _model_digest(find_model(model)),
        "data_sha256": file_sha256(data / MANIFEST),
        "image_columns": list(columns.images),
        "text_column": next(iter(columns.texts), None),
    }
    digest = hashlib.sha256(json.dumps(plan, sort_keys=True).encode()).digest()
    check_replaceable(output / DESCRIPTION, '"model_sha256"')
    _claim(output, {f"{name}{end}" for name in (*shards, DESCRIPTION) for end in ("", ".tmp")})
    todo = [name for name in own if not _is_finished(output / name, digest)]
    if todo:
        loaded, processor = load_model(model, SEARCHING, device)
        for name in tqdm(todo, desc="embed", unit="shard"):
            _write(output / name, digest, _vectors(loaded, processor, columns, data / name, batch_size))
    if shard_range is not None:
        print(f"{output}: {len(own)} of {len(shards)} shards; once all are written, the same without a range ends it")
        return None
    files, splits = {}, dict.fromkeys(manifest.splits, 0)
    for name, split in shards.items():
        rows = pq.read_metadata(output / name).num_rows
        files[name] = {"rows": rows, "sha256": file_sha256(output / name)}
        splits[split] += rows
    if splits != (listed := {split: info.rows for split, info in manifest.splits.items()}):
        raise ValueError(f"{output} holds {splits} rows of {listed}: choose another folder")
    found = {**plan, "splits": splits, "shards": files}
    write_text(output / DESCRIPTION, json.dumps(found, indent=2) + "\n")
    return found


def _columns(data: Path, manifest: Manifest, images: str | None, text: str) -> PairColumns:
    """Return the columns that are read, and make sure that they are there."""
    info = next((info for info in manifest.splits.values() if info.shards), None)
    if info is None:
        raise ValueError(f"{data} has no rows")
    features = shard_features(pq.read_schema(data / next(iter(info.shards))))
    named = images.split(",") if images else info.images
    columns = PairColumns.of([name.strip() for name in named], text if text in features else None)
    columns.check(data, features)
    if not columns.images and not columns.texts:
        raise ValueError(f"{data} has neither a column of images nor {text!r}; it has {', '.join(features)}")
    return columns


def _model_digest(model: str) -> str:
    """Return a digest of the files of a model; of its name, if it is on the hub."""
    files = sorted(path for path in Path(model).glob("*") if path.suffix in (".json", ".safetensors"))
    parts = [f"{path.name} {file_sha256(path)}" for path in files] or [model]
    return hashlib.sha256("\n".join(parts).encode()).hexdigest()


def _claim(output: Path, ours: set[str]) -> None:
    output.mkdir(parents=True, exist_ok=True)
    if foreign := [path.name for path in output.iterdir() if path.name not in ours]:
        raise FileExistsError(f"{output} holds {foreign[0]}, which is not of this set: choose an empty or new folder")


def _is_finished(path: Path, digest: bytes) -> bool:
    """Return whether a shard is there and whole.

    Raises:
        FileExistsError: It is of another model, set or choice of columns.
    """
    if not path.is_file():
        return False
    try:
        metadata = pq.read_metadata(path).metadata or {}
    except (OSError, pa.ArrowException):
        return False  # cut short by a machine that lost its power
    if metadata.get(_PLAN) != digest.hex().encode():
        raise FileExistsError(f"{path} was made by another model, or of other data: choose another folder")
    return True


def _write(path: Path, digest: bytes, batches: Iterator[dict[str, Any]]) -> None:
    """Write a shard that appears when it is whole."""
    first = pa.table(next(batches))  # a prepared shard has rows
    schema = first.schema.with_metadata({_PLAN: digest.hex()})
    with replacing(path) as temporary, pq.ParquetWriter(temporary, schema) as writer:
        for table in chain([first], map(pa.table, batches)):
            writer.write_table(table.replace_schema_metadata(schema.metadata))


@torch.inference_mode()
def _vectors(
    model: Searching, processor: M3AEProcessor, columns: PairColumns, shard: Path, batch_size: int
) -> Iterator[dict[str, Any]]:
    """Yield the columns of a shard, some rows at a time."""
    collate = PairCollator(processor, 1, model.config.longest_text)
    trunk: M3AEModel = model.m3ae
    head: ContrastiveHead | None = getattr(model, "itc_head", None)
    for pairs in _batches(columns, shard, batch_size):
        inputs = {name: value.to(model.device) for name, value in collate(pairs).items() if name in INPUTS}
        streams = trunk.encode(**inputs)
        found: dict[str, Any] = {"id": [pair.id for pair in pairs]}
        found["features"] = _array(trunk.fuse_and_pool(streams))
        if head is not None:
            for name in STREAMS:
                missing = pa.array([getattr(pair, name) is None for pair in pairs])
                found[name] = _array(head.embed(name, streams[name]), missing)
        yield found


def _batches(columns: PairColumns, shard: Path, batch_size: int) -> Iterator[list[Pair]]:
    try:
        with pq.ParquetFile(shard) as file:
            for batch in file.iter_batches(batch_size, columns=columns.names):
                yield [columns.pair(row, 0, view=0, text=0) for row in batch.to_pylist()]
    except pa.ArrowException as error:
        raise ValueError(f"{shard} cannot be read ({error}): prepare its folder again with --overwrite") from error


def _array(vectors: torch.Tensor, missing: pa.Array | None = None) -> pa.Array:
    """Return vectors (B, E) as a column of lists of fixed length, null where they are missing."""
    flat = pa.array(vectors.float().cpu().numpy().ravel())
    return pa.FixedSizeListArray.from_arrays(flat, vectors.shape[1], mask=missing)
