"""Image-text pairs: the rows of a prepared split, either side missing where the data say so."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import datasets
from PIL import Image

from m3ae.data.samples import RowDataset, Texts
from m3ae.files import digest
from m3ae.images.files import open_image
from m3ae.models.modalities.text import texts_of

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

    @property
    def text_columns(self) -> list[str]:
        """The columns of texts."""
        return list(self.texts)

    def texts_of(self, row: Mapping[str, Any]) -> list[str]:
        """Return the texts of a row."""
        return texts_of([row[column] for column in self.texts])

    def sample(self, row: Mapping[str, Any], seed: int, choice: int | None = None) -> Pair:
        """Make the pair of one visit of a row, see `m3ae.data.samples.Columns.sample`."""
        chosen = seed if choice is None else choice
        return self.pair(row, seed, view=chosen & 0xFFFFFFFF, text=drawn_text(chosen))

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


class PairDataset(RowDataset[Pair]):
    """Rows of a prepared split as pairs; see `RowDataset`.

    Args:
        folder: The prepared folder.
        split: Name of the split.
        image_columns: Columns that hold the row's views; of those present, training draws one at every visit, and
            evaluation takes the first.
        text_column: Column with a list of texts or one text, or several columns to be joined; None leaves texts out.
        limit: Keep this many rows, evenly spaced over the split; all if None.
        texts: Whether a row is a sample of which a visit draws `one` text, or `all` its texts are samples.
        views: Names of the model's views, see `PairColumns`.
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
        super().__init__(folder, split, PairColumns.of(image_columns, text_column, views), limit=limit, texts=texts)


def drawn_text(seed: int) -> int:
    """Return the number that chooses a visit's text, of other bits of its seed than those that choose the view."""
    return seed >> 32
