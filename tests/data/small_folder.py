"""Prepared folders with several splits and given images, written without the preparing code."""

import io
from pathlib import Path
from typing import Any

import datasets
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from PIL import Image

from m3ae.data.prepared import Manifest, SplitInfo
from m3ae.files import file_sha256

TEXT = datasets.Value("string")


def array(dtype: str, *shape: int) -> Any:
    """The column of arrays of a shape."""
    return datasets.List(array(dtype, *shape[1:]), length=shape[0]) if shape else datasets.Value(dtype)


FEATURES = {
    "frontal": datasets.Image(),
    "lateral": datasets.Image(),
    "image": datasets.Image(),
    "text": datasets.List(TEXT),
    "labels": datasets.List(TEXT),
    "vector": array("float32", 2),
    "speech": array("float32", 4, 3),
    "scan": array("float32", 5, 18),
    "volume": array("float32", 1, 4, 4, 4),
}


def picture(seed: int, size: tuple[int, int] = (96, 80)) -> Image.Image:
    """Smooth grey noise: no two are alike."""
    coarse = np.random.default_rng(seed).integers(0, 256, (12, 12), dtype=np.uint8)
    return Image.fromarray(coarse).resize(size, Image.Resampling.BICUBIC)


def stored(image: Image.Image, format: str = "PNG", **options: Any) -> bytes:
    buffer = io.BytesIO()
    image.save(buffer, format, **options)
    return buffer.getvalue()


def write_splits(path: Path, rejected: str = "", **splits: list[dict[str, Any]]) -> Path:
    """Write a prepared folder, each split in one shard with two rows a group.

    Args:
        path: The folder.
        rejected: Contents of rejected.jsonl.
        **splits: Rows by split; images as encoded bytes; what a row lacks is null.
    """
    path.mkdir(parents=True)
    columns = dict.fromkeys(name for rows in splits.values() for row in rows for name in row)
    features = datasets.Features({name: FEATURES.get(name, TEXT) for name in columns})
    infos = {}
    for split, rows in splits.items():
        cells = [features.encode_example({name: row.get(name) for name in features}) for row in rows]
        shard = path / f"{split}-00000-of-00001.parquet"
        pq.write_table(pa.Table.from_pylist(cells, schema=features.arrow_schema), shard, row_group_size=2)
        images = [name for name in features if isinstance(features[name], datasets.Image)]
        counts = {name: sum(row.get(name) is not None for row in rows) for name in images}
        texts = sum(row.get("text") is not None for row in rows) if "text" in features else None
        infos[split] = SplitInfo(len(rows), counts, texts, 0, {shard.name: file_sha256(shard)})
    (path / "rejected.jsonl").write_text(rejected)
    (path / "manifest.json").write_text(Manifest("test", {}, "", infos, {}, {}).to_json())
    return path
