"""Image-text pairs: the rows of a prepared split, either side missing where the data say so."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any, Literal, NamedTuple, Protocol

import datasets
import numpy as np
from PIL import Image

from m3ae.data.images import open_image
from m3ae.data.prepared import load_split

Texts = Literal["one", "all"]


class Visit(Protocol):
    """One use of a sample; every visit has a seed of its own, below 2**63."""

    @property
    def index(self) -> int: ...  # noqa: D102

    @property
    def seed(self) -> int: ...  # noqa: D102

    @property
    def epoch(self) -> int: ...  # noqa: D102


Views = tuple[Image.Image | None, ...]


class Pair(NamedTuple):
    """An image and a text that belong together; None is missing.

    Attributes:
        id: Name of the row in the prepared data.
        image: As stored: neither decoded nor resized yet. For a model of several views all of the row's views, each of
            which may be None.
        text: One of the row's texts.
        image_id: Digest of the encoded image or images, 0 without one.
        text_id: Digest of the text, 0 without one.
        seed: Decides crop and masks of this visit.
    """

    id: str
    image: Image.Image | Views | None
    text: str | None
    image_id: int
    text_id: int
    seed: int

    @property
    def views(self) -> Views:
        """The image, or all of the row's views."""
        return self.image if isinstance(self.image, tuple) else (self.image,)

    @property
    def picture(self) -> Image.Image:
        """The first view that is present.

        Raises:
            StopIteration: There is none.
        """
        return next(view for view in self.views if view is not None)


@dataclass(frozen=True)
class PairColumns:
    """The columns of a prepared set that make pairs.

    Attributes:
        images: Columns that hold the row's views.
        texts: Column with a list of texts or one text, or columns with one text each, which are joined by a blank
            (a question and its answer); without any, pairs have no text.
        views: Names of the model's views: a pair has all images whose columns have these names, in this order. Of a
            model of one image a pair has one of the images.

    Raises:
        ValueError: A column of images is none of the views.
    """

    images: tuple[str, ...]
    texts: tuple[str, ...]
    views: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        if self.views and not set(self.images) <= set(self.views):
            raise ValueError(
                f"image_columns: got {list(self.images)} with data.views=all, expected some of the views of the main "
                f"set, {list(self.views)}"
            )

    @classmethod
    def of(
        cls, image_columns: Sequence[str], text_column: str | Sequence[str] | None, views: Sequence[str] = ()
    ) -> PairColumns:
        """Read the columns as a configuration names them."""
        texts = (text_column,) if isinstance(text_column, str) else tuple(text_column or ())
        return cls(tuple(image_columns), texts, tuple(views))

    @property
    def names(self) -> list[str]:
        """All columns that are read."""
        return ["id", *self.images, *self.texts]

    def check(self, folder: Path, features: Mapping[str, Any]) -> None:
        """Raise ValueError if a column is missing, or holds lists of texts that cannot be joined."""
        for column in self.names:
            if column not in features:
                raise ValueError(
                    f"{folder} has no column {column!r}; it has {', '.join(features)}. "
                    "Set data.image_columns and data.text_column."
                )
            if len(self.texts) > 1 and column in self.texts and features[column] != datasets.Value("string"):
                raise ValueError(
                    f"data.text_column: column {column!r} of {folder} holds {features[column]}, and only columns of "
                    f"one text each can be joined; got {list(self.texts)}. Name that column alone."
                )

    def texts_of(self, row: Mapping[str, Any]) -> list[str]:
        """Return the texts of a row."""
        cells = [row[column] for column in self.texts]
        if len(cells) == 1 and not isinstance(cells[0], str):
            return [text for text in cells[0] or [] if text]
        joined = " ".join(cell for cell in cells if cell)
        return [joined] if joined else []

    def pair(self, row: Mapping[str, Any], seed: int, view: int, text: int) -> Pair:
        """Make a pair of a row with undecoded images; `view` and `text` choose modulo the number there is."""
        stored = {column: cell["bytes"] for column in self.images if (cell := row[column]) and cell["bytes"]}
        texts = self.texts_of(row)
        chosen_text = texts[text % len(texts)] if texts else None
        images = list(stored.values())
        if images and not self.views:
            images = [images[view % len(images)]]
        opened: Image.Image | Views | None = None
        if images and self.views:
            opened = tuple(open_image(stored[name], row["id"]) if name in stored else None for name in self.views)
        elif images:
            opened = open_image(images[0], row["id"])
        return Pair(
            id=row["id"],
            image=opened,
            text=chosen_text,
            image_id=digest(b"".join(images)) if images else 0,
            text_id=digest(chosen_text.encode()) if chosen_text else 0,
            seed=seed,
        )

    def draw(self, row: Mapping[str, Any], seed: int, text: int | None = None) -> Pair:
        """Make the pair of one visit: its seed draws the view, and the text if none is given."""
        return self.pair(row, seed, view=seed & 0xFFFFFFFF, text=drawn_text(seed) if text is None else text)


class PairDataset:
    """Rows of a prepared split as pairs.

    Args:
        folder: The prepared folder.
        split: Name of the split.
        image_columns: Columns that hold the row's views; of those present, training draws one at every visit, and
            evaluation takes the first.
        text_column: Column with a list of texts or one text, or several columns to be joined; None leaves texts out.
        limit: Keep this many rows, evenly spaced over the split; all if None.
        texts: Whether a row is a sample of which a visit draws `one` text, or `all` its texts are samples.
        views: Names of the model's views, see `PairColumns`.

    Raises:
        FileNotFoundError: There is no such prepared folder.
        ValueError: There is no such split or column, or it holds neither images nor texts.
    """

    def __init__(
        self,
        folder: Path,
        split: str,
        image_columns: Sequence[str],
        text_column: str | Sequence[str] | None,
        limit: int | None = None,
        texts: Texts = "one",
        views: Sequence[str] = (),
    ) -> None:
        rows = load_split(folder, split)
        self.columns = PairColumns.of(image_columns, text_column, views)
        self.columns.check(folder, rows.features)
        if limit is not None and limit < len(rows):
            rows = rows.select(np.linspace(0, len(rows) - 1, limit).round().astype(int))
        self.rows = rows.select_columns(self.columns.names)
        self.split = split
        self._sample_rows: np.ndarray | None = None
        if texts == "all":
            self._sample_rows = np.repeat(np.arange(len(rows)), np.maximum(np.diff(self._text_starts), 1))

    def __len__(self) -> int:
        return len(self.rows) if self._sample_rows is None else len(self._sample_rows)

    def __getitem__(self, visit: Visit) -> Pair:
        """Load the sample `visit.index`, choosing its view, and its text where it is not chosen, with `visit.seed`."""
        row, text = self._locate(visit.index)
        return self.columns.draw(self.rows[row], visit.seed, text)

    def first(self, index: int, seed: int) -> Pair:
        """Load the first view and the first text of a row."""
        return self.columns.pair(self.rows[index], seed, view=0, text=0)

    def length(self, visit: Visit) -> int:
        """Return the number of characters of the text that `self[visit]` has, without loading the row."""
        row, text = self._locate(visit.index)
        start, stop = self._text_starts[row : row + 2]
        chosen = drawn_text(visit.seed) if text is None else text
        return int(self._text_lengths[start + chosen % (stop - start)]) if stop > start else 0

    def texts(self) -> list[str]:
        """Return all texts."""
        return [text for texts in self._texts_by_row() for text in texts]

    def _locate(self, index: int) -> tuple[int, int | None]:
        """Return the row of a sample, and which of its texts it is; None if the visit is to draw one."""
        if self._sample_rows is None:
            return index, None
        row = int(self._sample_rows[index])
        return row, index - int(np.searchsorted(self._sample_rows, row))

    def _texts_by_row(self) -> Iterator[list[str]]:
        if not self.columns.texts:
            return iter([[]] * len(self.rows))
        return map(self.columns.texts_of, self.rows.select_columns(list(self.columns.texts)))

    @cached_property
    def _text_starts(self) -> np.ndarray:
        """Position of each row's first text among all texts, and their number: shape (rows + 1,)."""
        return np.cumsum([0, *map(len, self._texts_by_row())])

    @cached_property
    def _text_lengths(self) -> np.ndarray:
        return np.array([len(text) for texts in self._texts_by_row() for text in texts], dtype=np.int64)


def drawn_text(seed: int) -> int:
    """Return the number that chooses a visit's text, of other bits of its seed than those that choose the view."""
    return seed >> 32


def digest(content: bytes) -> int:
    """Return a number below 2**56 that differs for different contents."""
    return int.from_bytes(hashlib.blake2b(content, digest_size=7).digest(), "little")
