"""Draw the documentation's figures.

Of the architecture: `python docs/figures/make.py`. Of skulls from views: with a model and the folder of its set.
"""

import sys
from pathlib import Path

from matplotlib.axes import Axes
from matplotlib.patches import FancyBboxPatch

from m3ae.figures import BLUE, FAINT, INK, ORANGE, STYLES, VERMILION, new_figure, save_figure

FOLDER = Path(__file__).parent
GREEN = STYLES[2][0]
FONT = 21
WIDTH, HEIGHT = 11.0, 4.9  # inches, and the units of the drawing


def box(axes: Axes, x: float, y: float, width: float, height: float, text: str, colour: str) -> None:
    """Draw a box whose lower left corner is at (x, y), with a text in its middle."""
    style = FancyBboxPatch(
        (x, y), width, height, boxstyle="round,pad=0,rounding_size=0.12", facecolor=f"{colour}22", edgecolor=colour
    )
    style.set_linewidth(2)
    axes.add_patch(style)
    axes.text(x + width / 2, y + height / 2, text, ha="center", va="center", fontsize=FONT, color=INK)


def arrow(axes: Axes, start: tuple[float, float], end: tuple[float, float]) -> None:
    """Draw an arrow."""
    axes.annotate("", end, start, arrowprops={"arrowstyle": "-|>", "color": FAINT, "linewidth": 2, "shrinkA": 0})


def architecture() -> None:
    """Draw the path of a sample: modalities, encoders, fusion, decoders; the latent head below."""
    figure = new_figure(WIDTH, HEIGHT)
    figure.set_layout_engine("none")
    axes = figure.add_axes((0, 0, 1, 1))
    axes.set(xlim=(0, WIDTH), ylim=(0, HEIGHT))
    axes.axis("off")
    rows = [("images", "ViT", 3.85), ("report", "text\nencoder", 2.75), ("others", "small\nencoders", 0.35)]
    for modality, encoder, y in rows:
        box(axes, 0.15, y, 1.45, 0.85, modality, INK)
        arrow(axes, (1.6, y + 0.42), (2.1, y + 0.42))
        box(axes, 2.1, y, 1.75, 0.85, encoder, BLUE)
    box(axes, 4.55, 2.75, 2.0, 1.95, "co-attention\nof all\npresent\nstreams", VERMILION)
    for y in (4.27, 3.17):
        arrow(axes, (3.85, y), (4.55, y))
    box(axes, 7.3, 3.85, 3.5, 0.85, "hidden patches, words", GREEN)
    box(axes, 7.3, 2.75, 3.5, 0.85, "answers, classes", GREEN)
    for y in (4.27, 3.17):
        arrow(axes, (6.55, y), (7.3, y))
    box(axes, 4.55, 0.35, 2.0, 1.6, "latent head:\nexperts → z", ORANGE)
    arrow(axes, (3.85, 0.77), (4.55, 0.77))
    axes.plot([4.2, 4.2], [4.27, 1.5], color=FAINT, linewidth=2)  # both streams, before fusion
    arrow(axes, (4.2, 1.5), (4.55, 1.5))
    box(axes, 7.3, 0.35, 3.5, 1.6, "any modality\nfrom any others", GREEN)
    arrow(axes, (6.55, 1.15), (7.3, 1.15))
    axes.text(0.15, 1.95, "any of them\nmay be missing", fontsize=FONT - 2, color=FAINT, va="center")
    save_figure(figure, FOLDER / "architecture.png")


def skulls(model_path: str, data: Path, count: int = 3) -> None:
    """Draw test skulls: their three planes, their surface, and the surfaces drawn from three, two and one plane."""
    import numpy as np
    import torch

    from m3ae import M3AEForGeneration
    from m3ae.data.prepared import load_split
    from m3ae.inference import generate
    from m3ae.inference.generation import read_values
    from m3ae.metrics.overlap import dice
    from m3ae.models.modalities.volume import surface

    model, rows = M3AEForGeneration.from_pretrained(model_path).eval(), load_split(data, "test")
    planes = ["axial", "coronal", "sagittal"]
    subsets = [planes, ["axial", "sagittal"], ["axial"]]
    titles = [*planes, "real", "from all three", "axial and sagittal", "axial alone"]
    figure = new_figure(1.5 * len(titles), 1.62 * count)
    for number, panels in enumerate(figure.subplots(count, len(titles), squeeze=False)):
        values = read_values(model, rows, number, [*planes, "skull"])
        drawn = [
            generate(model, None, {name: values[name] for name in given}, ["skull"], temperature=0.0)["skull"][0]
            for given in subsets
        ]
        volumes = [np.asarray(volume) for volume in (values["skull"], *drawn)]
        pictures = [model.latent_head.modalities[name].drawable(values[name]) for name in planes]
        pictures += [surface(torch.from_numpy(volume[0]), scale=4).numpy() for volume in volumes]
        for panel, picture, title in zip(panels, pictures, titles, strict=True):
            panel.imshow(picture, cmap="gray", vmin=0, vmax=1)
            panel.axis("off")
            if number == 0:
                panel.set_title(title, fontsize=9)
        for panel, volume in zip(panels[-len(drawn) :], volumes[1:], strict=True):
            overlap = dice(volume[None] > 0.5, volumes[0][None] > 0.5)[0]
            label = f"Dice {100 * overlap:.0f} %"
            panel.text(0.5, 0.03, label, ha="center", fontsize=8, color="white", transform=panel.transAxes)
    save_figure(figure, FOLDER / "skull_views.png")


if __name__ == "__main__":
    if sys.argv[1:]:
        skulls(sys.argv[1], Path(sys.argv[2]))
    else:
        architecture()
