"""Whole archives as vectors: a prepared set, a folder or a table, shard by shard, on as many machines as there are.

```
train-00000-of-00002.parquet   as the prepared set's shard: id, labels if there are any, features; with a contrastive
                               head also image, text
embeddings.json                model, data, rows, what was left out, checksums; written last: the folder is complete
```

The shards of a folder or a table are called `all-00000-of-00002.parquet`.

Shapes: B rows, D width of the model, E size of the contrastive head.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, nullcontext
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import pyarrow as pa
import pyarrow.parquet as pq
import torch
from tqdm import tqdm

from m3ae.data.collate import TrunkCollator
from m3ae.data.prepared import MANIFEST, Manifest, load_manifest, shard_features, typed_rows
from m3ae.data.samples import Columns, Sample, column_types, trunk_columns
from m3ae.data.shards import ROWS_PER_SHARD, shards_in
from m3ae.files import LOCK, check_replaceable, file_sha256, only_process, replacing, write_text
from m3ae.images.files import UnreadableImageError
from m3ae.inference.inputs import BATCH_SIZE, find_model, load_model, model_digest, saved_config
from m3ae.inference.rows import Row, is_prepared, read_folder, report
from m3ae.inference.search import SEARCHING
from m3ae.models.finetuned import M3AEForClassification, M3AEForQuestionAnswering
from m3ae.models.modalities import BatchOptions, trunk_modalities
from m3ae.models.modeling import STREAMS, M3AEModel, M3AEPreTrainedModel
from m3ae.models.processing import M3AEProcessor
from m3ae.models.reports import M3AEForReportGeneration

EMBEDDING = (*SEARCHING, M3AEForClassification, M3AEForQuestionAnswering, M3AEForReportGeneration, M3AEModel)
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


class _Source(NamedTuple):
    """What is embedded.

    Attributes:
        shards: The shards by name.
        rejected: The rows that are known to be unusable.
        facts: The facts that decide the contents of the shards.
        views: The views of the model that the rows have; none for one image a row.
        labelled: Whether the rows have labels.
    """

    shards: dict[str, _Shard]
    rejected: list[Rejection]
    facts: dict[str, Any]
    views: Sequence[str]
    labelled: bool


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
    """Write the vectors of every row of a set: of its image with its first text. A row may lack one of them.

    A model of several views reads those that a row has; any other one reads the first image. `features` (2·D) is the
    output of the fusion, the text's half first, zero for a missing modality. A model with a contrastive head adds the
    unit vectors `image` and `text` (E), null where missing, whose products are cosines. A fine-tuned model gives the
    features that its head reads: those of a classifier of images are zero for a row without an image.

    Images of a folder that cannot be read are missing, and rows with nothing left are left out; both are listed. The
    next run continues behind the last finished shard of an interrupted one. Several machines may share the work
    through the file system: each writes a `shard_range`, and a last call without one completes the folder.

    Args:
        data: A prepared set, or a folder of images or a table as `m3ae search` takes it.
        output: The folder to write: a new or empty one, or one of just these vectors.
        model: The folder of the model or of its run, or a hub name.
        image_columns: The columns of images of a prepared set, separated by commas; by default the model's views, or
            else all columns of images.
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
    views = saved_config(model).views or []  # an error if there is no such model
    if is_prepared(data):
        manifest = load_manifest(data)
        source, splits = _prepared_source(data, manifest, image_columns, text_column, views), [*manifest.splits]
    elif image_columns is not None or text_column != "text":
        raise ValueError(f"image_columns and text_column name columns of a prepared set, and {data} is none")
    else:
        source, splits = _folder_source(data, views), ["all"]
    shards = source.shards
    todo = [*shards][shards_in(shard_range)]
    read_beside: dict[str, Any] = {"labels": True} if source.labelled else {}
    read_beside |= {"views": [*source.views]} if source.views else {}
    plan = {"model_sha256": model_digest(find_model(model)), **source.facts, **read_beside}
    digest = hashlib.sha256(json.dumps(plan, sort_keys=True).encode()).hexdigest()
    _claim(output, [*shards])
    with only_process(output) if shard_range is None else nullcontext():
        if unfinished := [name for name in todo if not _is_finished(output / name, digest)]:
            loaded, processor = load_model(model, EMBEDDING, device)
            for name in tqdm(unfinished, desc="embed", unit="shard"):
                _write(output / name, digest, loaded, processor, source, partial(shards[name].read, batch_size))
        if shard_range is None:
            return _complete(output, plan, splits, shards, source.rejected)
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


def _prepared_source(
    data: Path, manifest: Manifest, images: str | None, text: str, model_views: Sequence[str]
) -> _Source:
    info = next((info for info in manifest.splits.values() if info.shards), None)
    if info is None:
        raise ValueError(f"{data} has no rows")
    features = shard_features(pq.read_schema(data / next(iter(info.shards))))
    names = [name.strip() for name in images.split(",")] if images else [*info.images]
    views = model_views if any(name in model_views for name in names) else ()
    if views and images is None:
        names = [name for name in names if name in views]
    columns = trunk_columns(names, text if text in features else None, views)
    columns.check(data, features)
    if columns.names == ["id"]:
        raise ValueError(f"{data} has neither a column of images nor {text!r}; it has {', '.join(features)}")
    labelled = column_types(features.get("labels")) == {"texts"}
    shards = {
        name: _Shard(split, _num_rows(data / name), partial(_stored_rows, columns, labelled, data / name))
        for split, info in manifest.splits.items()
        for name in info.shards
    }
    rows, listed = (sum(item.rows for item in items.values()) for items in (shards, manifest.splits))
    if rows != listed:
        raise ValueError(f"the shards of {data} hold {rows} rows of {listed}: prepare it again with --overwrite")
    facts = {
        "data_sha256": file_sha256(data / MANIFEST),
        "image_columns": names,
        "text_column": next(iter(columns.text_columns), None),
    }
    return _Source(shards, [], facts, views, labelled)


def _folder_source(data: Path, model_views: Sequence[str]) -> _Source:
    rows, lost, digest = read_folder(data)
    if not rows:
        raise ValueError(f"{data} has no rows")
    views = model_views if any(column in model_views for row in rows for column in row.images) else ()
    chunks = [rows[start : start + ROWS_PER_SHARD] for start in range(0, len(rows), ROWS_PER_SHARD)]
    shards = {
        f"all-{number:05d}-of-{len(chunks):05d}.parquet": _Shard(
            "all", len(chunk), partial(_folder_rows, chunk, views)
        )
        for number, chunk in enumerate(chunks)
    }
    labelled = any(row.labels is not None for row in rows)
    return _Source(shards, [row._asdict() for row in lost], {"data_sha256": digest}, views, labelled)


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
    model: M3AEPreTrainedModel,
    processor: M3AEProcessor,
    source: _Source,
    read: Callable[[list[Rejection]], Iterator[list[Sample]]],
) -> None:
    """Write a shard that appears when it is whole."""
    options = BatchOptions(processor.tokenizer, model.config.longest_text)
    collator = TrunkCollator(trunk_modalities(model.config, source.views), options)
    trunk, reads = model.base_model, model.config.input_streams or STREAMS
    assert isinstance(trunk, M3AEModel)
    head = model.itc_head if isinstance(model, SEARCHING) else None
    sizes = {"features": 2 * model.config.hidden_size} | dict.fromkeys(STREAMS if head else (), model.config.itc_size)
    labels = [pa.field("labels", pa.list_(pa.string()))] if source.labelled else []
    vectors = [pa.field(name, pa.list_(pa.float32(), size)) for name, size in sizes.items()]
    schema = pa.schema([pa.field("id", pa.string()), *labels, *vectors])
    rejected: list[Rejection] = []
    with (
        replacing(path) as temporary,
        pq.ParquetWriter(temporary, schema, write_page_checksum=True) as writer,
    ):
        for samples in filter(None, read(rejected)):
            inputs = {name: value.to(model.device) for name, value in collator.inputs(samples).items()}
            inputs.pop("special_tokens_mask")
            streams = {name: stream for name, stream in trunk.encode(**inputs).items() if name in reads}
            columns: dict[str, Any] = {"id": [sample.id for sample in samples]}
            if source.labelled:
                columns["labels"] = [sample.target for sample in samples]
            columns["features"] = _array(trunk.fuse_and_pool(streams))
            if head is not None:
                for name in STREAMS:
                    present = inputs[f"{name}_present"].view(len(samples), -1).any(1)
                    columns[name] = _array(head.embed(name, streams[name]), pa.array((~present).tolist()))
            writer.write_table(pa.table(columns, schema=schema))
        writer.add_key_value_metadata({_PLAN: digest, _REJECTED: json.dumps(rejected)})


@contextmanager
def _open_shard(shard: Path) -> Iterator[pq.ParquetFile]:
    try:
        with pq.ParquetFile(shard) as file:
            yield file
    except pa.ArrowException as error:
        raise ValueError(f"{shard} cannot be read ({error}): prepare its folder again with --overwrite") from error


def _stored_rows(
    columns: Columns, labelled: bool, shard: Path, batch_size: int, rejected: list[Rejection]
) -> Iterator[list[Sample]]:
    with _open_shard(shard) as file:
        for batch in file.iter_batches(batch_size, columns=[*columns.names, *["labels"] * labelled]):
            rows = typed_rows(batch.to_pylist(), batch.schema)
            yield [columns.sample(row, seed=0)._replace(target=row.get("labels")) for row in rows]


def _folder_rows(
    rows: list[Row], views: Sequence[str], batch_size: int, rejected: list[Rejection]
) -> Iterator[list[Sample]]:
    for start in range(0, len(rows), batch_size):
        samples = (_read(row, views, rejected) for row in rows[start : start + batch_size])
        yield [sample for sample in samples if sample is not None]


def _read(row: Row, views: Sequence[str], rejected: list[Rejection]) -> Sample | None:
    """Decode the images of a row; return None where nothing of the row can be read."""
    cells: dict[str, Any] = dict.fromkeys(views or ["image"])
    lost: list[Rejection] = []
    for column, image in row.images.items():
        name = column if views else "image"
        if name not in cells or cells[name] is not None:
            continue
        try:
            cells[name] = image.decode()
        except UnreadableImageError as error:
            report(error)
            lost.append({"id": row.id, "reason": error.reason, "detail": error.detail, "column": column})
    cells["text"] = next(iter(row.texts), None)
    if all(cell is None for cell in cells.values()):
        first = lost[0] if lost else {"id": row.id, "reason": "neither image nor text", "detail": ""}
        rejected.append({key: first[key] for key in ("id", "reason", "detail")})
        return None
    rejected += lost
    return Sample(row.id, cells, target=row.labels)


def _num_rows(shard: Path) -> int:
    with _open_shard(shard) as file:
        return int(file.metadata.num_rows)


def _array(vectors: torch.Tensor, missing: pa.Array | None = None) -> pa.Array:
    """Return vectors (B, E) as a column of lists of fixed length, null where they are missing."""
    flat = pa.array(vectors.float().cpu().numpy().ravel())
    return pa.FixedSizeListArray.from_arrays(flat, vectors.shape[1], mask=missing)
