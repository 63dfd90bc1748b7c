"""The kinds `label`, one of some classes, and `labels`, any number of them."""

from __future__ import annotations

import difflib
import textwrap
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, ClassVar

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.nn import functional as F

from m3ae.models.likelihoods import Bernoulli, Categorical
from m3ae.models.modalities.arrays import Vector
from m3ae.models.modalities.base import Modality, Tensors
from m3ae.models.modalities.options import BatchOptions, ModalityConfig

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from transformers import PreTrainedTokenizerBase


@dataclass(frozen=True)
class LabelModalityConfig(ModalityConfig):
    """The options of a label, and of labels.

    Attributes:
        labels: Names of the classes.
    """

    labels: list[str] | None = None


class Names(Modality):
    """What `label` and `labels` share: classes that have names."""

    config_class = LabelModalityConfig
    config: LabelModalityConfig
    encoders: ClassVar = dict(Vector.encoders)
    decoders: ClassVar = dict(Vector.decoders)

    @classmethod
    def check(cls, owner: str, config: LabelModalityConfig) -> None:
        """Raise ValueError if the options name no classes."""
        super().check(owner, config)
        if not config.labels:
            raise ValueError(
                f"{owner}.labels: the kind {config.kind} needs the names of its classes, got {config.labels!r}."
            )

    def _shape(self) -> tuple[int, ...]:
        return (len(self.names),)

    @property
    def names(self) -> list[str]:
        """Names of the classes, in the order of their numbers."""
        return list(self.config.labels or [])

    def values(self, decoded: Tensor, tokenizer: PreTrainedTokenizerBase | None = None) -> list[Any]:
        """Return the probability of each class by name."""
        return [dict(zip(self.names, row, strict=True)) for row in decoded.tolist()]

    def draw(self, axes: Axes, drawable: Any) -> None:
        """Write the names."""
        axes.text(0.5, 0.5, drawable, ha="center", va="center", fontsize=10, parse_math=False)


class Label(Names):
    """One of some classes. A cell is the number of the class."""

    kind = "label"
    columns = ("text",)
    tensor = "labels"
    likelihoods: ClassVar = {"categorical": Categorical}
    is_class = True

    def read(self, cells: Sequence[Any], seed: int) -> int | None:
        """Return the number of the row's class."""
        return None if cells[0] is None else self.cell(cells[0])

    def check_column(self, column: Callable[[], Iterable[Any]], *, training: bool = True) -> None:
        """Raise ValueError if the training rows have other classes than the options, or other rows further ones."""
        values = sorted({value for value in column() if value is not None})
        if unknown := [value for value in values if value not in self.names and not training]:
            raise ValueError(
                f"Column {self.name!r} has the label {unknown[0]!r}, which no training row has; these have "
                f"{', '.join(self.names)}. Prepare the data with splits that share their labels."
            )
        if training and values != self.names:
            raise ValueError(
                f"latent.modalities.{self.name}.labels: got {self.names}, but the training split has {values}; name "
                "them in this order."
            )

    def elements(self, tensors: Tensors) -> Tensor:
        """Return the classes one-hot, (B, A)."""
        return F.one_hot(tensors[self.tensor], len(self.names))

    def batch(
        self, cells: Sequence[Any | None], options: BatchOptions, draws: Sequence[np.random.Generator]
    ) -> dict[str, Tensor]:
        """Return `labels` (B,) int64."""
        return {self.tensor: torch.tensor([0 if cell is None else int(cell) for cell in cells])}

    @property
    def value_type(self) -> type:
        """The name of the class."""
        return str

    def cell(self, value: Any) -> int:
        """Return the number of a class, from its name or its number."""
        if isinstance(value, int | np.integer) and 0 <= value < len(self.names):
            return int(value)
        if value not in self.names:
            raise ValueError(f"{self.name}: got {value!r}, expected one of {', '.join(self.names)}")
        return self.names.index(value)

    def value(self, cell: Any) -> str:
        """Return the name of a class."""
        name: str = self.names[cell]
        return name

    def drawable(self, value: Any) -> str:
        """Return the name, of several the likeliest."""
        return value if isinstance(value, str) else max(value, key=value.__getitem__)


class Labels(Names):
    """Any number of some classes at once. A cell is 1 for each class of the sample, (A,) float32."""

    kind = "labels"
    columns = ("texts",)
    likelihoods: ClassVar = {"bernoulli": Bernoulli}

    def read(self, cells: Any, seed: int) -> NDArray[np.float32] | None:
        """Return the model's classes; others in the column are left out."""
        if cells[0] is None:
            return None
        return np.array([name in cells[0] for name in self.names], np.float32)

    def check_column(self, column: Callable[[], Iterable[Any]], *, training: bool = True) -> None:
        """Raise ValueError if no training row has one of the classes."""
        if not training:
            return
        present = {label for row in column() if row is not None for label in row}
        if unknown := [name for name in self.names if name not in present]:
            nearest = difflib.get_close_matches(unknown[0], sorted(present), n=3)
            hint = f"did you mean {', '.join(nearest)}?" if nearest else f"it has {', '.join(sorted(present)[:10])}, …"
            raise ValueError(f"Column {self.name!r}: no training row has the label {unknown[0]!r}; {hint}")

    @property
    def value_type(self) -> type:
        """The names of the classes."""
        return list

    def cell(self, value: Any) -> NDArray[np.float32]:
        """Return which classes a list names."""
        self._expect(value)
        if unknown := [name for name in value if name not in self.names]:
            raise ValueError(f"{self.name}: got {unknown[0]!r}, expected some of {', '.join(self.names)}")
        return np.array([name in value for name in self.names], np.float32)

    def value(self, cell: Any) -> list[str]:
        """Return the names of the classes."""
        return [name for name, share in zip(self.names, cell, strict=True) if share >= 0.5]

    def drawable(self, value: Any) -> str:
        """Return the names, of probabilities those of at least a half."""
        names = value if isinstance(value, list) else [name for name, share in value.items() if share >= 0.5]
        return textwrap.fill(", ".join(names) or "none", 22, max_lines=10, placeholder=" …")

    def draw(self, axes: Axes, drawable: Any) -> None:
        """Write the names."""
        axes.text(0.5, 0.5, drawable, ha="center", va="center", fontsize=5, parse_math=False)
