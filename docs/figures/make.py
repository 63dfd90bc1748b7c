"""Draw the documentation's figures anew, from runs of the shipped recipes; nothing is trained.

    python docs/figures/make.py --phantom RUN --digits RUN --phantom-factors RUN --skull-views RUN

A figure without its run is left as it is; the architecture needs none. `benchmarks/slices.py` and `benchmarks/soak.py`
draw `slices.png` and `soak.png`.
"""

import argparse
import textwrap
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from matplotlib.axes import Axes
from matplotlib.patches import FancyBboxPatch
from PIL import Image
from scipy.ndimage import gaussian_filter

from m3ae import M3AEForPreTraining
from m3ae.data.prepared import load_split
from m3ae.figures import BLUE, FAINT, INK, ORANGE, STYLES, VERMILION, cut, draw_value, new_figure, render, save_figure
from m3ae.images.files import decode_image
from m3ae.inference import generate, load_generator, load_model, reconstruct
from m3ae.inference.generation import encode_modalities, read_values
from m3ae.models.modalities.volume import surface
from m3ae.training.config import load_config

FOLDER = Path(__file__).parent
GREEN = STYLES[2][0]
FONT = 21
WIDTH, HEIGHT = 11.0, 4.9  # inches, and the units of the drawing
FRAMES, REST = 6, 4  # of the animation: from one digit to the next, and on each digit


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


def held_out_rows(run: Path) -> Any:
    """Return the test rows of the set that a run was trained on."""
    return load_split(Path(load_config(run / "config.yaml").data.path), "test")


def reconstructions(run: Path) -> None:
    """Draw what a pre-trained model makes of images whose patches are hidden."""
    model, processor = load_model(run, [M3AEForPreTraining])
    rows = held_out_rows(run).select(range(4))
    images = [decode_image(row["frontal"]["bytes"], row["id"]) for row in rows]
    samples = reconstruct(model, processor, images, [row["text"][0] for row in rows])
    figure = new_figure(6.2, 4.8)
    for row, name in zip(figure.subplots(3, len(samples)), ("original", "masked", "filled"), strict=True):
        for axes, sample in zip(row, samples, strict=True):
            axes.imshow(getattr(sample, name).clip(0, 1), cmap="gray")
            axes.set(xticks=[], yticks=[])
        row[0].set_ylabel(name, fontsize=FONT - 5)
    save_figure(figure, FOLDER / "reconstructions.png")


def draw_columns(model: Any, samples: dict[str, list[Any]]) -> Any:
    """Return a figure with a column for each sample of digits, and the likeliest label below."""
    names = [name for name in samples if name != "label"]
    count = len(samples["label"])
    figure = new_figure(1.15 * count + 0.5, 1.15 * len(names) + 0.4)
    for row, name in zip(figure.subplots(len(names), count, squeeze=False), names, strict=True):
        modality = model.latent_head.modalities[name]
        for axes, value in zip(row, samples[name], strict=True):
            draw_value(axes, modality, modality.drawable(value))
            axes.set_aspect("auto")
        row[0].set_ylabel(name.capitalize(), fontsize=FONT - 4)
    for axes, label in zip(row, samples["label"], strict=True):
        axes.set_xlabel(likeliest(label), fontsize=FONT)
    return figure


def draw_frame(model: Any, sample: dict[str, list[Any]]) -> Image.Image:
    """Return a picture of one sample of digits: a panel for each modality, and the likeliest label."""
    figure = new_figure(6.0, 1.8)
    *panels, last = figure.subplots(1, len(sample))
    for axes, name in zip(panels, sample, strict=False):
        modality = model.latent_head.modalities[name]
        draw_value(axes, modality, modality.drawable(sample[name][0]))
        axes.set_aspect("auto")
        axes.set_title(name.capitalize(), fontsize=FONT - 4)
    last.axis("off")
    last.text(0.5, 0.5, likeliest(sample["label"][0]), fontsize=3 * FONT, ha="center", va="center")
    return render(figure).reduce(2)


def likeliest(label: dict[str, float]) -> str:
    """Return the name with the largest probability."""
    return max(label, key=label.__getitem__)


def digits(run: Path) -> None:
    """Draw samples of the prior, and an animation that walks through z from digit to digit."""
    model, _ = load_generator(run)
    names = ["farsi", "kannada", "speech", "label"]
    modalities = model.latent_head.modalities

    def values(z: torch.Tensor) -> dict[str, list[Any]]:
        return {name: modalities[name].values(tensor) for name, tensor in model.decode(z, names).items()}

    prior = model.sample_latent_prior(8, "fitted", generator=torch.Generator().manual_seed(3))
    save_figure(draw_columns(model, values(prior)), FOLDER / "digits_prior_samples.png")
    rows = held_out_rows(run)
    first = [rows["label"][:].index(str(digit)) for digit in range(10)]
    given = [encode_modalities(model, None, read_values(model, rows, row, names[:3])) for row in first]
    stops = [model.sample_latent(batch, temperature=0.0)[0] for batch in given]
    steps = [0.0] * REST + [step / FRAMES for step in range(1, FRAMES)]
    path = [a.lerp(b, step) for a, b in zip(stops, [*stops[1:], stops[0]], strict=True) for step in steps]
    frames = [draw_frame(model, values(z)) for z in path]
    frames[0].save(FOLDER / "digits.webp", save_all=True, append_images=frames[1:], duration=90, loop=0, quality=60)


def phantom_factors(run: Path) -> None:
    """Draw images from the reports of three test rows, and reports from their images."""
    model, tokenizer = load_generator(run)
    rows = held_out_rows(run)
    figure = new_figure(WIDTH, 5.6)
    panels = figure.subplots(3, 5, width_ratios=[1.9, 1, 1, 1, 1.9])
    for number, row in enumerate(panels):
        study = read_values(model, rows, number, ["text", "frontal"])
        images = generate(model, tokenizer, {"text": study["text"]}, ["frontal"], num_samples=2)["frontal"]
        (report,) = generate(model, tokenizer, {"frontal": study["frontal"]}, ["text"], temperature=0.0)["text"]
        for axes, image in zip(row[1:4], [*images, study["frontal"]], strict=True):
            axes.imshow(image, cmap="gray")
        for axes, text in ((row[0], study["text"]), (row[4], report)):
            lines = textwrap.fill(cut(text, 125), 22)
            axes.text(0, 0.5, lines, fontsize=FONT - 5, va="center", in_layout=False)
        for axes in row:
            axes.axis("off")
    for axes, title in zip(panels[0], ("given report", "→ image", "→ image", "given image", "→ report"), strict=True):
        axes.set_title(title, fontsize=FONT - 4)
    save_figure(figure, FOLDER / "phantom_factors.png")


def skull_views(run: Path) -> None:
    """Draw planes of three test skulls, the real surface, and those that follow from three, two planes and one."""
    model, _ = load_generator(run)
    rows, planes = held_out_rows(run), ["axial", "coronal", "sagittal"]
    given = {"from all three": planes, "axial, sagittal": planes[::2], "axial alone": planes[:1]}
    figure = new_figure(WIDTH, 5.3)
    panels = figure.subplots(3, 7)
    for number, row in enumerate(panels):
        study = read_values(model, rows, number, [*planes, "skull"])
        volumes = [study["skull"]]
        for names in given.values():
            shown = {name: study[name] for name in names}
            volumes += generate(model, None, shown, ["skull"], temperature=0.0)["skull"]
        smooth = [gaussian_filter(np.asarray(volume[0], np.float32), 0.6) for volume in volumes]  # no steps of voxels
        surfaces = [surface(torch.from_numpy(volume), scale=6) for volume in smooth]
        for axes, picture in zip(row, [*(study[plane] for plane in planes), *surfaces], strict=True):
            axes.imshow(picture, cmap="gray", vmin=0)
            axes.axis("off")
    for axes, title in zip(panels[0], [*planes, "real skull", *given], strict=True):
        axes.set_title(title, fontsize=FONT - 8)
    save_figure(figure, FOLDER / "skull_views.png")


DRAWINGS: dict[str, Callable[[Path], None]] = {
    "phantom": reconstructions,
    "digits": digits,
    "phantom_factors": phantom_factors,
    "skull_views": skull_views,
}


def main(arguments: Sequence[str] | None = None) -> None:
    """Draw the architecture, and the figures of the runs that are named."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    for name in DRAWINGS:
        parser.add_argument(f"--{name.replace('_', '-')}", type=Path, metavar="RUN")
    architecture()
    for name, run in vars(parser.parse_args(arguments)).items():
        if run is not None:
            DRAWINGS[name](run)


if __name__ == "__main__":
    main()
