"""Pictures of a latent model: what is generated from what, what latent dimensions do, what the priors give.

Shapes: N samples, D shared latent dimensions, Z all of them, H and W a picture's height and width.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
from numpy.typing import NDArray
from PIL.Image import Image
from torch import Tensor
from transformers import PreTrainedTokenizerBase

from m3ae.data.collate import Batch
from m3ae.evaluation.passes import batch_size, select
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
        model: The model in evaluation mode.
        batch: B samples, on the model's device.
        seed: Seed of everything that is sampled.
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
        self.pictured = [name for name in model.latent.decoded if self.modalities[name].is_pictured]

    def draw_all(self, folder: Path) -> list[Path]:
        """Draw `cross_generation.png`, and of images and sequences `traversal.png` and `prior_samples.png`."""
        paths = [self.cross_generation(folder / "cross_generation.png")]
        if self.pictured:
            paths.append(self.traversal(folder / "traversal.png"))
        if self.pictured and not self.model.latent.condition:  # else z is drawn given the condition
            paths.append(self.prior_samples(folder / "prior_samples.png"))
        return paths

    def cross_generation(self, path: Path) -> Path:
        """Draw a block of examples for each modality with an encoder: its value, and samples of all modalities."""
        experts = self.model.latent.condition or self.model.latent.experts
        kinds = {name: self.modalities[name].value_type for name in self.model.latent.decoded}
        draws = {name: DRAWS if kind in (np.ndarray, Image) else 1 for name, kind in kinds.items()}
        examples = select(self.batch, torch.arange(min(EXAMPLES, batch_size(self.batch))))
        count, columns = batch_size(examples), 1 + sum(draws.values())
        figure = new_figure(1.0 * columns, 1.05 * count * len(experts) + 0.6)
        axes = figure.subplots(count * len(experts), columns, squeeze=False)
        for block, given in enumerate(experts):
            samples = self.model.generate_modalities(
                {given: examples[given]}, num_samples=DRAWS, generator=self.generator
            )
            real = self._drawables(given, self.modalities[given].elements(examples[given]))
            cells = [(given, f"given {given}", real)]  # modality, title and drawables of each column
            for name, values in samples.items():
                cells += [(name, name, self._drawables(name, value)) for value in values[: draws[name]]]
            for panels, (name, title, drawables) in zip(axes[block * count :].T, cells, strict=True):
                for panel, drawable in zip(panels[:count], drawables, strict=True):
                    draw_value(panel, self.modalities[name], drawable)
                weight = "bold" if title != name else None
                panels[0].set_title(title, fontsize=8, parse_math=False, weight=weight)
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
            ranges = {"shared": shared, "private": head.private_dimensions[name]}
            for panel, (kind, dimensions) in zip(axes[:, column], ranges.items(), strict=True):
                active = spread[dimensions].argsort(descending=True)[:DIMENSIONS] + dimensions.start
                if not len(active):
                    panel.set_axis_off()
                    continue
                moved = z[:1].expand(len(active), len(STEPS), -1).clone()
                for number, dimension in enumerate(active.tolist()):
                    moved[number, :, dimension] = centre[dimension] + spread[dimension] * z.new_tensor(STEPS)
                if kind == "shared":
                    moved[..., shared.stop :] = 0
                    moved = head.complete(moved, {})
                decoded = self.model.decode(moved, [name], generator=self.generator)[name].flatten(0, 1)
                draw_value(panel, self.modalities[name], _mosaic(self._drawables(name, decoded), len(STEPS)))
                panel.set_title(f"{name}: {kind} dimensions", fontsize=9, parse_math=False)
                panel.set_xlabel(f"{STEPS[0]:g} … {STEPS[-1]:g} standard deviations", fontsize=8)
        return save_figure(figure, path)

    def prior_samples(self, path: Path) -> Path:
        """Draw samples of the priors, each a column of all modalities."""
        densities: list[Literal["own", "fitted"]] = ["own"]
        densities += ["fitted"] if self.model.fitted_prior is not None else []
        figure = new_figure(0.8 * PRIOR_SAMPLES, 0.95 * len(self.pictured) * len(densities) + 0.4)
        axes = figure.subplots(len(densities) * len(self.pictured), 1, squeeze=False)
        labels = [name for name, modality in self.modalities.items() if modality.is_class]
        for density, panels in zip(densities, axes.reshape(len(densities), -1), strict=True):
            names = [*self.pictured, *labels]
            samples = self.model.sample_prior(PRIOR_SAMPLES, density, names, generator=self.generator)
            for panel, name in zip(panels, self.pictured, strict=True):
                mosaic = _mosaic(self._drawables(name, samples[name]), PRIOR_SAMPLES)
                draw_value(panel, self.modalities[name], mosaic)
                panel.set_ylabel(name, fontsize=8, parse_math=False)
            panels[0].set_title(f"{density} prior", fontsize=9)
            if labels:
                classes = zip(*(self._drawables(name, samples[name]) for name in labels), strict=True)
                width = np.ptp(panels[-1].get_xlim()) / PRIOR_SAMPLES
                centres = [(column + 0.5) * width for column in range(PRIOR_SAMPLES)]
                panels[-1].set_xticks(
                    centres, [" / ".join(column) for column in classes], fontsize=8, parse_math=False
                )
        return save_figure(figure, path)

    def _drawables(self, name: str, values: Tensor) -> list[Any]:
        """Return what is drawn of values (n, …): pictures (H, W[, 3]), curves, names of classes, or texts."""
        modality = self.modalities[name]
        return [modality.drawable(value) for value in modality.values(values, self.tokenizer)]


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
