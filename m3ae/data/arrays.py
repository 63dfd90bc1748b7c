"""Samples from memory: arrays of several modalities, row by row."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from m3ae.data.samples import Sample, Visit
from m3ae.models.configuration import M3AEConfig
from m3ae.models.modalities import KINDS, Scene, Slices, build_modalities

KINDS_BY_DIMENSIONS = {1: "vector", 2: "sequence", 3: "image", 4: "volume"}


class ArrayDataset:
    """Samples from arrays in memory. A row may lack any modality.

    Args:
        arrays: Name → one entry a row: an array or tensor (N, F) of vectors, (N, T, F) of sequences or (N, C, H, W) of
            images or (N, C, D, H, W) of volumes, in [0, 1] or of 8 bits; or a list of names of classes, of which a row
            has one, of lists of them, or of `Scene`. None, and an element that is NaN throughout, is missing.
        modalities: Name → options of the modality, such as `{"encoder": "cnn", "likelihood": "bernoulli"}`. What is
            left out follows from the array: the kind, the shape, the names of the classes, and the scale of the
            likelihood, which starts at half the standard deviation of the values and is learned.

    Attributes:
        modalities: Name → options for `LatentConfig.modalities`.

    Raises:
        ValueError: Arrays differ in their number of rows, elements of one in their shape, a row is partly NaN or
            infinite, a modality has no row, or values lie outside of [0, 1] where that is the range.
    """

    def __init__(self, arrays: Mapping[str, Any], modalities: Mapping[str, Mapping[str, Any]] | None = None) -> None:
        options = modalities or {}
        if unknown := [name for name in options if name not in arrays]:
            raise ValueError(f"modalities: got options of {unknown[0]!r}, expected some of {', '.join(arrays)}")
        values = {name: _rows(name, array) for name, array in arrays.items()}
        if len({len(rows) for rows in values.values()}) != 1:
            counts = ", ".join(f"{name} {len(rows)}" for name, rows in values.items())
            raise ValueError(f"arrays: got {counts or 'none'}, expected as many rows of each; NaN marks missing ones")
        self.modalities = {name: _filled(name, rows, options.get(name, {})) for name, rows in values.items()}
        built = build_modalities(M3AEConfig.named("small", latent={"modalities": self.modalities}))
        if texts := [name for name, modality in built.items() if modality.is_text]:
            raise ValueError(f"{texts[0]} is of kind text, which needs a tokenizer: prepare a folder (m3ae prepare)")
        self._cells = {
            name: [None if value is None else modality.cell(value) for value in values[name]]
            for name, modality in built.items()
        }

    def __len__(self) -> int:
        return len(next(iter(self._cells.values())))

    def __getitem__(self, visit: Visit) -> Sample:
        """Return the row `visit.index`."""
        return Sample(str(visit.index), {name: cells[visit.index] for name, cells in self._cells.items()}, visit.seed)


def _rows(name: str, array: Any) -> list[Any]:
    """Return the entries of an array: arrays float32, names, lists of names, or None for missing ones."""
    values = array.detach().cpu().numpy() if hasattr(array, "detach") else array
    if not isinstance(values, np.ndarray) and any(map(_is_named, values)):
        if wrong := [n for n, value in enumerate(values) if not (value is None or value == [] or _is_named(value))]:
            raise ValueError(
                f"{name}: row {wrong[0]} is {values[wrong[0]]!r}, expected a name, a list of names or None"
            )
        return list(values)
    if not isinstance(values, np.ndarray) and any(isinstance(value, Scene) for value in values):
        return list(values)
    scale = 255 if isinstance(values, np.ndarray) and values.dtype == np.uint8 and values.ndim > 3 else 1
    rows: list[NDArray[np.float32] | None] = []
    shape: tuple[int, ...] | None = None
    for number, value in enumerate(values):
        row = np.atleast_1d(np.asarray(np.nan if value is None else value, np.float32)) / np.float32(scale)
        shape = row.shape if shape is None and value is not None else shape
        if value is not None and row.shape != shape:
            raise ValueError(f"{name}: row {number} has the shape {row.shape}, expected {shape} as the rows before")
        unknown = np.isnan(row)
        if np.isinf(row).any() or (unknown.any() and not unknown.all()):
            raise ValueError(
                f"{name}: row {number} has NaN or infinity in some of its elements; expected finite values, or NaN "
                "in all of them where the row lacks the modality"
            )
        rows.append(None if unknown.all() else row)
    return rows


def _is_named(value: Any) -> bool:
    names = value if isinstance(value, list) else [value]
    return bool(names) and all(isinstance(name, str) for name in names)


def _filled(name: str, rows: Sequence[Any], options: Mapping[str, Any]) -> dict[str, Any]:
    """Return the options of a modality, with what follows from its rows where they do not say it."""
    present = [row for row in rows if row is not None]
    if not present:
        raise ValueError(f"{name}: no row has this modality; leave it out")
    if isinstance(present[0], str | list):
        several = isinstance(present[0], list)
        names = {label for row in present for label in ([row] if isinstance(row, str) else row)}
        defaults = {"labels": sorted(names), "hidden_size": 128, "num_layers": 1}
        return {"kind": "labels" if several else "label", **defaults, **options}
    if isinstance(present[0], Scene):
        return Slices.defaults(present) | dict(options)
    shape = list(present[0].shape)
    kind = options.get("kind") or KINDS_BY_DIMENSIONS.get(len(shape))
    if kind is None:
        raise ValueError(
            f"{name}: elements have the shape {shape}, expected [F], [T, F], [C, H, W], [C, D, H, W], or options "
            "with a kind"
        )
    scale = round(float(np.std(np.stack(present))) / 2, 3) or 1.0  # where training starts from: it learns it slowly
    encoders = KINDS[kind].encoders if kind in KINDS else {}
    encoder = next((encoder for encoder, build in encoders.items() if build is not None), None)  # not the trunk's
    defaults = {"encoder": encoder, "shape": shape, "scale": scale, "learn_scale": True, "hidden_size": 256}
    in_unit_range = options.get("likelihood") == "bernoulli" or (kind in KINDS and KINDS[kind].is_image)
    low, high = min(row.min() for row in present), max(row.max() for row in present)
    if in_unit_range and (low < 0 or high > 1):
        raise ValueError(
            f"{name}: values lie in {low:g} to {high:g}, expected 0 to 1, as images and the likelihood bernoulli have "
            "them; divide by the largest, or give images of 8 bits (uint8)"
        )
    return {"kind": kind, **defaults, **options}
