"""The vectors of a set as one file, for programs that read no shards."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.csv as pc
import pyarrow.parquet as pq
from numpy.typing import NDArray

from m3ae.files import replacing
from m3ae.inference.embedding import embed_set

FORMATS = (".parquet", ".csv", ".npy")


def embed_file(data: Path, output: Path, **options: Any) -> dict[str, Any]:
    """Write the vectors of every row of a set to one file; see `embed_set`.

    A `.parquet` file has the columns of the shards and the split. A `.csv` file has a column for each number:
    `features_0`, and so on; labels are separated by semicolons. A `.npy` file has `features` (N, 2·D) alone, and a
    file `NAME.rows.csv` beside it the ids, splits and labels. The set must fit into memory. Shards lie beside the
    file until it is complete, so that the next run continues an interrupted one.

    Raises:
        ValueError: A `shard_range` is named.
    """
    if options.pop("shard_range", None) is not None:
        raise ValueError(f"a range of the shards needs a folder, got {output}: leave out the suffix of --output")
    folder = output.with_name(f"{output.name}.shards")
    description = embed_set(data, folder, **options)
    assert description is not None
    tables = []
    for name in description["shards"]:
        table, split = pq.read_table(folder / name), name.rsplit("-", 3)[0]
        tables.append(table.add_column(1, "split", pa.array([split] * len(table), pa.string())))
    _write(pa.concat_tables(tables).replace_schema_metadata(), output)
    shutil.rmtree(folder)
    return description


def _write(table: pa.Table, output: Path) -> None:
    vectors = [field.name for field in table.schema if pa.types.is_fixed_size_list(field.type)]
    with replacing(output) as temporary:
        if output.suffix == ".parquet":
            pq.write_table(table, temporary)
        elif output.suffix == ".npy":
            with temporary.open("wb") as file:
                np.save(file, _array(table["features"]))
        else:
            pc.write_csv(_flat(table, vectors), temporary)
    if output.suffix == ".npy":
        with replacing(output.with_suffix(".rows.csv")) as temporary:
            pc.write_csv(_flat(table.drop_columns(vectors), []), temporary)


def _flat(table: pa.Table, vectors: list[str]) -> pa.Table:
    """Return a table whose labels are joined, and whose vectors are a column for each number."""
    columns: dict[str, Any] = {}
    for name in table.column_names:
        if name in vectors:
            numbers = _array(table[name]).T
            missing = table[name].is_null().to_numpy()
            columns |= {f"{name}_{k}": pa.array(values, mask=missing) for k, values in enumerate(numbers)}
        elif pa.types.is_list(table.schema.field(name).type):
            columns[name] = pa.array([None if cell is None else ";".join(cell) for cell in table[name].to_pylist()])
        else:
            columns[name] = table[name]
    return pa.table(columns)


def _array(vectors: pa.ChunkedArray) -> NDArray[np.float32]:
    """Return a column of vectors (N, E), the missing ones NaN."""
    size = vectors.type.list_size
    flat = vectors.combine_chunks().fill_null(pa.scalar([float("nan")] * size, vectors.type)).flatten()
    array: NDArray[np.float32] = flat.to_numpy(zero_copy_only=False).reshape(-1, size)
    return array
