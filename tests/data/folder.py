"""Prepared folders of a few rows, written without the preparing code."""

import io
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import datasets
import numpy as np
import pyarrow.parquet as pq
from PIL import Image

from m3ae.data.prepared import Manifest, SplitInfo

TEXT = datasets.Value("string")
TEXTS = datasets.List(TEXT)


def jpeg(value: int, size: tuple[int, int] = (40, 32)) -> bytes:
    buffer = io.BytesIO()
    Image.new("L", size, value).save(buffer, "JPEG")
    return buffer.getvalue()


def grey(image: Image.Image | None) -> int | None:
    return None if image is None else round(np.asarray(image).mean())


def write_folder(
    path: Path, columns: dict[str, list[Any]], images: Sequence[str] = (), shards: Sequence[int] = (), group: int = 100
) -> Path:
    """Write the columns as the training split.

    Args:
        path: The folder.
        columns: Cells by column; grey values in place of images.
        images: Which columns hold images.
        shards: Rows of each shard; one shard with all rows if empty.
        group: Rows of a row group.
    """
    path.mkdir(parents=True, exist_ok=True)
    cells = {
        name: [None if v is None else {"bytes": jpeg(v), "path": None} for v in values] if name in images else values
        for name, values in columns.items()
    }
    features = {name: datasets.Image() if name in images else TEXT for name in cells}
    for name, values in columns.items():
        features[name] = TEXTS if any(isinstance(value, list) for value in values) else features[name]
    table = datasets.Dataset.from_dict(cells, features=datasets.Features(features)).data.table
    names, start = {}, 0
    for index, rows in enumerate(shards or [table.num_rows]):
        name = f"train-{index:05d}-of-{len(shards) or 1:05d}.parquet"
        pq.write_table(table.slice(start, rows), path / name, row_group_size=group)
        names[name], start = "", start + rows
    info = SplitInfo(table.num_rows, dict.fromkeys(images, 0), 0, 0, names)
    (path / "manifest.json").write_text(Manifest("test", {}, "", {"train": info}, {}, {}).to_json())
    return path
