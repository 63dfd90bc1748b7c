"""Samples: rows of prepared data as mappings from the names of modalities to their cells, any of them missing.

A modality reads one column of the prepared data, or several: of the views of a study a visit draws one, of several
texts, too; columns of one text each are joined. Images stay encoded until they are batched.
"""

from __future__ import annotations

from collections.abc import Collection, Iterator, Mapping, Sequence
from copy import copy
from functools import cached_property
from itertools import chain, repeat
from pathlib import Path
from typing import Any, Literal, NamedTuple

import datasets
import numpy as np
from numpy.typing import NDArray
from PIL import Image

from m3ae.data.prepared import array_shape, image_columns, load_split
from m3ae.files import digest
from m3ae.images.files import StoredImage
from m3ae.models.configuration import M3AEConfig
from m3ae.models.modalities import KINDS, Modality, trunk_modalities
from m3ae.models.modalities.text import texts_of

Texts = Literal["one", "all"]


class Visit(NamedTuple):
    """One visit of a sample.

    Attributes:
        index: Position of the sample in the dataset.
        seed: Seed of everything random about this visit, below 2**63; another one at every visit.
        epoch: Number of passes over the dataset made before.
    """

    index: int  # type: ignore[assignment]  # hides tuple.index, which nobody needs here
    seed: int = 0
    epoch: int = 0


class Sample(NamedTuple):
    """One visit of a row.

    Attributes:
        id: Name of the row in the prepared data, or of a question about it.
        cells: Modality → cell, as `m3ae.models.modalities.Modality.read` returns it; None where it is missing.
        seed: Decides everything random about this visit.
        target: What a task is to learn of the row.
        row: Position of the row in its split, for samples that a task has made of rows.
    """

    id: str
    cells: dict[str, Any]
    seed: int = 0
    target: Any = None
    row: int = -1

    @property
    def present(self) -> NDArray[np.bool_]:
        """Which modalities (M,) the sample has, in the order of `cells`."""
        return np.array([cell is not None for cell in self.cells.values()], dtype=bool)

    @property
    def text(self) -> str | None:
        """The trunk's text."""
        text: str | None = self.cells.get("text")
        return text

    @property
    def images(self) -> list[StoredImage]:
        """The images that are present, in the order of `cells`."""
        return [cell for cell in self.cells.values() if isinstance(cell, StoredImage)]

    @property
    def picture(self) -> Image.Image:
        """The first image, decoded; IndexError without one."""
        return self.images[0].decode()

    @property
    def image_id(self) -> int:
        """Number below 2**56 that is the same for the same images; 0 without any."""
        return digest(b"".join(image.content for image in self.images)) if self.images else 0

    @property
    def text_id(self) -> int:
        """Number below 2**56 that is the same for the same text of the trunk; 0 without one."""
        return digest(self.text.encode()) if self.text else 0

    def with_images_of(self, other: Sample) -> Sample:
        """Return the trunk's text of this sample with the images of another one."""
        return self._replace(cells={**other.cells, "text": self.text})


class Columns:
    """The columns of prepared data that make samples.

    Args:
        modalities: Name → modality.
        columns: Name → the column that a modality reads, or several, or None if every sample lacks the modality. A
            modality that is left out reads the column of its name.
        advice: What to do where a column is missing.
    """

    def __init__(
        self,
        modalities: Mapping[str, Modality],
        columns: Mapping[str, Sequence[str] | str | None] | None = None,
        advice: str = "",
    ) -> None:
        self.modalities, self.advice = modalities, advice
        self.columns: dict[str, tuple[str, ...]] = {}
        for name in modalities:
            column = (columns or {}).get(name, name)
            self.columns[name] = (column,) if isinstance(column, str) else tuple(column or ())
        self.names = ["id", *dict.fromkeys(chain(*self.columns.values()))]
        self.texts = [name for name, modality in modalities.items() if modality.is_text]
        self.text_columns = list(dict.fromkeys(chain(*(self.columns[name] for name in self.texts))))

    def texts_of(self, row: Mapping[str, Any]) -> list[str]:
        """Return all texts of a row."""
        return [text for name in self.texts for text in texts_of([row[column] for column in self.columns[name]])]

    def check(self, folder: Path, features: Mapping[str, Any]) -> None:
        """Raise ValueError if a column is missing or of another kind, or lists of texts are to be joined."""
        for name, columns in self.columns.items():
            modality = self.modalities[name]
            for column in columns:
                if column not in features:
                    remark = f"{folder} has no column {column!r}; it has {', '.join(features)}. {self.advice}"
                    raise ValueError(remark.rstrip())
                types = column_types(features[column])
                if types.isdisjoint(modality.columns):
                    kinds = [name for name, kind in KINDS.items() if not types.isdisjoint(kind.columns)]
                    raise ValueError(
                        f"Column {column!r} of {folder} holds {features[column]}, expected {modality.kind}; it can be "
                        f"{' or '.join(kinds) or 'no modality'}."
                    )
                if len(columns) > 1 and modality.is_text and "text" not in types:
                    raise ValueError(
                        f"Column {column!r} of {folder} holds {features[column]}, and only columns of one text each "
                        f"can be joined; got {list(columns)}. Name that column alone."
                    )

    def sample(self, row: Mapping[str, Any], seed: int, text: int | None = None) -> Sample:
        """Make the sample of one visit of a row.

        Args:
            row: The columns' cells, images as prepared data store them.
            seed: Seed of the visit, which draws view and text; 0 takes the first ones.
            text: Number of the row's text, in place of one that the seed draws.

        Raises:
            ValueError: A cell does not fit its modality.
        """
        chosen = seed if text is None else text << 32 | seed & 0xFFFFFFFF
        cells: dict[str, Any] = {}
        for name, modality in self.modalities.items():
            stored = [_stored(row[column], row["id"]) for column in self.columns[name]]
            try:
                cells[name] = modality.read(stored, chosen) if stored else None
            except ValueError as error:
                raise ValueError(f"row {row['id']!r}: {error}") from error
        return Sample(row["id"], cells, seed)


def trunk_columns(
    image_columns: Sequence[str], text_column: str | Sequence[str] | None, views: Sequence[str] = ()
) -> Columns:
    """Return the columns that the trunk reads: of several image columns one at a time, or each as one of its views.

    Raises:
        ValueError: A column of images is none of the views.
    """
    if views and not set(image_columns) <= set(views):
        raise ValueError(
            f"image_columns: got {list(image_columns)} with data.views=all, expected some of the views of the main "
            f"set, {list(views)}"
        )
    images: dict[str, Any] = {view: view if view in image_columns else None for view in views}
    columns = (images or {"image": image_columns}) | {"text": text_column}
    modalities = trunk_modalities(M3AEConfig.named("tiny"), views)  # every model reads the same cells
    return Columns(modalities, columns, "Set data.image_columns and data.text_column.")


def column_types(feature: Any) -> set[str]:
    """Return what a column holds, as `Modality.columns` names it: `image`, `text`, `texts` or `array`; or nothing."""
    text = datasets.Value("string")
    types = {
        "image": isinstance(feature, datasets.Image),
        "text": feature == text,
        "texts": feature == datasets.List(text),
        "array": bool(array_shape(feature)),
    }
    return {name for name, holds in types.items() if holds}


def _stored(cell: Any, row: str) -> Any:
    if isinstance(cell, dict):
        return StoredImage(cell["bytes"], row) if cell["bytes"] else None
    return cell


class SampleDataset:
    """Rows of a prepared split as a map-style dataset of visits; a visit with seed 0 has the first view and text.

    Args:
        folder: The prepared folder.
        split: Name of the split.
        columns: What is read, and made of a row.
        limit: Keep this many rows, evenly spaced over the split; all if None.
        texts: Whether a row is a sample of which a visit draws `one` text, or `all` its texts are samples.
        left_out: The ids of rows that are left out.

    Raises:
        FileNotFoundError: There is no such prepared folder.
        ValueError: There is no such split or column, or a column is of another kind.
    """

    def __init__(
        self,
        folder: Path,
        split: str,
        columns: Columns,
        *,
        limit: int | None = None,
        texts: Texts = "one",
        left_out: Collection[str] = (),
    ) -> None:
        table = load_split(folder, split)
        columns.check(folder, table.features)
        if left_out:
            table = table.select([row for row, id in enumerate(table["id"][:]) if id not in left_out])
        if limit is not None and limit < len(table):
            table = table.select(evenly(len(table), limit))
        self.folder, self.split, self.columns, self.features = folder, split, columns, table.features
        self._samples: list[Sample] | None = None
        self._table, self._texts = table, texts
        arrays = [name for name in columns.names if "array" in column_types(table.features[name])]
        self._arrays = {name: _read_arrays(table, name) for name in arrays}
        self._rows = table.select_columns([name for name in columns.names if name not in arrays])

    def of(self, samples: Sequence[Sample], limit: int | None = None) -> SampleDataset:
        """Return a dataset of samples of these rows.

        Args:
            samples: Each names its `row`; its cells replace those of the row.
            limit: Keep this many samples, evenly spaced; all if None.
        """
        dataset = copy(self)
        for name in ("_numbers", "_text_lengths"):  # of the rows
            vars(dataset).pop(name, None)
        kept = range(len(samples)) if limit is None else evenly(len(samples), limit)
        dataset._samples, dataset._texts = [samples[number] for number in kept], "one"
        return dataset

    def with_other_images(self) -> SampleDataset:
        """Return a task's samples, each with the images of another: what does not depend on the image stays right.

        The images are those of the sample half the dataset away or, if they are the same or none, of the next sample
        that differs. A sample without image, and one whose image all others share, keeps what it has.
        """
        size = len(self)
        ids, texts = zip(*((sample.image_id, sample.text) for sample in map(self.first, range(size))), strict=True)
        samples = []
        for index, sample in enumerate(self.samples):
            others = ((index + max(1, size // 2) + step) % size for step in range(size))
            other = next((other for other in others if ids[index] and ids[other] not in (0, ids[index])), index)
            samples.append(sample._replace(cells={"text": texts[index]}, row=self.samples[other].row))
        return self.of(samples)

    def __len__(self) -> int:
        return len(self._numbers)

    def __getitem__(self, visit: Visit) -> Sample:
        """Load the sample `visit.index`; `visit.seed` draws view and text."""
        number, text = self._locate(visit.index)
        return self._sample(number, visit.seed, text)

    def first(self, index: int, seed: int = 0) -> Sample:
        """Load the first view and the first text of a row or a task's sample, for a visit with this seed."""
        return self._sample(index, 0)._replace(seed=seed)

    def length(self, visit: Visit) -> int:
        """Return the number of characters of the text that `self[visit]` has, without loading the row."""
        number, text = self._locate(visit.index)
        starts, lengths = self._text_lengths
        start, stop = starts[number : number + 2]
        text = visit.seed >> 32 if text is None else text
        return int(lengths[start + text % (stop - start)]) if stop > start else 0

    @property
    def samples(self) -> list[Sample]:
        """What a task has made of the rows, without what is read of them at each visit; see `of`."""
        return self._samples or []

    @property
    def ids(self) -> list[str]:
        """The names of the rows, or of a task's samples."""
        ids: list[str] = self._rows["id"][:] if self._samples is None else [sample.id for sample in self._samples]
        return ids

    def rows(self) -> Iterator[dict[str, Any]]:
        """Yield every row with all its columns but the images."""
        return iter(self._table.remove_columns(image_columns(self._table.features)))

    def texts(self) -> list[str]:
        """Return all texts."""
        return [text for texts in self._texts_by_number() for text in texts]

    def texts_of(self, name: str) -> list[list[str]]:
        """Return the texts of each row or task's sample, of a modality that is one."""
        columns = list(self.columns.columns[name])
        rows = self._rows.select_columns(columns) if columns else [{}] * len(self._rows)
        texts = [texts_of([row[column] for column in columns]) for row in rows]
        if self._samples is None:
            return texts
        return [[*filter(None, [s.cells[name]])] if name in s.cells else texts[s.row] for s in self._samples]

    def _sample(self, number: int, seed: int, text: int | None = None) -> Sample:
        if self._samples is None:
            return self.columns.sample(self._row(number), seed, text)
        sample = self._samples[number]
        read = self.columns.sample(self._row(sample.row), seed)
        return sample._replace(cells=read.cells | sample.cells, seed=seed)

    def _row(self, row: int) -> dict[str, Any]:
        cells: dict[str, Any] = self._rows[row]
        for name, (values, present) in self._arrays.items():
            cells[name] = values[row] if present[row] else None
        return cells

    def _locate(self, index: int) -> tuple[int, int | None]:
        """Return the number of the row or task's sample, and of its text; None if the visit is to draw one."""
        number = int(self._numbers[index])
        return number, None if self._texts == "one" else index - int(np.searchsorted(self._numbers, number))

    @cached_property
    def _numbers(self) -> Sequence[int] | np.ndarray:
        """The row, or the task's sample, of each sample."""
        if self._texts == "all":
            return np.repeat(np.arange(len(self._rows)), np.maximum(np.diff(self._text_lengths[0]), 1))
        return range(len(self._rows) if self._samples is None else len(self._samples))

    def _texts_by_number(self) -> Iterator[list[str]]:
        modalities = [self.texts_of(name) for name in self.columns.texts]
        return map(list, map(chain, *modalities)) if modalities else repeat([], len(self))

    @cached_property
    def _text_lengths(self) -> tuple[np.ndarray, np.ndarray]:
        """Position of each row's first text among all texts, with their number at the end; each text's length."""
        texts = list(self._texts_by_number())
        return np.cumsum([0, *map(len, texts)]), np.array([*map(len, chain(*texts))], dtype=np.int64)


def evenly(size: int, limit: int) -> list[int]:
    """Return the numbers of at most `limit` of `size` rows, evenly spaced."""
    numbers: list[int] = np.linspace(0, size - 1, min(size, limit)).round().astype(int).tolist()
    return numbers


def _read_arrays(rows: datasets.Dataset, name: str) -> tuple[NDArray[Any], NDArray[np.bool_]]:
    """Return the arrays (N, …) of a column, and which rows (N,) have one; raise ValueError for NaN or infinity."""
    shape = array_shape(rows.features[name])
    column = rows.select_columns([name]).with_format("arrow")[:][name].combine_chunks()
    values = column.drop_null()
    for _ in shape:
        values = values.flatten()
    present = column.is_valid().to_numpy(zero_copy_only=False)
    numbers = values.to_numpy()
    dtype = np.uint8 if numbers.dtype == np.uint8 else np.float32  # volumes would take four times the memory
    arrays: NDArray[Any] = np.zeros((len(rows), *shape), dtype)
    arrays[present] = numbers.reshape(-1, *shape)
    broken = ~np.isfinite(arrays).all(axis=tuple(range(1, arrays.ndim)))
    if broken.any():
        row = rows[int(broken.argmax())]["id"]
        raise ValueError(
            f"row {row!r}: {name} has NaN or infinity, expected finite numbers, or null for a missing one"
        )
    return arrays, present
