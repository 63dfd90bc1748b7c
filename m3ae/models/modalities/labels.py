"""The kind `labels`."""

from __future__ import annotations

import difflib
import textwrap
from collections.abc import Callable, Iterable
from typing import TYPE_CHECKING, Any, ClassVar

import numpy as np
from numpy.typing import NDArray

from m3ae.models.latent_networks import Bernoulli
from m3ae.models.modalities.label import Names

if TYPE_CHECKING:
    from matplotlib.axes import Axes


class Labels(Names):
    """Any number of some classes at once. A cell says of each class whether it is there, (A,) float32."""

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
