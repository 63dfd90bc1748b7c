"""Draw the documentation's figure of the architecture: `python docs/figures/make.py`."""

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


if __name__ == "__main__":
    architecture()
