"""Pictures of a latent model: what is generated from what, what latent dimensions do, what the priors give.

Shapes: N samples, D shared latent dimensions, Z all of them, H and W a picture's height and width.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
from matplotlib.axes import Axes
from numpy.typing import NDArray
from PIL.Image import Image
from torch import Tensor
from transformers import PreTrainedTokenizerBase

from m3ae.data.collate import Batch
from m3ae.evaluation.passes import select
from m3ae.figures import STYLES, draw_value, new_figure, save_figure
from m3ae.models.generation import M3AEForGeneration

EXAMPLES, DRAWS = 3, 3  # of the grid of generated samples
STEPS = (-3.0, -2.0, -1.0, 0.0, 1.0, 2.0, 3.0)  # of a traversal, in standard deviations of the means of the rows
DIMENSIONS = 6
PRIOR_SAMPLES = 12
Picture = NDArray[np.float32]


class LatentFigures:
    """Draws PNGs of a model and some samples that have every modality.

    Args:
        model: In evaluation mode.
        batch: N samples, on the model's device.
        seed: Of all that is drawn.
        tokenizer: Tokenizer of the model; needed for texts.
    """

    def __init__(
        self,
        model: M3AEForGeneration,
        batch: Batch,
        seed: int = 0,
        tokenizer: PreTrainedTokenizerBase | None = None,
    ) -> None:
        self.model, self.batch, self.tokenizer = model, batch, tokenizer
        self.generator = torch.Generator(model.device).manual_seed(seed)
        self.modalities = model.latent_head.modalities
        self.pictured = [name for name, modality in self.modalities.items() if modality.is_pictured]

    def draw_all(self, folder: Path) -> list[Path]:
        """Draw `cross_generation.png`, `traversal.png` and `prior_samples.png`; return those that there are.

        A traversal needs an image or a sequence.
        """
        paths = [self.cross_generation(folder / "cross_generation.png")]
        if self.pictured:
            paths += [self.traversal(folder / "traversal.png"), self.prior_samples(folder / "prior_samples.png")]
        return paths

    def cross_generation(self, path: Path) -> Path:
        """Draw a block of examples for each modality that is given: it, and samples of every modality from it."""
        experts = self.model.latent.experts
        draws = {name: DRAWS if own.value_type in (np.ndarray, Image) else 1 for name, own in self.modalities.items()}
        examples = select(self.batch, torch.arange(min(EXAMPLES, self._size())))
        count = len(next(iter(examples.values()))["present"])
        columns = 1 + sum(draws.values())
        figure = new_figure(1.0 * columns, 1.05 * count * len(experts) + 0.6)
        axes = figure.subplots(count * len(experts), columns, squeeze=False)
        for block, given in enumerate(experts):
            made = self.model.generate_modalities(
                {given: examples[given]}, num_samples=DRAWS, generator=self.generator
            )
            real = self._shown(given, self.modalities[given].elements(examples[given]))
            shown = {
                name: [self._shown(name, value[draw]) for draw in range(draws[name])] for name, value in made.items()
            }
            for example in range(count):
                row = axes[block * count + example]
                cells = [(given, real[example])]
                cells += [(name, own[example]) for name, draws_of in shown.items() for own in draws_of]
                titles = [f"given {given}", *(name for name in shown for _ in shown[name])]
                for panel, (name, cell), title in zip(row, cells, titles, strict=True):
                    self._draw(panel, name, cell)
                    if example == 0:
                        panel.set_title(
                            title, fontsize=8, parse_math=False, weight="bold" if panel is row[0] else None
                        )
        return save_figure(figure, path)

    def traversal(self, path: Path) -> Path:
        """Draw what changes as one latent dimension does: the most active shared ones, and private ones below.

        Where a shared one moves, the private latents are what their prior makes of it at its centre.
        """
        available = {name: self.batch[name] for name in self.model.latent.experts}
        z = self.model.sample_latent(available, generator=self.generator)[0]
        mixture = self.model.infer_latent(available, joint=True).mixture
        means = (mixture.weights[..., None] * mixture.components.mu).sum(0)
        centre, spread = means.mean(0), means.std(0, correction=0)  # (Z,)
        head, shared = self.model.latent_head, slice(0, self.model.latent.size)
        figure = new_figure(2.6 * len(self.pictured), 5.6)
        axes = figure.subplots(2, len(self.pictured), squeeze=False)
        for column, name in enumerate(self.pictured):
            for row, part in enumerate((shared, head.private_dimensions[name])):
                panel = axes[row, column]
                chosen = spread[part].argsort(descending=True)[:DIMENSIONS] + part.start
                if not len(chosen):
                    panel.set_axis_off()
                    continue
                moved = z[:1].expand(len(chosen), len(STEPS), -1).clone()
                for number, dimension in enumerate(chosen.tolist()):
                    moved[number, :, dimension] = centre[dimension] + spread[dimension] * z.new_tensor(STEPS)
                if part == shared:
                    moved[..., shared.stop :] = 0
                    moved = head.complete(moved, {})
                decoded = self.model.decode(moved, [name])[name].flatten(0, 1)
                mosaic = _mosaic(self._shown(name, decoded), len(STEPS))
                self._draw(panel, name, mosaic)
                panel.set_title(
                    f"{name}: {'shared' if part == shared else 'private'} dimensions", fontsize=9, parse_math=False
                )
                panel.set_xlabel(f"{STEPS[0]:g} … {STEPS[-1]:g} standard deviations", fontsize=8)
        return save_figure(figure, path)

    def prior_samples(self, path: Path) -> Path:
        """Draw samples of the priors, each a column of all modalities."""
        densities: list[Literal["own", "fitted"]] = ["own"]
        densities += ["fitted"] if self.model.fitted_prior is not None else []
        figure = new_figure(0.8 * PRIOR_SAMPLES, 0.95 * len(self.pictured) * len(densities) + 0.4)
        axes = figure.subplots(len(self.pictured) * len(densities), 1, squeeze=False)[:, 0]
        labels = [name for name, modality in self.modalities.items() if modality.is_class]
        for number, density in enumerate(densities):
            names = [*self.pictured, *labels]
            made = self.model.sample_prior(PRIOR_SAMPLES, density, names, generator=self.generator)
            own = axes[number * len(self.pictured) : (number + 1) * len(self.pictured)]
            for panel, name in zip(own, self.pictured, strict=True):
                self._draw(panel, name, _mosaic(self._shown(name, made[name]), PRIOR_SAMPLES))
                panel.set_ylabel(name, fontsize=8, parse_math=False)
            own[0].set_title(f"{density} prior", fontsize=9)
            if labels:
                shown = [self._shown(name, made[name]) for name in labels]
                width = np.ptp(own[-1].get_xlim()) / PRIOR_SAMPLES
                centres = [(column + 0.5) * width for column in range(PRIOR_SAMPLES)]
                names_below = [" / ".join(classes) for classes in zip(*shown, strict=True)]
                own[-1].set_xticks(centres, names_below, fontsize=8, parse_math=False)
        return save_figure(figure, path)

    def _size(self) -> int:
        return len(next(iter(self.batch.values()))["present"])

    def _shown(self, name: str, values: Tensor) -> list[Any]:
        """Return what is drawn of values (N, …): pictures (H, W[, 3]), curves, names of classes, or texts."""
        modality = self.modalities[name]
        return [modality.drawable(value) for value in modality.values(values, self.tokenizer)]

    def _draw(self, axes: Axes, name: str, value: Any) -> None:
        draw_value(axes, self.modalities[name], value)


def plot_missing_rates(path: Path, curve: Mapping[str, Sequence[float]]) -> Path:
    """Draw what `missing_curve` returns over the rate: shares on the left, the ELBO on the right."""
    figure = new_figure(9.0, 3.6)
    left, right = figure.subplots(1, 2)
    rates = [100 * rate for rate in curve["rates"]]
    shares = [name for name in curve if name not in ("rates", "elbo")]
    for number, name in enumerate(shares):
        color, line, marker = STYLES[number % len(STYLES)]
        left.plot(rates, curve[name], line, color=color, marker=marker, markersize=4, label=name)
    left.set_ylabel("accuracy, AUROC, R²")
    left.legend(fontsize=7, frameon=False)
    right.plot(rates, curve["elbo"], color=STYLES[0][0], marker="o", markersize=4)
    right.set_ylabel("ELBO of all modalities, nats")
    for panel in (left, right):
        panel.set_xlabel("missing modalities, %")
        panel.grid(alpha=0.3)
    return save_figure(figure, path)


def _mosaic(pictures: Sequence[Picture], columns: int) -> Picture:
    """Lay out N pictures (H, W[, 3]) row by row, with a line of NaN between them."""
    count, (height, width) = len(pictures), pictures[0].shape[:2]
    padded = np.full((count, height + 1, width + 1, *pictures[0].shape[2:]), np.nan, np.float32)
    padded[:, :height, :width] = pictures
    rows = padded.reshape(count // columns, columns, *padded.shape[1:])
    return np.concatenate([np.concatenate(list(row), 1) for row in rows], 0)
