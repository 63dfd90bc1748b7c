"""Samples: rows of prepared data as mappings from the names of modalities to their cells, any of them missing.

A modality reads one column of the prepared data, or several: of the views of a study a visit draws one, of several
texts, too; columns of one text each are joined. Images stay encoded until they are batched.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any, Generic, Literal, NamedTuple, Protocol, TypeVar

import datasets
import numpy as np
from numpy.typing import NDArray

from m3ae.data.prepared import array_shape, load_split
from m3ae.files import digest
from m3ae.images.files import StoredImage
from m3ae.models.modalities import KINDS, Modality
from m3ae.models.modalities.text import texts_of

Texts = Literal["one", "all"]
SampleT = TypeVar("SampleT", covariant=True)


class Visit(Protocol):
    """One use of a sample; every visit has a seed of its own, below 2**63."""

    @property
    def index(self) -> int: ...  # noqa: D102

    @property
    def seed(self) -> int: ...  # noqa: D102

    @property
    def epoch(self) -> int: ...  # noqa: D102


class Sample(NamedTuple):
    """One visit of a row.

    Attributes:
        id: Name of the row in the prepared data, or of what is asked about it.
        cells: Modality → cell, as `m3ae.models.modalities.Modality.read` returns it; None where it is missing.
        seed: Decides everything random about this visit.
        target: What a task is to learn of the row.
    """

    id: str
    cells: dict[str, Any]
    seed: int
    target: Any = None

    @property
    def present(self) -> NDArray[np.bool_]:
        """Which modalities (M,) the sample has, in the order of `cells`."""
        return np.array([cell is not None for cell in self.cells.values()], dtype=bool)


@dataclass(frozen=True)
class Columns:
    """The columns of prepared data that make samples.

    Attributes:
        modalities: Name → modality.
        columns: Name → the columns that a modality reads; the one of its own name if it is left out.
    """

    modalities: Mapping[str, Modality]
    columns: Mapping[str, tuple[str, ...]]

    @classmethod
    def of(
        cls, modalities: Mapping[str, Modality], columns: Mapping[str, Sequence[str] | str] | None = None
    ) -> Columns:
        """Read the columns as a configuration names them: one, or several."""
        named = columns or {}
        read = {name: named.get(name, name) for name in modalities}
        return cls(modalities, {name: (own,) if isinstance(own, str) else tuple(own) for name, own in read.items()})

    @property
    def names(self) -> list[str]:
        """All columns that are read."""
        return ["id", *dict.fromkeys(column for columns in self.columns.values() for column in columns)]

    @property
    def text_columns(self) -> list[str]:
        """The columns of texts."""
        names = [name for name, modality in self.modalities.items() if modality.is_text]
        return list(dict.fromkeys(column for name in names for column in self.columns[name]))

    def texts_of(self, row: Mapping[str, Any]) -> list[str]:
        """Return all texts of a row."""
        names = [name for name, modality in self.modalities.items() if modality.is_text]
        return [text for name in names for text in texts_of([row[column] for column in self.columns[name]])]

    def check(self, folder: Path, features: Mapping[str, Any]) -> None:
        """Raise ValueError if a column is missing or of another kind, or lists of texts are to be joined."""
        for name, columns in self.columns.items():
            modality = self.modalities[name]
            for column in columns:
                if column not in features:
                    raise ValueError(f"{folder} has no column {column!r}; it has {', '.join(features)}.")
                types = column_types(features[column])
                if types.isdisjoint(modality.columns):
                    kinds = [kind for kind, own in KINDS.items() if not types.isdisjoint(own.columns)]
                    raise ValueError(
                        f"Column {column!r} of {folder} holds {features[column]}, expected {modality.kind}; it can be "
                        f"{' or '.join(kinds) or 'no modality'}."
                    )
                if len(columns) > 1 and modality.is_text and "text" not in types:
                    raise ValueError(
                        f"Column {column!r} of {folder} holds {features[column]}, and only columns of one text each "
                        f"can be joined; got {list(columns)}. Name that column alone."
                    )

    def sample(self, row: Mapping[str, Any], seed: int, choice: int | None = None) -> Sample:
        """Make the sample of one visit of a row.

        Args:
            row: The columns' cells, images as prepared data store them.
            seed: Seed of the visit.
            choice: Seed that draws view and text; that of the visit if None, the first ones if 0.

        Raises:
            ValueError: A cell does not fit its modality.
        """
        chosen = seed if choice is None else choice
        cells: dict[str, Any] = {}
        for name, modality in self.modalities.items():
            stored = [_stored(row[column], row["id"]) for column in self.columns[name]]
            try:
                cells[name] = modality.read(stored, chosen)
            except ValueError as error:
                raise ValueError(f"row {row['id']!r}: {error}") from error
        return Sample(row["id"], cells, seed)


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


class RowColumns(Protocol[SampleT]):
    """What makes samples of rows."""

    @property
    def names(self) -> list[str]: ...  # noqa: D102

    @property
    def text_columns(self) -> list[str]: ...  # noqa: D102

    def check(self, folder: Path, features: Mapping[str, Any]) -> None: ...  # noqa: D102

    def sample(self, row: Mapping[str, Any], seed: int, choice: int | None = None) -> SampleT: ...  # noqa: D102

    def texts_of(self, row: Mapping[str, Any]) -> list[str]: ...  # noqa: D102


class RowDataset(Generic[SampleT]):
    """Rows of a prepared split as a map-style dataset of visits.

    Args:
        folder: The prepared folder.
        split: Name of the split.
        columns: What is read, and made of a row.
        limit: Keep this many rows, evenly spaced over the split; all if None.
        texts: Whether a row is a sample of which a visit draws `one` text, or `all` its texts are samples.

    Raises:
        FileNotFoundError: There is no such prepared folder.
        ValueError: There is no such split or column, or a column is of another kind.
    """

    def __init__(
        self,
        folder: Path,
        split: str,
        columns: RowColumns[SampleT],
        *,
        limit: int | None = None,
        texts: Texts = "one",
    ) -> None:
        rows = load_split(folder, split)
        columns.check(folder, rows.features)
        if limit is not None and limit < len(rows):
            rows = rows.select(evenly(len(rows), limit))
        self.columns, self.split = columns, split
        arrays = [name for name in columns.names if "array" in column_types(rows.features[name])]
        self._arrays = {name: _read_arrays(rows, name) for name in arrays}
        self.rows = rows.select_columns([name for name in columns.names if name not in arrays])
        self._sample_rows: np.ndarray | None = None
        if texts == "all":
            self._sample_rows = np.repeat(np.arange(len(rows)), np.maximum(np.diff(self._text_starts), 1))

    def __len__(self) -> int:
        return len(self.rows) if self._sample_rows is None else len(self._sample_rows)

    def __getitem__(self, visit: Visit) -> SampleT:
        """Load the sample `visit.index`; `visit.seed` draws view and text, and 0 takes the first."""
        row, text = self._locate(visit.index)
        choice = None if text is None else text << 32 | visit.seed & 0xFFFFFFFF
        return self.columns.sample(self._row(row), visit.seed, choice)

    def first(self, index: int, seed: int) -> SampleT:
        """Load the first view and the first text of a row, for a visit with this seed."""
        return self.columns.sample(self._row(index), seed, choice=0)

    def length(self, visit: Visit) -> int:
        """Return the number of characters of the text that `self[visit]` has, without loading the row."""
        row, text = self._locate(visit.index)
        start, stop = self._text_starts[row : row + 2]
        chosen = visit.seed >> 32 if text is None else text
        return int(self._text_lengths[start + chosen % (stop - start)]) if stop > start else 0

    def texts(self) -> list[str]:
        """Return all texts."""
        return [text for texts in self._texts_by_row() for text in texts]

    def _row(self, row: int) -> dict[str, Any]:
        cells: dict[str, Any] = self.rows[row]
        for name, (values, present) in self._arrays.items():
            cells[name] = values[row] if present[row] else None
        return cells

    def _locate(self, index: int) -> tuple[int, int | None]:
        """Return the row of a sample, and which of its texts it is; None if the visit is to draw one."""
        if self._sample_rows is None:
            return index, None
        row = int(self._sample_rows[index])
        return row, index - int(np.searchsorted(self._sample_rows, row))

    def _texts_by_row(self) -> Iterator[list[str]]:
        columns = self.columns.text_columns
        if not columns:
            return iter([[]] * len(self.rows))
        return map(self.columns.texts_of, self.rows.select_columns(columns))

    @cached_property
    def _text_starts(self) -> np.ndarray:
        """Position of each row's first text among all texts, and their number: shape (rows + 1,)."""
        return np.cumsum([0, *map(len, self._texts_by_row())])

    @cached_property
    def _text_lengths(self) -> np.ndarray:
        return np.array([len(text) for texts in self._texts_by_row() for text in texts], dtype=np.int64)


class ColumnDataset(RowDataset[Sample]):
    """Rows of a prepared split as samples of some modalities; see `RowDataset`."""

    columns: Columns

    @property
    def ids(self) -> list[str]:
        """The rows' ids."""
        ids: list[str] = self.rows["id"][:]
        return ids

    def texts_of(self, name: str) -> list[list[str]]:
        """Return the texts of each row, of a modality that is one."""
        columns = self.columns.columns[name]
        return [texts_of([row[column] for column in columns]) for row in self.rows.select_columns(list(columns))]


def read_texts(folder: Path, split: str, columns: Sequence[str]) -> list[str]:
    """Return the texts of a split: those of each column, or of lists of texts, column by column.

    Raises:
        FileNotFoundError: There is no such prepared folder.
        ValueError: There is no such split or column, or a column holds something else.
    """
    rows = load_split(folder, split)
    for column in columns:
        if column not in rows.features or column_types(rows.features[column]).isdisjoint(KINDS["text"].columns):
            texts = [name for name, own in rows.features.items() if column_types(own) & {"text", "texts"}]
            raise ValueError(f"{folder} has no column of texts {column!r}; it has {', '.join(texts)}.")
    return [text for column in columns for cell in rows[column] for text in texts_of([cell])]


def evenly(size: int, limit: int) -> list[int]:
    """Return the numbers of at most `limit` of `size` rows, evenly spaced."""
    numbers: list[int] = np.linspace(0, size - 1, min(size, limit)).round().astype(int).tolist()
    return numbers


def _read_arrays(rows: datasets.Dataset, name: str) -> tuple[NDArray[np.float32], NDArray[np.bool_]]:
    """Return the arrays (N, …) of a column, and which rows (N,) have one."""
    shape = array_shape(rows.features[name])
    column = rows.select_columns([name]).with_format("arrow")[:][name].combine_chunks()
    values = column.drop_null()
    for _ in shape:
        values = values.flatten()
    present = column.is_valid().to_numpy(zero_copy_only=False)
    arrays = np.zeros((len(rows), *shape), np.float32)
    arrays[present] = values.to_numpy().reshape(-1, *shape)
    return arrays, present


def identity(cell: Any | None) -> int:
    """Return a number below 2**56 that is the same for the same image or text; 0 for a missing one."""
    if cell is None:
        return 0
    return digest(cell.content if isinstance(cell, StoredImage) else cell.encode())
