"""Whole archives as vectors: a prepared set or a folder of images, shard by shard, on as many machines as there are.

```
train-00000-of-00002.parquet   as the prepared set's shard: id, features; with a contrastive head also image, text
embeddings.json                model, data, rows, what was left out, checksums; written last: the folder is complete
```

The shards of a folder of images are called `all-00000-of-00002.parquet`.

Shapes: B rows, D width of the model, E size of the contrastive head.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Iterator
from contextlib import contextmanager, nullcontext
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import pyarrow as pa
import pyarrow.parquet as pq
import torch
from PIL import Image
from tqdm import tqdm

from m3ae.data.collate import TrunkCollator
from m3ae.data.prepared import MANIFEST, Manifest, load_manifest, shard_features
from m3ae.data.samples import Columns, Sample, trunk_columns
from m3ae.data.shards import ROWS_PER_SHARD, shards_in
from m3ae.files import LOCK, check_replaceable, file_sha256, only_process, replacing, write_text
from m3ae.images.files import UnreadableImageError, load_below
from m3ae.inference.collections import FolderRow, read_folder, report
from m3ae.inference.inputs import BATCH_SIZE, find_model, load_model, saved_class
from m3ae.inference.search import SEARCHING, Searching
from m3ae.models.heads import ContrastiveHead
from m3ae.models.modalities import BatchOptions, trunk_modalities
from m3ae.models.modeling import STREAMS, M3AEModel
from m3ae.models.processing import M3AEProcessor

DESCRIPTION = "embeddings.json"
_PLAN, _REJECTED = b"m3ae_plan", b"m3ae_rejected"  # keys in the metadata of a shard
Rejection = dict[str, str]


class _Shard(NamedTuple):
    """A shard to be written.

    Attributes:
        split: The split of the shard.
        rows: The number of rows.
        read: Yields batches of rows of a size; adds to a list each row of which something cannot be read.
    """

    split: str
    rows: int
    read: Callable[[int, list[Rejection]], Iterator[list[Sample]]]


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
    """Write the vectors of every row of a set: its first view with its first text, either of them missing.

    `features` (2·D) is the output of the fusion, the text's half first, zero for a missing modality. A model with a
    contrastive head adds the unit vectors `image` and `text` (E), null where missing, whose products are cosines.
    Images of a folder that cannot be read are missing, and rows with nothing left are left out; both are listed. The
    next run continues behind the last finished shard of an interrupted one. Several machines may share the work
    through the file system: each writes a `shard_range`, and a last call without one completes the folder.

    Args:
        data: A prepared set, or a folder of images as `m3ae search` takes it.
        output: The folder to write: a new or empty one, or one of just these vectors.
        model: The folder of the model or of its run, or a hub name.
        image_columns: The columns of images of a prepared set, separated by commas; by default all of them.
        text_column: The column of texts of a prepared set, if it has one.
        batch_size: The number of rows at once.
        shard_range: A range of the shards, counted over all splits, to write alone: 0:16 for the first sixteen.
        device: A device such as cuda:1; by default a GPU if there is one.

    Returns:
        The contents of `embeddings.json`, or None for a `shard_range`.

    Raises:
        BlockingIOError: Another process is writing `output`.
        FileExistsError: `output` holds something else.
        FileNotFoundError: There is no such folder, or a prepared set lacks a shard.
        ValueError: A shard is damaged, a column is missing, there are neither images nor texts, or no such model.
    """
    saved_class(model)  # an error if there is no such model
    if (data / MANIFEST).exists() or not data.is_dir():
        manifest = load_manifest(data)
        shards, rejected, source = _prepared_shards(data, manifest, image_columns, text_column)
        splits = [*manifest.splits]
    elif image_columns is not None or text_column != "text":
        raise ValueError(f"image_columns and text_column name columns of a prepared set, and {data} is none")
    else:
        (shards, rejected, source), splits = _folder_shards(data), ["all"]
    todo = [*shards][shards_in(shard_range)]
    plan = {"model_sha256": _model_digest(find_model(model)), **source}
    digest = hashlib.sha256(json.dumps(plan, sort_keys=True).encode()).hexdigest()
    _claim(output, [*shards])
    with only_process(output) if shard_range is None else nullcontext():
        if unfinished := [name for name in todo if not _is_finished(output / name, digest)]:
            loaded, processor = load_model(model, SEARCHING, device)
            for name in tqdm(unfinished, desc="embed", unit="shard"):
                _write(output / name, digest, loaded, processor, partial(shards[name].read, batch_size))
        if shard_range is None:
            return _complete(output, plan, splits, shards, rejected)
    print(f"{output}: {len(todo)} of {len(shards)} shards; once all are written, the same without a range ends it")
    return None


def _complete(
    output: Path, plan: dict[str, Any], splits: list[str], shards: dict[str, _Shard], rejected: list[Rejection]
) -> dict[str, Any]:
    """Write and return the contents of `embeddings.json`."""
    rows, files = dict.fromkeys(splits, 0), {}
    for name, shard in shards.items():
        metadata = pq.read_metadata(output / name)
        lost: list[Rejection] = json.loads(metadata.metadata.get(_REJECTED, b"[]"))
        if metadata.num_rows + sum("column" not in row for row in lost) != shard.rows:
            raise ValueError(f"{output / name} holds {metadata.num_rows} rows of {shard.rows}: choose another folder")
        files[name] = {"rows": metadata.num_rows, "sha256": file_sha256(output / name)}
        rows[shard.split] += metadata.num_rows
        rejected = rejected + lost
    description = {**plan, "splits": rows, "shards": files, "rejected": rejected}
    write_text(output / DESCRIPTION, json.dumps(description, indent=2, ensure_ascii=False) + "\n")
    return description


def _prepared_shards(
    data: Path, manifest: Manifest, images: str | None, text: str
) -> tuple[dict[str, _Shard], list[Rejection], dict[str, Any]]:
    """Return the shards of a prepared set by name, no rejected rows, and the facts that decide the contents."""
    columns = _columns(data, manifest, images, text)
    shards = {
        name: _Shard(split, _num_rows(data / name), partial(_stored_rows, columns, data / name))
        for split, info in manifest.splits.items()
        for name in info.shards
    }
    rows, listed = (sum(item.rows for item in items.values()) for items in (shards, manifest.splits))
    if rows != listed:
        raise ValueError(f"the shards of {data} hold {rows} rows of {listed}: prepare it again with --overwrite")
    source = {
        "data_sha256": file_sha256(data / MANIFEST),
        "image_columns": list(columns.columns["image"]),
        "text_column": next(iter(columns.text_columns), None),
    }
    return shards, [], source


def _folder_shards(data: Path) -> tuple[dict[str, _Shard], list[Rejection], dict[str, Any]]:
    """Return the shards of a folder of images by name, rejected rows, and the facts that decide the contents."""
    rows, lost, digest = read_folder(data)
    if not rows:
        raise ValueError(f"{data} has no rows")
    chunks = [rows[start : start + ROWS_PER_SHARD] for start in range(0, len(rows), ROWS_PER_SHARD)]
    shards = {
        f"all-{number:05d}-of-{len(chunks):05d}.parquet": _Shard("all", len(chunk), partial(_folder_rows, data, chunk))
        for number, chunk in enumerate(chunks)
    }
    rejected = [{"id": row.id, "reason": row.reason, "detail": row.detail or ""} for row in lost]
    return shards, rejected, {"data_sha256": digest}


def _columns(data: Path, manifest: Manifest, images: str | None, text: str) -> Columns:
    """Return the columns that are read, and make sure that the set has them."""
    info = next((info for info in manifest.splits.values() if info.shards), None)
    if info is None:
        raise ValueError(f"{data} has no rows")
    features = shard_features(pq.read_schema(data / next(iter(info.shards))))
    named = images.split(",") if images else info.images
    columns = trunk_columns([name.strip() for name in named], text if text in features else None)
    columns.check(data, features)
    if columns.names == ["id"]:
        raise ValueError(f"{data} has neither a column of images nor {text!r}; it has {', '.join(features)}")
    return columns


def _model_digest(model: str) -> str:
    """Return a digest of the files of a model; of its name, if it is on the hub."""
    files = sorted(path for path in Path(model).glob("*") if path.suffix in (".json", ".safetensors"))
    lines = [f"{path.name} {file_sha256(path)}" for path in files] or [model]
    return hashlib.sha256("\n".join(lines).encode()).hexdigest()


def _claim(output: Path, shards: list[str]) -> None:
    """Make the folder; raise FileExistsError if it holds anything but these shards."""
    check_replaceable(output / DESCRIPTION, '"model_sha256"')
    ours = {LOCK, *(f"{name}{end}" for name in (*shards, DESCRIPTION) for end in ("", ".tmp"))}
    output.mkdir(parents=True, exist_ok=True)
    if foreign := [path.name for path in output.iterdir() if path.name not in ours]:
        raise FileExistsError(f"{output} holds {foreign[0]}, which is not of this set: choose an empty or new folder")


def _is_finished(path: Path, digest: str) -> bool:
    """Return whether a shard is complete and undamaged.

    Raises:
        FileExistsError: It is of another model, set or choice of columns.
    """
    if not path.is_file():
        return False
    try:
        with pq.ParquetFile(path, page_checksum_verification=True) as file:
            plan = (file.metadata.metadata or {}).get(_PLAN, b"").decode()
            for _ in file.iter_batches() if plan == digest else ():
                pass
    except (OSError, ValueError, pa.ArrowException):
        return False  # cut short by a machine that lost its power, or damaged later
    if plan != digest:
        raise FileExistsError(f"{path} was made by another model, or of other data: choose another folder")
    return True


@torch.inference_mode()
def _write(
    path: Path,
    digest: str,
    model: Searching,
    processor: M3AEProcessor,
    read: Callable[[list[Rejection]], Iterator[list[Sample]]],
) -> None:
    """Write a shard that appears when it is whole."""
    options = BatchOptions(processor.tokenizer, model.config.longest_text)
    collator = TrunkCollator(trunk_modalities(model.config), options)
    trunk: M3AEModel = model.m3ae
    head: ContrastiveHead | None = model.itc_head
    sizes = {"features": 2 * model.config.hidden_size} | dict.fromkeys(STREAMS if head else (), model.config.itc_size)
    fields = [pa.field("id", pa.string()), *(pa.field(name, pa.list_(pa.float32(), sizes[name])) for name in sizes)]
    rejected: list[Rejection] = []
    with (
        replacing(path) as temporary,
        pq.ParquetWriter(temporary, schema := pa.schema(fields), write_page_checksum=True) as writer,
    ):
        for samples in filter(None, read(rejected)):
            inputs = {name: value.to(model.device) for name, value in collator.inputs(samples).items()}
            inputs.pop("special_tokens_mask")
            streams = trunk.encode(**inputs)
            columns: dict[str, Any] = {"id": [sample.id for sample in samples]}
            columns["features"] = _array(trunk.fuse_and_pool(streams))
            if head is not None:
                for name in STREAMS:
                    missing = pa.array([sample.cells[name] is None for sample in samples])
                    columns[name] = _array(head.embed(name, streams[name]), missing)
            writer.write_table(pa.table(columns, schema=schema))
        writer.add_key_value_metadata({_PLAN: digest, _REJECTED: json.dumps(rejected)})


@contextmanager
def _open_shard(shard: Path) -> Iterator[pq.ParquetFile]:
    try:
        with pq.ParquetFile(shard) as file:
            yield file
    except pa.ArrowException as error:
        raise ValueError(f"{shard} cannot be read ({error}): prepare its folder again with --overwrite") from error


def _stored_rows(columns: Columns, shard: Path, batch_size: int, rejected: list[Rejection]) -> Iterator[list[Sample]]:
    with _open_shard(shard) as file:
        for batch in file.iter_batches(batch_size, columns=columns.names):
            yield [columns.sample(row, seed=0) for row in batch.to_pylist()]


def _folder_rows(
    folder: Path, rows: list[FolderRow], batch_size: int, rejected: list[Rejection]
) -> Iterator[list[Sample]]:
    for start in range(0, len(rows), batch_size):
        samples = []
        for row in rows[start : start + batch_size]:
            image: Image.Image | None = None
            text = next(iter(row.texts), None)
            try:
                image = None if row.image is None else load_below(row.image, [folder], str(row.image))
            except UnreadableImageError as error:
                report(error)
                column = {} if text is None else {"column": "image"}  # a cell of a row that stays
                rejected.append({"id": row.id, "reason": error.reason, "detail": error.detail, **column})
            if image is not None or text is not None:
                samples.append(Sample(row.id, {"image": image, "text": text}))
        yield samples


def _num_rows(shard: Path) -> int:
    with _open_shard(shard) as file:
        return int(file.metadata.num_rows)


def _array(vectors: torch.Tensor, missing: pa.Array | None = None) -> pa.Array:
    """Return vectors (B, E) as a column of lists of fixed length, null where they are missing."""
    flat = pa.array(vectors.float().cpu().numpy().ravel())
    return pa.FixedSizeListArray.from_arrays(flat, vectors.shape[1], mask=missing)
