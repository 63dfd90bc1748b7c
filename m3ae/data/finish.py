"""The work on single rows, done in worker processes: images decoded, checked and encoded, texts cleaned."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import lru_cache, partial
from pathlib import Path
from typing import Any

from PIL import Image

from m3ae.data.prepared import Rejected
from m3ae.data.words import count_words
from m3ae.images.files import UnreadableImageError, encode_image, load_below

Row = dict[str, Any]
Outcome = tuple[Row | None, list[Rejected]]  # the finished row, if it is kept, and everything that was left out of it
ImageCell = Path | bytes | Callable[[], Image.Image]

ROWS_PER_TASK = 16


def cut_tasks(rows: Sequence[Row], image_columns: Sequence[str]) -> list[list[Row]]:
    """Cut rows into tasks; rows on end that share an image stay together, so that it is decoded once."""
    tasks: list[list[Row]] = []
    for row in rows:
        if tasks and (len(tasks[-1]) < ROWS_PER_TASK or _share_image(row, tasks[-1][-1], image_columns)):
            tasks[-1].append(row)
        else:
            tasks.append([row])
    return tasks


def _share_image(row: Row, other: Row, image_columns: Sequence[str]) -> bool:
    return any(row[column] is not None and row[column] == other[column] for column in image_columns)


@dataclass(frozen=True)
class RowFinisher:
    """A picklable function of some rows that encodes their images and cleans their texts.

    Attributes:
        image_columns: columns that hold images.
        roots: folders that the image files must lie in; none for sources that generate images.
        shorter_side: larger images are shrunk to this many pixels; None keeps them as they are.
        quality: of the JPEG.
        min_words: shorter texts are left out.
    """

    image_columns: list[str]
    roots: list[Path]
    shorter_side: int | None
    quality: int
    min_words: int

    def __call__(self, rows: Sequence[Row]) -> list[Outcome]:
        """Return one outcome per row; a row of which nothing usable is left is None."""
        encode = lru_cache(maxsize=8)(
            self._encode
        )  # several rows on end share an image where it has several questions
        return [self._finish(dict(row), encode) for row in rows]

    def _finish(self, row: Row, encode: Callable[[ImageCell], bytes]) -> Outcome:
        dropped = partial(Rejected, row["id"], split=row["split"])
        left_out: list[Rejected] = []
        for column in self.image_columns:
            try:
                row[column] = None if row[column] is None else encode(row[column])
            except UnreadableImageError as error:
                row[column] = None
                left_out.append(dropped(error.reason, column=column, detail=error.detail))
        has_image = any(row[column] is not None for column in self.image_columns)
        if left_out and not has_image:
            details = "; ".join(str(entry.detail) for entry in left_out)
            return None, [dropped(left_out[0].reason, detail=details)]
        texts, reasons = clean_texts(row.get("text"), self.min_words)
        if not has_image and texts is None:
            return None, [dropped("neither image nor text", detail="; ".join(reasons) or None)]
        if "text" in row:
            row["text"] = texts
        return row, left_out + [dropped(reason, column="text") for reason in reasons]

    def _encode(self, cell: ImageCell) -> bytes:
        if isinstance(cell, bytes):
            return cell
        image = load_below(cell, self.roots, name_below(cell, self.roots)) if isinstance(cell, Path) else cell()
        return encode_image(image, self.shorter_side, self.quality)


def name_below(path: Path, roots: Sequence[Path]) -> str:
    """Return a path relative to the first root that it starts with: results do not depend on where the root is."""
    for root in roots:
        if path.is_relative_to(root):
            return path.relative_to(root).as_posix()
    return str(path)


def clean_texts(texts: list[str] | None, min_words: int) -> tuple[list[str] | None, list[str]]:
    """Collapse white space and leave out texts of fewer than `min_words` words (`count_words`).

    Returns:
        The texts kept, or None if there are none, and one reason for each text left out.
    """
    cleaned = [" ".join(text.split()) for text in texts or []]
    kept = [text for text in cleaned if text and count_words(text) >= min_words]
    reasons = ["text too short" if text else "text empty" for text in cleaned if text not in kept]
    return kept or None, reasons
