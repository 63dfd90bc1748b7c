"""Image-text pairs: from a prepared split to a model's keyword arguments, either side missing where the data say so.

Shapes: B batch, N patches, L text tokens.
"""

from __future__ import annotations

import hashlib
import io
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple, Protocol

import datasets
import numpy as np
import torch
from PIL import Image
from torch import Tensor

from m3ae.data.prepared import load_split
from m3ae.models.processing import M3AEProcessor


class Visit(Protocol):
    """One use of a sample; every visit has a seed of its own."""

    @property
    def index(self) -> int: ...  # noqa: D102

    @property
    def seed(self) -> int: ...  # noqa: D102


class Pair(NamedTuple):
    """An image and a text that belong together; None is missing.

    Attributes:
        id: Name of the row in the prepared data.
        image: As stored, not yet resized.
        text: One of the row's texts.
        image_id: Digest of the encoded image, 0 without one.
        text_id: Digest of the text, 0 without one.
        seed: Decides crop and masks of this visit.
    """

    id: str
    image: Image.Image | None
    text: str | None
    image_id: int
    text_id: int
    seed: int


class PairDataset:
    """Rows of a prepared split as pairs.

    Args:
        folder: The prepared folder.
        split: Name of the split.
        image_columns: Columns that hold the row's views; of those present, training draws one at every visit, and
            evaluation takes the first.
        text_column: Column with a list of texts or one text; None leaves texts out.
        limit: Keep this many rows, evenly spaced over the split; all if None.

    Raises:
        FileNotFoundError: There is no such prepared folder.
        ValueError: There is no such split or column, or it holds neither images nor texts.
    """

    def __init__(
        self,
        folder: Path,
        split: str,
        image_columns: Sequence[str],
        text_column: str | None,
        limit: int | None = None,
    ) -> None:
        rows = load_split(folder, split)
        for column in [*image_columns, *([] if text_column is None else [text_column])]:
            if column not in rows.column_names:
                raise ValueError(
                    f"{folder} has no column {column!r}; it has {', '.join(rows.column_names)}. "
                    "Set data.image_columns and data.text_column."
                )
        if limit is not None and limit < len(rows):
            rows = rows.select(np.linspace(0, len(rows) - 1, limit).round().astype(int))
        for column in image_columns:
            rows = rows.cast_column(column, datasets.Image(decode=False))
        self.rows = rows.select_columns(["id", *image_columns, *([] if text_column is None else [text_column])])
        self.image_columns, self.text_column = tuple(image_columns), text_column
        self.split = split

    def __len__(self) -> int:
        return len(self.rows)

    def __getitem__(self, visit: Visit) -> Pair:
        """Load the row `visit.index`, choosing its view and text with `visit.seed`."""
        draw = np.random.default_rng([visit.seed, 0])
        return self._load(visit.index, visit.seed, float(draw.random()), float(draw.random()))

    def first(self, index: int, seed: int) -> Pair:
        """Load the first view and the first text of a row."""
        return self._load(index, seed, 0.0, 0.0)

    def texts(self) -> list[str]:
        """Return all texts."""
        if self.text_column is None:
            return []
        texts: list[str] = []
        for cell in self.rows.select_columns([self.text_column])[self.text_column]:
            texts.extend([cell] if isinstance(cell, str) else cell or [])
        return texts

    def _load(self, index: int, seed: int, which_view: float, which_text: float) -> Pair:
        row = self.rows[index]
        views = [cell["bytes"] for column in self.image_columns if (cell := row[column]) and cell["bytes"]]
        cell = row[self.text_column] if self.text_column else None
        texts = [cell] if isinstance(cell, str) else list(cell or [])
        view = views[int(which_view * len(views))] if views else None
        text = texts[int(which_text * len(texts))] if texts else None
        return Pair(
            id=row["id"],
            image=Image.open(io.BytesIO(view)) if view else None,
            text=text or None,
            image_id=_digest(view) if view else 0,
            text_id=_digest(text.encode()) if text else 0,
            seed=seed,
        )


def _digest(content: bytes) -> int:
    return int.from_bytes(hashlib.blake2b(content, digest_size=7).digest(), "little")


class PairCollator:
    """Batches pairs and draws the noise of their visits: a sample's masks do not depend on its batch.

    Args:
        processor: Resizes images and tokenizes texts.
        num_patches: Patches N of an image.
        max_text_length: Longest text in tokens, special ones included; longer ones are cut.
        crop_scale: Range of the share of the image's area that is cropped at random before resizing.
    """

    def __init__(
        self,
        processor: M3AEProcessor,
        num_patches: int,
        max_text_length: int,
        crop_scale: tuple[float, float] = (1.0, 1.0),
    ) -> None:
        self.processor, self.num_patches = processor, num_patches
        self.max_text_length, self.crop_scale = max_text_length, crop_scale

    def __call__(self, pairs: Sequence[Pair]) -> dict[str, Tensor]:
        """Return keyword arguments of `M3AEForPreTraining`; presence masks only where something is missing."""
        draws = [np.random.default_rng([pair.seed, 1]) for pair in pairs]
        batch = self._images(pairs, draws) | self._texts(pairs)
        for modality in ("image", "text"):
            there = torch.tensor([getattr(pair, modality) is not None for pair in pairs])
            if not there.all():
                batch[f"{modality}_present"] = there
            batch[f"{modality}_ids"] = torch.tensor([getattr(pair, f"{modality}_id") for pair in pairs])
        length = batch["input_ids"].shape[1]
        batch["match_noise"] = _stack(draws, 2)
        batch["image_noise"] = _stack(draws, self.num_patches)
        batch["text_noise"] = _stack(draws, length, 2)
        return batch

    def _images(self, pairs: Sequence[Pair], draws: Sequence[np.random.Generator]) -> dict[str, Tensor]:
        images = [
            random_crop(pair.image, draw, self.crop_scale)
            for pair, draw in zip(pairs, draws, strict=True)
            if pair.image
        ]
        side = self.processor.image_processor.crop_size["height"]
        values = torch.zeros(len(pairs), 3, side, side)
        if images:
            there = torch.tensor([pair.image is not None for pair in pairs])
            values[there] = self.processor.image_processor(images, return_tensors="pt")["pixel_values"]
        return {"pixel_values": values}

    def _texts(self, pairs: Sequence[Pair]) -> dict[str, Tensor]:
        encoded = self.processor.tokenizer(
            [pair.text or "" for pair in pairs],
            padding=True,
            truncation=True,
            max_length=self.max_text_length,
            pad_to_multiple_of=None if self.max_text_length % 8 else 8,  # few lengths, so compiled shapes recur
            return_special_tokens_mask=True,
            return_tensors="pt",
        )
        return {name: encoded[name] for name in ("input_ids", "attention_mask", "special_tokens_mask")}


def random_crop(image: Image.Image, draw: np.random.Generator, scale: tuple[float, float]) -> Image.Image:
    """Cut out a random share of the area, drawn from `scale`, of the image's own aspect ratio."""
    factor = draw.uniform(*scale) ** 0.5
    left, top = draw.random(2)
    if factor == 1.0:
        return image
    width, height = max(1, round(image.width * factor)), max(1, round(image.height * factor))
    x, y = round(left * (image.width - width)), round(top * (image.height - height))
    return image.crop((x, y, x + width, y + height))


def _stack(draws: Sequence[np.random.Generator], *shape: int) -> Tensor:
    return torch.from_numpy(np.stack([draw.random(shape, dtype=np.float32) for draw in draws]))
