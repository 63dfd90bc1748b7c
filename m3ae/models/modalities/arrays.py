"""The kinds `vector` and `sequence`, whose elements are arrays of numbers."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, ClassVar

import numpy as np
from numpy.typing import NDArray

from m3ae.models.autoregressive import AutoregressiveDecoder
from m3ae.models.latent_networks import MLPDecoder, mlp_encoder
from m3ae.models.modalities.base import Modality

if TYPE_CHECKING:
    from matplotlib.axes import Axes


class Vector(Modality):
    """Numbers (F,)."""

    kind = "vector"
    dimensions: ClassVar[tuple[str, ...]] = ("F",)
    encoders: ClassVar = {"mlp": lambda modality: mlp_encoder(modality.shape, modality.config)}
    decoders: ClassVar = {
        "mlp": lambda modality, input_size: MLPDecoder(input_size, modality.config, modality.shape),
    }


class Sequence(Vector):
    """Vectors (T, F) of F features at T times."""

    kind = "sequence"
    dimensions = ("T", "F")
    encoders: ClassVar = dict(Vector.encoders)
    decoders: ClassVar = {**Vector.decoders, "autoregressive": AutoregressiveDecoder}
    is_pictured = True

    def drawable(self, value: Any) -> NDArray[np.float32]:
        """Return the features over time, (F, T)."""
        curves: NDArray[np.float32] = value.T
        return curves

    def draw(self, axes: Axes, drawable: Any) -> None:
        """Draw the features over time as colours."""
        axes.imshow(drawable, cmap="viridis", vmin=-2, vmax=2, aspect="auto", origin="lower")
