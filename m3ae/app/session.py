"""What the app serves: models by what they can do, prepared sets, and the runs that have made the models."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any

import datasets
from PIL import Image
from transformers import PreTrainedTokenizerBase

from m3ae.data.pairs import PairColumns
from m3ae.data.prepared import image_columns, load_manifest, load_split
from m3ae.images.files import decode_image
from m3ae.inference.inputs import find_model, load_generator, load_model, saved_class
from m3ae.inference.search import SEARCHING, Searching
from m3ae.models.finetuned import M3AEForQuestionAnswering
from m3ae.models.generation import M3AEForGeneration
from m3ae.models.pretraining import M3AEForPreTraining
from m3ae.models.processing import M3AEProcessor

NUM_EXAMPLES = 8


@dataclass(frozen=True)
class Example:
    """A row of a prepared set: its first image, text and question, where it has them."""

    image: Image.Image
    text: str
    question: str


@dataclass(frozen=True)
class PreparedSet:
    """A prepared folder; `split` is the one that examples and rows are taken from."""

    folder: Path
    split: str

    @cached_property
    def rows(self) -> datasets.Dataset:
        """The rows of the split, with undecoded images."""
        return load_split(self.folder, self.split)

    @cached_property
    def image_columns(self) -> list[str]:
        """The columns that hold images."""
        return image_columns(self.rows.features)

    @cached_property
    def examples(self) -> list[Example]:
        """Some rows with an image, spread over the split."""
        found: list[Example] = []
        step = max(1, len(self.rows) // NUM_EXAMPLES)
        texts = PairColumns.of((), "text" if "text" in self.rows.features else None)
        for place in range(0, len(self.rows), step):
            row = self.rows[place]
            content = next((cell["bytes"] for name in self.image_columns if (cell := row[name])), None)
            if content is not None and len(found) < NUM_EXAMPLES:
                own = texts.texts_of(row) if texts.texts else []
                picture = decode_image(content, row["id"]).convert("RGB")
                found.append(Example(picture, own[0] if own else "", row.get("question") or ""))
        return found


@dataclass
class Session:
    """Everything that the tabs use; loaded once.

    Attributes:
        masked: For reconstructions.
        answering: For questions.
        searching: For search, with the folder or hub name that it is of.
        latent: For generation, with its tokenizer.
        sets: Prepared sets.
        runs: Folders of the runs that have made the models.
    """

    masked: tuple[M3AEForPreTraining, M3AEProcessor] | None = None
    answering: tuple[M3AEForQuestionAnswering, M3AEProcessor] | None = None
    searching: tuple[Searching, M3AEProcessor, str] | None = None
    latent: tuple[M3AEForGeneration, PreTrainedTokenizerBase | None] | None = None
    sets: list[PreparedSet] = field(default_factory=list)
    runs: list[Path] = field(default_factory=list)

    def examples(self, *, questions: bool = False) -> list[Example]:
        """Return examples of the first set that has images, and questions if these are wanted."""
        for prepared in self.sets:
            own = prepared.examples if prepared.image_columns else []
            if own and (not questions or any(example.question for example in own)):
                return own
        return self.examples() if questions else []

    def set_of(self, columns: Sequence[str]) -> PreparedSet | None:
        """Return the first set that has these columns."""
        return next((own for own in self.sets if not set(columns) - set(own.rows.features)), None)


def open_session(models: Sequence[str], sets: Sequence[Path], split: str, device: str | None = None) -> Session:
    """Load models and open prepared sets.

    Raises:
        FileNotFoundError: There is no such prepared folder.
        ValueError: There is no such model, two can do the same, or one can do nothing that the app shows.
    """
    session = Session()
    for name in models:
        saved, loaded = saved_class(name), dict[str, Any]()
        if saved == "M3AEForGeneration":
            loaded["latent"] = load_generator(name, device)
        elif saved == "M3AEForQuestionAnswering":
            loaded["answering"] = load_model(name, [M3AEForQuestionAnswering], device)
        elif saved in {own.__name__ for own in SEARCHING}:
            model, processor = load_model(name, SEARCHING, device)
            loaded["searching"] = (model, processor, name)
            if isinstance(model, M3AEForPreTraining):
                loaded["masked"] = (model, processor)
        else:
            raise ValueError(f"--model {name} is {saved}, for which the app has no tab")
        for what, own in loaded.items():
            if getattr(session, what) is not None and what != "searching":
                raise ValueError(f"--model {name} is {saved}, as is another one: give one of each")
            setattr(session, what, own)
        folder = Path(find_model(name)).parent
        if (folder / "metrics.jsonl").is_file():
            session.runs.append(folder)
    for folder in sets:
        splits = [own for own, info in load_manifest(folder).splits.items() if info.rows]
        if not splits:
            raise ValueError(f"{folder} has no rows")
        session.sets.append(PreparedSet(folder, split if split in splits else splits[0]))
    return session
