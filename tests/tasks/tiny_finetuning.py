"""Prepared folders and fine-tuning runs that take seconds."""

import io
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import datasets
import pyarrow.parquet as pq
import torch
from PIL import Image

from m3ae import M3AEProcessor
from m3ae.data.prepared import Manifest, SplitInfo
from m3ae.data.tokenizer import train_tokenizer
from m3ae.models.modeling import M3AEPreTrainedModel
from m3ae.models.processing import M3AEImageProcessor
from m3ae.training.config import RunConfig, make_config
from tests.models.tiny import tiny_config

TEXT = datasets.Value("string")
TEXTS = datasets.List(TEXT)
Row = dict[str, Any]


def write_splits(path: Path, splits: dict[str, Sequence[Row]]) -> Path:
    """Write rows as prepared splits: `image` is a grey value or None; lists are lists of texts."""
    path.mkdir(parents=True)
    infos = {}
    for split, rows in splits.items():
        name, columns = f"{split}-00000-of-00001.parquet", {}
        for key in dict.fromkeys(key for row in rows for key in row):
            columns[key] = [_png(row.get(key)) if key == "image" else row.get(key) for row in rows]
        kinds = {
            key: TEXTS if any(isinstance(cell, list) for cell in cells) else TEXT for key, cells in columns.items()
        }
        features = datasets.Features(kinds | ({"image": datasets.Image()} if "image" in columns else {}))
        if rows:
            pq.write_table(datasets.Dataset.from_dict(columns, features=features).data.table, path / name)
        infos[split] = SplitInfo(len(rows), {"image": len(rows)}, None, 0 if rows else 3, {name: ""} if rows else {})
    (path / "manifest.json").write_text(Manifest("test", {}, "", infos, {}, {}).to_json())
    return path


def _png(value: int | None) -> dict[str, Any] | None:
    buffer = io.BytesIO()
    if value is not None:
        Image.new("L", (32, 32), value).save(buffer, "PNG")
    return None if value is None else {"bytes": buffer.getvalue(), "path": None}


def tiny_finetuning(task: str, folder: Path, output: Path, **sections: dict[str, Any]) -> RunConfig:
    options: dict[str, Any] = {
        "task": task,
        "output_dir": output,
        "data": {"path": folder, "allow_test_rows": True},
        "tokenizer": {"vocab_size": 270},
        "model": {"size": "tiny"},
        "optimizer": {"lr": 1e-3},
        "training": {
            "mixed_precision": "no",
            "max_steps": 2,
            "batch_size": 2,
            "validate_every": 1,
            "checkpoint_every": 2,
            "log_every": 1,
            "tracker": "none",
            "best_metric": "validation/loss",
        },
        "evaluation": {"resamples": 5},
    }
    for name, values in sections.items():
        options[name] = {**options.get(name, {}), **values}
    return make_config(options)


def save_model(
    folder: Path, model_class: type[M3AEPreTrainedModel], texts: Sequence[str] = ("a text",), **options: Any
) -> str:
    """Save a tiny model with a processor; return the folder's name."""
    tokenizer = train_tokenizer(texts, 270)
    torch.manual_seed(7)
    model_class(tiny_config(text_config={"vocab_size": len(tokenizer)}, **options)).save_pretrained(folder)
    M3AEProcessor(M3AEImageProcessor.for_size(32), tokenizer).save_pretrained(folder)
    return str(folder)
