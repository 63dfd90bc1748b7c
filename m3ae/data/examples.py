"""Examples: rows of a prepared split, each with what a model is to say about it."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, NamedTuple

from m3ae.data.pairs import Pair, PairColumns, drawn_text
from m3ae.data.prepared import image_columns, load_split
from m3ae.data.samples import Visit, evenly
from m3ae.files import digest


class Example(NamedTuple):
    """What is asked about a row, and what is true.

    Attributes:
        row: Position in the split.
        id: Name of the example; the row's where there is only one.
        texts: Texts of which a visit has one; none for an example without text.
        target: The truth, in whatever form the task learns from.
        cells: What else is known, for metrics and predictions.
    """

    row: int
    id: str
    texts: tuple[str, ...]
    target: Any
    cells: dict[str, Any]


class Sample(NamedTuple):
    """A visit of an example."""

    pair: Pair
    target: Any


class SplitRows:
    """A prepared split: what stands beside the images at once, an image when it is asked for.

    Args:
        folder: The prepared folder.
        split: Name of the split.
        columns: Columns that hold images, and texts if they are the rows' own.

    Raises:
        FileNotFoundError: There is no such prepared folder.
        ValueError: There is no such split or column, or the split is empty.
    """

    def __init__(self, folder: Path, split: str, columns: PairColumns) -> None:
        rows = load_split(folder, split)
        columns.check(folder, rows.features)
        self.folder, self.split, self.columns, self.features = folder, split, columns, rows.features
        self._cells = rows.remove_columns(image_columns(rows.features))
        self._images = rows.select_columns(["id", *columns.images])
        self._image_columns = replace(columns, texts=())

    def __len__(self) -> int:
        return len(self._cells)

    def cells(self) -> Iterator[dict[str, Any]]:
        """Yield every row without its images."""
        return iter(self._cells)

    def pair(self, row: int, seed: int) -> Pair:
        """Load the image of a row, without text; the seed draws the view, 0 takes the first."""
        return self._image_columns.draw(self._images[row], seed)


class ExampleDataset:
    """Examples of a split as a map-style dataset of visits; a visit with seed 0 has the first view and text.

    Args:
        rows: The split.
        examples: Some of its examples.
        limit: Keep this many, evenly spaced; all if None.
    """

    def __init__(self, rows: SplitRows, examples: Sequence[Example], limit: int | None = None) -> None:
        if limit is not None and limit < len(examples):
            examples = [examples[i] for i in evenly(len(examples), limit)]
        self.rows, self.examples = rows, list(examples)

    def __len__(self) -> int:
        return len(self.examples)

    def __getitem__(self, visit: Visit) -> Sample:
        example = self.examples[visit.index]
        pair = self.rows.pair(example.row, visit.seed)._replace(id=example.id)
        if example.texts:
            text = self._text(visit)
            pair = pair._replace(text=text, text_id=digest(text.encode()))
        return Sample(pair, example.target)

    def length(self, visit: Visit) -> int:
        """Return the number of characters of the text that `self[visit]` has."""
        return len(self._text(visit))

    def texts(self) -> list[str]:
        """Return all texts."""
        return [text for example in self.examples for text in example.texts]

    def _text(self, visit: Visit) -> str:
        texts = self.examples[visit.index].texts
        return texts[drawn_text(visit.seed) % len(texts)] if texts else ""


class OtherImages:
    """The same examples, each with the image of another one: what does not depend on the image stays right.

    The image is that of the example half the dataset away or, if that is the same image or none, of the next after it
    that differs. An example without image stays without.

    Args:
        dataset: The examples.
    """

    def __init__(self, dataset: ExampleDataset) -> None:
        self.dataset = dataset

    def __len__(self) -> int:
        return len(self.dataset)

    def __getitem__(self, visit: Visit) -> Sample:
        own, examples = self.dataset[visit], self.dataset.examples
        start = visit.index + max(1, len(examples) // 2)
        for step in range(len(examples) if own.pair.image is not None else 0):
            other = self.dataset.rows.pair(examples[(start + step) % len(examples)].row, visit.seed)
            if other.image is not None and other.image_id != own.pair.image_id:
                return own._replace(pair=own.pair._replace(image=other.image, image_id=other.image_id))
        return own
