"""Modalities of a row of a prepared set, as a latent model takes them; needs the extra `train`."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import datasets
import numpy as np

from m3ae.data.images import decode_image
from m3ae.data.pairs import PairColumns
from m3ae.data.prepared import load_split
from m3ae.inference.generation import Value
from m3ae.models.generation import M3AEForGeneration
from m3ae.models.latent_inputs import check_names


def read_row(model: M3AEForGeneration, folder: Path, split: str, row: str, names: Sequence[str]) -> dict[str, Value]:
    """Return modalities of the row of a prepared set that has an id; of several texts, the first.

    Raises:
        FileNotFoundError: There is no such prepared folder.
        ValueError: It has no such split, row or column, or the row lacks one of the modalities.
    """
    check_names(names, model.latent.typed_modalities)
    rows = load_split(folder, split)
    ids: list[str] = rows["id"][:]
    if row not in ids:
        raise ValueError(f"{folder}, {split}, has no row {row!r}: its ids are {', '.join(ids[:3])}, …")
    return read_values(model, rows, ids.index(row), names)


def read_values(
    model: M3AEForGeneration, rows: datasets.Dataset, place: int, names: Sequence[str]
) -> dict[str, Value]:
    """Return modalities of the row at a place; see `read_row`.

    Raises:
        ValueError: A column or the row's own cell is missing.
    """
    found: dict[str, Value] = {}
    for name in names:
        if name not in rows.features:
            raise ValueError(f"the set has no column {name!r}; it has {', '.join(rows.features)}")
        kind, column = model.latent.typed_modalities[name].kind, rows.select_columns([name])
        cell: Any = column[place][name]
        texts = PairColumns.of((), name).texts_of({name: cell}) if kind == "text" and cell is not None else []
        if cell is None or (kind == "text" and not texts):
            raise ValueError(f"row {rows[place]['id']!r} has no {name}")
        if kind == "image":
            found[name] = decode_image(cell["bytes"], rows[place]["id"])
        elif kind == "text":
            found[name] = texts[0]
        elif kind == "labels":
            known = model.latent.typed_modalities[name].labels or []
            found[name] = [label for label in cell if label in known]
        else:
            found[name] = str(cell) if kind == "label" else np.asarray(cell, dtype=np.float32)
    return found
