"""Samples of any modalities: columns of a prepared split, each of which a row may lack.

Shapes: B batch, M modalities, C channels, S side of the image in pixels, L text tokens.
"""

from __future__ import annotations

import difflib
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Literal, NamedTuple, Protocol

import datasets
import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image
from torch import Tensor
from transformers import PreTrainedTokenizerBase

from m3ae.data.augment import Augmentation, augment, centre_crop
from m3ae.data.collate import draw_noise, tokenize
from m3ae.data.images import decode_image
from m3ae.data.pairs import PairColumns, Visit, drawn_text
from m3ae.data.prepared import array_shape, load_split
from m3ae.models.latent_inputs import TENSOR_NAMES
from m3ae.pixels import to_8bit

Kind = Literal["image", "text", "vector", "sequence", "label", "labels"]
Batch = dict[str, dict[str, Tensor]]


class MultimodalSample(NamedTuple):
    """One visit of a row.

    Attributes:
        id: Name of the row in the prepared data.
        cells: By modality, an image (C, S, S) uint8, a text, an array float32, the number of a class, or for each of A
            labels whether the row has it, (A,) float32; where the row lacks the modality, zeros or an empty text.
        present: (M,) bool, which modalities the row has, in the order of `cells`.
        seed: Of this visit.
    """

    id: str
    cells: dict[str, Any]
    present: NDArray[np.bool_]
    seed: int


class MultimodalDataset:
    """Rows of a prepared split as samples of some of its columns.

    Images are decoded when they are first asked for and then stay in memory, C·S² bytes each.

    Args:
        folder: The prepared folder.
        split: Name of the split.
        modalities: Kind of each column that is read: an image; a text, or list of texts of which a visit draws one; a
            vector or a sequence of vectors, of fixed size; a label, which is a string; labels, a list of strings.
        image_size: Side S in pixels; the shorter side is resized and the middle cut out, as in `M3AEProcessor`.
        grayscale: Whether images have one channel, or three.
        limit: Keep this many rows, evenly spaced over the split; all if None.
        classes: Names of the classes of each modality of the kind `labels`; others in its column are left out.

    Attributes:
        modalities: As given.
        label_names: Names of the classes of each label: the values in the training split, sorted.

    Raises:
        FileNotFoundError: There is no such prepared folder.
        ValueError: There is no such split or column, a column is of another kind, or a label is not in training.
    """

    def __init__(
        self,
        folder: Path,
        split: str,
        modalities: Mapping[str, Kind],
        *,
        image_size: int,
        grayscale: bool = True,
        limit: int | None = None,
        classes: Mapping[str, Sequence[str]] | None = None,
    ) -> None:
        rows = load_split(folder, split)
        _check(folder, rows.features, modalities)
        if limit is not None and limit < len(rows):
            rows = rows.select(np.linspace(0, len(rows) - 1, limit).round().astype(int))
        self.split, self.modalities, self.label_names = split, dict(modalities), dict[str, list[str]]()
        self.ids: list[str] = rows["id"][:]
        self._columns: dict[str, _Column] = {}
        for name, kind in modalities.items():
            column = rows.select_columns([name])
            if kind == "image":
                self._columns[name] = _Images(rows, name, image_size, 1 if grayscale else 3)
            elif kind == "text":
                self._columns[name] = _Texts(column, name)
            elif kind == "label":
                values = column[name][:]
                names = values if split == "train" and limit is None else load_split(folder, "train")[name]
                self.label_names[name] = sorted({value for value in names if value is not None})
                self._columns[name] = _Labels(values, name, self.label_names[name])
            elif kind == "labels":
                own = (classes or {})[name]
                _check_classes(folder, name, own)
                self._columns[name] = _LabelSets(column[name][:], own)
            else:
                self._columns[name] = _Arrays(column, name)

    def __len__(self) -> int:
        return len(self.ids)

    def __getitem__(self, visit: Visit) -> MultimodalSample:
        """Load the row `visit.index`, of several texts the one that `visit.seed` draws; 0 takes the first."""
        found = {name: column.read(visit.index, visit.seed) for name, column in self._columns.items()}
        return MultimodalSample(
            id=self.ids[visit.index],
            cells={name: cell for name, (cell, _) in found.items()},
            present=np.array([there for _, there in found.values()], dtype=bool),
            seed=visit.seed,
        )

    def texts(self) -> list[str]:
        """Return all texts of all modalities."""
        return [text for rows in self.texts_of_rows().values() for texts in rows for text in texts]

    def texts_of_rows(self) -> dict[str, list[list[str]]]:
        """Return the texts of each row, by modality that is one."""
        return {name: column.texts for name, column in self._columns.items() if isinstance(column, _Texts)}


class MultimodalCollator:
    """Batches samples: for each modality a dict of tensors, with `present` (B,) bool.

    An image has `pixel_values` (B, C, S, S) float32 in [0, 1]; a text `input_ids` and `attention_mask` (B, L) int64; a
    vector or sequence `values` (B, …) float32; a label `labels` (B,) int64; labels `values` (B, A) float32, 0 or 1.
    What a sample lacks is 0 there, or, as in `PairCollator`, the empty text. Nothing but the padding depends on the
    other samples.

    Args:
        modalities: Kind of each modality, as for the dataset.
        tokenizer: Of the texts.
        max_text_length: Longest text in tokens, special ones included; longer ones are cut.
        missing_rate: Share of the modalities that training is not shown, drawn anew at every visit of a sample; see
            `drop_modalities`.
        augmentation: What training changes about images, anew at every visit: see `m3ae.data.augment.augment`.

    Raises:
        ValueError: There are texts and no tokenizer, or the rate is not in [0, 1].
    """

    def __init__(
        self,
        modalities: Mapping[str, Kind],
        *,
        tokenizer: PreTrainedTokenizerBase | None = None,
        max_text_length: int = 64,
        missing_rate: float = 0.0,
        augmentation: Augmentation = "crop",
    ) -> None:
        if tokenizer is None and "text" in modalities.values():
            texts = [name for name, kind in modalities.items() if kind == "text"]
            raise ValueError(f"Texts need a tokenizer, got none for {', '.join(texts)}.")
        if not 0 <= missing_rate <= 1:
            raise ValueError(f"missing_rate is {missing_rate}, expected 0 to 1.")
        self.modalities, self.tokenizer = dict(modalities), tokenizer
        self.max_text_length, self.missing_rate = max_text_length, missing_rate
        self.augmentation: Augmentation = augmentation

    def __call__(self, samples: Sequence[MultimodalSample]) -> Batch:
        """Return the tensors of each modality by name."""
        present = torch.from_numpy(np.stack([sample.present for sample in samples]))  # (B, M)
        if self.missing_rate:
            draws = [np.random.default_rng([sample.seed, 2]) for sample in samples]
            present = drop_modalities(present, draw_noise(draws, present.shape[1]), self.missing_rate)
        if self.augmentation != "crop":
            samples = [self._augmented(sample) for sample in samples]
        batch: Batch = {}
        for (name, kind), there in zip(self.modalities.items(), present.T.contiguous(), strict=True):
            cells = [sample.cells[name] for sample in samples]
            batch[name] = (self._text(cells, there) if kind == "text" else _stack(kind, cells, there)) | {
                "present": there
            }
        return batch

    def _augmented(self, sample: MultimodalSample) -> MultimodalSample:
        """Return a sample with its images (C, S, S) changed, each in its own way."""
        draw, cells = np.random.default_rng([sample.seed, 3]), dict(sample.cells)
        for name, kind in self.modalities.items():
            if kind == "image":
                channels, size, _ = cells[name].shape
                image = Image.fromarray(cells[name][0] if channels == 1 else cells[name].transpose(1, 2, 0))
                changed = np.asarray(augment(image, size, draw, self.augmentation, (1.0, 1.0)))
                cells[name] = changed.reshape(size, size, channels).transpose(2, 0, 1)
        return sample._replace(cells=cells)

    def _text(self, texts: Sequence[str], there: Tensor) -> dict[str, Tensor]:
        assert self.tokenizer is not None
        shown = [text if is_there else "" for text, is_there in zip(texts, there.tolist(), strict=True)]
        encoded = tokenize(self.tokenizer, shown, self.max_text_length)
        return {name: encoded[name] for name in ("input_ids", "attention_mask")}


def drop_modalities(present: Tensor, noise: Tensor, rate: float) -> Tensor:
    """Drop present modalities with some probability each, but not a sample's last one.

    Of a sample that would lose all, the modality with the largest noise stays, which is any of them with the same
    probability; of n present ones, a share of rate − rateⁿ/n is therefore dropped.

    Args:
        present: (B, M) bool.
        noise: (B, M) uniform in [0, 1).
        rate: The probability.

    Returns:
        (B, M) bool, what is left.
    """
    noise = noise.masked_fill(~present, -1)
    largest = noise == noise.amax(1, keepdim=True)
    return present & ((noise >= rate) | largest)


class _Column(Protocol):
    """The cells of a modality by row."""

    def read(self, row: int, seed: int) -> tuple[Any, bool]:
        """Return a cell, and whether the row has it."""


class _Images:
    def __init__(self, rows: datasets.Dataset, name: str, size: int, channels: int) -> None:
        self._rows, self._name = rows.select_columns(["id", name]), name
        self._pixels = np.zeros((len(rows), channels, size, size), np.uint8)  # no memory until it is written to
        self._present = np.zeros(len(rows), dtype=bool)
        self._is_read = np.zeros(len(rows), dtype=bool)

    def read(self, row: int, seed: int) -> tuple[NDArray[np.uint8], bool]:
        if not self._is_read[row]:
            found = self._rows[row]
            cell = found[self._name]
            self._present[row] = cell is not None
            if cell is not None:
                self._pixels[row] = self._squared(decode_image(cell["bytes"], found["id"]))
            self._is_read[row] = True
        return self._pixels[row], bool(self._present[row])

    def _squared(self, image: Image.Image) -> NDArray[np.uint8]:
        _, channels, size, _ = self._pixels.shape
        square = centre_crop(to_8bit(image).convert("L" if channels == 1 else "RGB"), size)
        return np.asarray(square).reshape(size, size, channels).transpose(2, 0, 1)


class _Texts:
    def __init__(self, rows: datasets.Dataset, name: str) -> None:
        columns = PairColumns.of((), name)
        self.texts = [columns.texts_of(row) for row in rows]

    def read(self, row: int, seed: int) -> tuple[str, bool]:
        texts = self.texts[row]
        return (texts[drawn_text(seed) % len(texts)], True) if texts else ("", False)


class _Labels:
    def __init__(self, values: Sequence[str | None], name: str, names: Sequence[str]) -> None:
        numbers = {value: number for number, value in enumerate(names)}
        if unknown := sorted({value for value in values if value is not None} - numbers.keys()):
            raise ValueError(
                f"Column {name!r} has the label {unknown[0]!r}, which no training row has; these have "
                f"{', '.join(names)}. Prepare the data with splits that share their labels."
            )
        self._present = [value is not None for value in values]
        self._numbers = np.array([0 if value is None else numbers[value] for value in values], dtype=np.int64)

    def read(self, row: int, seed: int) -> tuple[np.int64, bool]:
        return self._numbers[row], self._present[row]


class _LabelSets:
    def __init__(self, rows: Sequence[Sequence[str] | None], names: Sequence[str]) -> None:
        self._present = [row is not None for row in rows]
        self._values = np.array([[name in (row or ()) for name in names] for row in rows], dtype=np.float32)

    def read(self, row: int, seed: int) -> tuple[NDArray[np.float32], bool]:
        return self._values[row], self._present[row]


class _Arrays:
    def __init__(self, rows: datasets.Dataset, name: str) -> None:
        shape = array_shape(rows.features[name])
        column = rows.with_format("arrow")[:][name].combine_chunks()
        values = column.drop_null()
        for _ in shape:
            values = values.flatten()
        self._present = column.is_valid().to_numpy(zero_copy_only=False)
        self._values = np.zeros((len(rows), *shape), np.float32)
        self._values[self._present] = values.to_numpy().reshape(-1, *shape)

    def read(self, row: int, seed: int) -> tuple[NDArray[np.float32], bool]:
        return self._values[row], bool(self._present[row])


def _stack(kind: Kind, cells: Sequence[Any], there: Tensor) -> dict[str, Tensor]:
    """Return the cells of a modality as a tensor, zeros where they are not there."""
    values = torch.from_numpy(np.stack(cells))
    values = values.float() / 255 if kind == "image" else values
    values[~there] = 0
    return {TENSOR_NAMES[kind]: values}


def _check(folder: Path, features: Mapping[str, Any], modalities: Mapping[str, Kind]) -> None:
    """Raise ValueError if a column is missing or of another kind."""
    for name, kind in modalities.items():
        if name not in features:
            raise ValueError(f"{folder} has no column {name!r}; it has {', '.join(features)}.")
        kinds = _kinds_of(features[name])
        if kind not in kinds:
            raise ValueError(
                f"Column {name!r} of {folder} holds {features[name]}, expected {kind}; it can be "
                f"{' or '.join(kinds) or 'no modality'}."
            )


def _check_classes(folder: Path, name: str, classes: Sequence[str]) -> None:
    """Raise ValueError if no training row has one of the classes."""
    there = {label for row in load_split(folder, "train")[name] if row is not None for label in row}
    if unknown := [label for label in classes if label not in there]:
        nearest = difflib.get_close_matches(unknown[0], sorted(there), n=3)
        hint = f"; did you mean {', '.join(nearest)}?" if nearest else f"; it has {', '.join(sorted(there)[:10])}, …"
        raise ValueError(f"Column {name!r} of {folder}: no training row has the label {unknown[0]!r}{hint}")


def _kinds_of(feature: Any) -> tuple[Kind, ...]:
    text = datasets.Value("string")
    if isinstance(feature, datasets.Image):
        return ("image",)
    if feature in (text, datasets.List(text)):
        return ("text", "label" if feature == text else "labels")
    return ("vector", "sequence") if array_shape(feature) else ()
