"""What the app serves: models by what they can do, prepared sets, and the runs that have made the models."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path

import datasets
from PIL import Image
from transformers import PreTrainedTokenizerBase

from m3ae.data.prepared import image_columns, load_manifest, load_split
from m3ae.images.files import decode_image
from m3ae.inference.inputs import find_model, load_any
from m3ae.inference.search import SEARCHING, Searching
from m3ae.models.finetuned import M3AEForClassification, M3AEForQuestionAnswering
from m3ae.models.generation import M3AEForGeneration
from m3ae.models.pretraining import M3AEForPreTraining
from m3ae.models.processing import M3AEProcessor
from m3ae.models.reports import M3AEForReportGeneration

NUM_EXAMPLES = 8
ATTRIBUTES: dict[type, str] = {  # attributes of a session
    M3AEForPreTraining: "masked",
    M3AEForQuestionAnswering: "answering",
    M3AEForClassification: "classifying",
    M3AEForReportGeneration: "reporting",
    M3AEForGeneration: "latent",
}


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
        """Some rows with different images, spread over the split."""
        examples, seen = list[Example](), list[bytes]()
        for number in range(0, len(self.rows), max(1, len(self.rows) // NUM_EXAMPLES)):
            row = self.rows[number]
            content = next((cell["bytes"] for name in self.image_columns if (cell := row[name])), None)
            if content is not None and content not in seen and len(examples) < NUM_EXAMPLES:
                seen.append(content)
                text = row.get("text") or ""
                first = text if isinstance(text, str) else text[0]
                picture = decode_image(content, row["id"]).convert("RGB")
                examples.append(Example(picture, first, row.get("question") or ""))
        return examples


@dataclass
class Session:
    """Everything that the tabs use; loaded once.

    Attributes:
        masked: A model for reconstructions.
        answering: A model for questions.
        classifying: A model for classes.
        reporting: A model for reports.
        searching: A model for search, with its folder or hub name.
        latent: A model for generation, with its tokenizer.
        sets: Prepared sets.
        runs: Folders of the runs that have made the models.
    """

    masked: tuple[M3AEForPreTraining, M3AEProcessor] | None = None
    answering: tuple[M3AEForQuestionAnswering, M3AEProcessor] | None = None
    classifying: tuple[M3AEForClassification, M3AEProcessor] | None = None
    reporting: tuple[M3AEForReportGeneration, M3AEProcessor] | None = None
    searching: tuple[Searching, M3AEProcessor, str] | None = None
    latent: tuple[M3AEForGeneration, PreTrainedTokenizerBase | None] | None = None
    sets: list[PreparedSet] = field(default_factory=list)
    runs: list[Path] = field(default_factory=list)

    def examples(self, *, questions: bool = False) -> list[Example]:
        """Return examples of the first set that has images; with `questions`, a set that has questions comes first."""
        with_images = [prepared.examples for prepared in self.sets if prepared.image_columns and prepared.examples]
        if questions:
            with_images.sort(key=lambda examples: not any(example.question for example in examples))
        return with_images[0] if with_images else []

    def set_of(self, columns: Sequence[str]) -> PreparedSet | None:
        """Return the first set that has these columns."""
        return next((prepared for prepared in self.sets if set(columns) <= set(prepared.rows.features)), None)


def open_session(models: Sequence[str], sets: Sequence[Path], split: str, device: str | None = None) -> Session:
    """Load models and open prepared sets.

    Raises:
        FileNotFoundError: There is no such prepared folder.
        ValueError: There is no such model, two can do the same, or one can do nothing that the app shows.
    """
    session = Session()
    for name in models:
        model, processor = load_any(name, device)
        attribute = ATTRIBUTES.get(type(model))
        if isinstance(model, SEARCHING):
            session.searching = (model, processor, name)
        elif attribute is None:
            raise ValueError(f"--model {name} is {type(model).__name__}, for which the app has no tab")
        if attribute is not None and getattr(session, attribute) is not None:
            raise ValueError(f"--model {name} is {type(model).__name__}, as is another model: give one of each kind")
        if attribute is not None:
            setattr(session, attribute, (model, processor))
        folder = Path(find_model(name)).parent
        if (folder / "metrics.jsonl").is_file():
            session.runs.append(folder)
    for folder in sets:
        splits = [name for name, info in load_manifest(folder).splits.items() if info.rows]
        if not splits:
            raise ValueError(f"{folder} has no rows")
        session.sets.append(PreparedSet(folder, split if split in splits else splits[0]))
    return session
