"""Figures in one style, readable in print and by colour-blind people; nothing but pictures, numbers and texts goes in.

Colours are Okabe and Ito's, and line style, marker or hatching tells them apart in grey; amounts are drawn in
perceptually uniform colours.

Shapes: B samples, H×W pixels, n×n patches, W words, A labels, N rows.
"""

from __future__ import annotations

import math
import textwrap
import warnings
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from functools import cache
from pathlib import Path
from typing import Any, NamedTuple, Protocol

import numpy as np
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from matplotlib.font_manager import FontProperties, fontManager, get_font
from matplotlib.image import AxesImage
from matplotlib.text import Text
from numpy.typing import NDArray
from PIL import Image

from m3ae.files import replacing

DPI = 130
INK, FAINT = "#1A1A1A", "#666666"
BLUE, VERMILION, ORANGE = "#0072B2", "#D55E00", "#E69F00"
STYLES: tuple[tuple[str, str, str], ...] = (  # colour, line, marker
    (BLUE, "-", "o"),
    (VERMILION, "--", "s"),
    ("#009E73", "-.", "^"),
    ("#CC79A7", ":", "D"),
    (ORANGE, "-", "v"),
    ("#56B4E9", "--", "x"),
)
HEAT = "plasma"
COLUMNS = 6  # of the panels of words
PANEL = 1.8  # inches
CONTRAST = 2.0  # the colours of attention span at least from an even share to this many times as much

Picture = NDArray[np.float32]


class Drawing(Protocol):
    """What a modality knows of drawing: see `m3ae.models.modalities.Modality`."""

    def drawable(self, value: Any) -> Any: ...  # noqa: D102

    def draw(self, axes: Axes, drawable: Any) -> None: ...  # noqa: D102


def cut(text: str, length: int) -> str:
    """Cut a text to a number of characters; where something is lost, the last of them is "…"."""
    return text if len(text) <= length else f"{text[: length - 1]}…"


def new_figure(width: float, height: float) -> Figure:
    """Return an empty figure; width and height are in inches."""
    figure = Figure(figsize=(width, height), layout="constrained")
    FigureCanvasAgg(figure)
    return figure


def save_figure(figure: Figure, path: Path) -> Path:
    """Write a figure in the format of the file's suffix, or as PNG; make the folder if there is none."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with replacing(path) as temporary, fonts_for_all_scripts(figure):
        figure.savefig(temporary, dpi=DPI, format=path.suffix[1:] or "png")
    return path


@contextmanager
def fonts_for_all_scripts(figure: Figure) -> Iterator[None]:
    """Give texts the installed fonts that have their letters; a letter that no font has is drawn as a box."""
    for text in figure.findobj(Text):
        assert isinstance(text, Text)
        letters = frozenset(letter for letter in text.get_text() if not letter.isascii() and letter.isprintable())
        if further := _further_fonts(letters):
            text.set_fontfamily([*text.get_fontfamily(), *further])
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", "Glyph .* missing from font")
        yield


@cache
def _further_fonts(letters: frozenset[str]) -> list[str]:
    """Return the names of installed fonts that have those letters that the usual font lacks."""
    missing = {ord(letter) for letter in letters} - _letters_of(fontManager.findfont(FontProperties()))
    names: list[str] = []
    for entry in fontManager.ttflist if missing else ():
        if known := missing & _letters_of(entry.fname):
            names.append(entry.name)
            missing -= known
    return names


@cache
def _letters_of(font: str) -> frozenset[int]:
    return frozenset(get_font(font).get_charmap())


def render(figure: Figure) -> Image.Image:
    """Return a figure as an image."""
    canvas = figure.canvas
    assert isinstance(canvas, FigureCanvasAgg)
    figure.set_dpi(DPI)
    with fonts_for_all_scripts(figure):
        canvas.draw()
    return Image.fromarray(np.asarray(canvas.buffer_rgba())).convert("RGB")


def draw_reconstructions(
    originals: Picture,
    masked: Picture,
    filled: Picture,
    errors: Picture,
    texts: Sequence[str | None],
    title: str = "",
) -> Figure:
    """Draw original, masked input, reconstruction and its error: a column a sample, or a row if it is only one.

    Args:
        originals: (B, H, W, 3) in [0, 1], as are the next two.
        masked: What the model sees.
        filled: What it makes of it.
        errors: (B, n, n) of each patch in the units of `originals`, NaN where nothing was masked.
        texts: Stand below the columns.
        title: Stands above.
    """
    rows = {"original": originals, "masked": masked, "reconstruction": filled}
    count, alone = len(texts), len(texts) == 1
    figure = new_figure(9.6, 3.1) if alone else new_figure(1.9 * count + 0.9, 8.2)
    panels = figure.subplots(1, 4, squeeze=False).T if alone else figure.subplots(4, count, squeeze=False)
    for row, pictures in zip(panels, rows.values(), strict=False):
        for panel, picture in zip(row, pictures, strict=True):
            _show(panel, picture)
    top = max(0.1, float(np.nan_to_num(errors).max()))
    for panel, error, picture in zip(panels[-1], errors, originals, strict=True):
        _show(panel, 0.35 + 0.3 * picture)  # faint, where nothing was masked
        height, width = picture.shape[:2]
        heat = panel.imshow(error, cmap=HEAT, vmin=0, vmax=top, extent=(-0.5, width - 0.5, height - 0.5, -0.5))
    for panel, text in zip(panels[-1], texts, strict=True):
        if not alone:
            below = textwrap.fill(cut(text or "(no text)", 130), 24)
            panel.set_xlabel(below, fontsize=7, parse_math=False)
    for panel, name in zip(panels[:, 0], [*rows, "error"], strict=True):
        (panel.set_title if alone else panel.set_ylabel)(name, fontsize=9)
    if alone:
        figure.supxlabel(textwrap.fill(cut(texts[0] or "", 300), 120), fontsize=8, parse_math=False)
    options = {"shrink": 0.6} if alone else {"shrink": 0.25, "anchor": (0, 0.06)}
    bar = figure.colorbar(heat, ax=list(panels.flat), fraction=0.05, pad=0.02, **options)
    bar.set_label("mean absolute error\n(grey range = 1)", fontsize=7)
    bar.ax.tick_params(labelsize=7)
    wrap = textwrap.TextWrapper(120 if alone else 32 * count + 12)
    lines = [wrapped for line in title.splitlines() for wrapped in wrap.wrap(line)]
    figure.suptitle("\n".join(lines), fontsize=9, parse_math=False)
    return figure


def draw_attention(
    picture: Picture, titles: Sequence[str], maps: Picture, text: str, note: str = "", columns: int = COLUMNS
) -> Figure:
    """Draw an image, and over it the attention of each word of a text that exceeds an even share.

    Args:
        picture: (H, W, 3) in [0, 1], several images side by side among them.
        titles: Titles of the image and of the maps.
        maps: (N, n, m) attention, 1 = an even share.
        text: Stands above.
        note: A line below it, for instance the answer.
        columns: Square panels side by side at most.
    """
    shape = picture.shape[1] / picture.shape[0]
    columns = min(max(1, round(columns / shape)), len(titles))
    rows = math.ceil(len(titles) / columns)
    wrap = textwrap.TextWrapper(round(16 * columns * shape), max_lines=3, placeholder=" …")
    title = "\n".join([*wrap.wrap(text), *wrap.wrap(note)])
    height = 1.15 * PANEL * rows + 0.25 * title.count("\n") + 0.5
    figure = new_figure(PANEL * columns * shape + 0.9, height)
    figure.suptitle(title, fontsize=10, parse_math=False)
    panels = figure.subplots(rows, columns, squeeze=False).flat
    top = max(CONTRAST, float(maps.max()))
    _show(panels[0], picture, titles[0])
    for panel, word, attention in zip(panels[1:], titles[1:], maps, strict=False):
        _show(panel, picture, word)
        heat = _overlay(panel, attention, picture.shape[:2], top)
    for panel in panels[len(titles) :]:
        panel.set_axis_off()
    bar = figure.colorbar(heat, ax=list(panels), fraction=0.03, pad=0.02, shrink=0.85, aspect=12 * rows)
    bar.set_label("attention, times an even share", fontsize=8)
    bar.ax.tick_params(labelsize=8)
    return figure


class Strip(NamedTuple):
    """A query and its results, the best first.

    Attributes:
        query: A text, or an image (H, W, 3) in [0, 1].
        results: Texts or images.
        captions: Captions of the results, such as scores.
        right: Indices of the right results.
    """

    query: str | Picture
    results: Sequence[str | Picture]
    captions: Sequence[str]
    right: Sequence[int] = ()


def draw_retrieval(strips: Sequence[Strip]) -> Figure:
    """Draw each query with its results from left to right; the right ones are framed."""
    columns = 1 + max(len(strip.results) for strip in strips)
    figure = new_figure(1.5 * columns, 1.75 * len(strips))
    panels = figure.subplots(len(strips), columns, squeeze=False)
    for row, strip in zip(panels, strips, strict=True):
        _cell(row[0], strip.query)
        row[0].set_title("query", fontsize=8, weight="bold")
        for index, (panel, result, caption) in enumerate(zip(row[1:], strip.results, strip.captions, strict=False)):
            _cell(panel, result)
            panel.set_title(caption, fontsize=7, parse_math=False, color=INK)
            if index in strip.right:
                panel.set_title(f"{caption} ✓", fontsize=7, parse_math=False, color=BLUE, weight="bold")
                for spine in panel.spines.values():
                    spine.set(color=BLUE, linewidth=3.5, visible=True)
        for panel in row[1 + len(strip.results) :]:
            panel.set_axis_off()
    return figure


def draw_roc(scores: NDArray[Any], truth: NDArray[Any], names: Sequence[str]) -> Figure:
    """Draw the ROC curve of each label, a panel each, with the area below it.

    Args:
        scores: (N, A), larger = more likely.
        truth: (N, A) 1 = has the label, 0 = has not, anything else is unknown and left out.
        names: Names of the labels; those of one class only get an empty panel.
    """
    from sklearn.metrics import auc, roc_curve  # comes with the extra `train` alone

    columns = min(4, len(names))
    figure = new_figure(2.4 * columns, 2.5 * math.ceil(len(names) / columns))
    panels = figure.subplots(math.ceil(len(names) / columns), columns, squeeze=False).flat
    for column, (panel, name) in enumerate(zip(panels, names, strict=False)):
        known = np.isin(truth[:, column], (0, 1))
        positive, title = truth[known, column] == 1, cut(name, 26)
        panel.plot((0, 1), (0, 1), color=FAINT, linestyle=":", linewidth=1)
        if positive.any() and not positive.all():
            false, true, _ = roc_curve(positive, scores[known, column], drop_intermediate=False)
            panel.plot(false, true, color=BLUE, linewidth=1.6)
            panel.fill_between(false, true, color=BLUE, alpha=0.12, linewidth=0)
            title += f"\n{auc(false, true):.3f}, {positive.sum()} of {known.sum()}"
        panel.set_title(title, fontsize=8, parse_math=False)
        panel.set(aspect="equal", xlim=(-0.02, 1.02), ylim=(-0.02, 1.02))
        panel.tick_params(labelsize=7)
    for panel in panels[len(names) :]:
        panel.set_axis_off()
    figure.supxlabel("false positive rate", fontsize=8)
    figure.supylabel("true positive rate", fontsize=8)
    return figure


def draw_reliability(bins: Sequence[tuple[float, float, int]]) -> Figure:
    """Draw the share of right predictions against their probability, and how many there are.

    Args:
        bins: The mean probability, the share and the number of each bin, as `m3ae.metrics.calibration.reliability`
            returns them.
    """
    probabilities, shares, sizes = zip(*bins, strict=True)
    figure = new_figure(3.6, 4.4)
    curve, bars = figure.subplots(2, 1, sharex=True, height_ratios=[3, 1])
    curve.plot((0, 1), (0, 1), color=FAINT, linestyle=":", linewidth=1)
    curve.plot(probabilities, shares, color=BLUE, marker="o", markersize=4, linewidth=1.6)
    curve.set(ylabel="share that is right", xlim=(-0.02, 1.02), ylim=(-0.02, 1.02))
    bars.bar(probabilities, sizes, width=0.03, color=BLUE)
    bars.set(xlabel="predicted probability", ylabel="predictions")
    return figure


def draw_losses(records: Sequence[dict[str, Any]]) -> Figure:
    """Draw one panel for each loss, training and validation over the optimiser steps.

    Args:
        records: Lines of `metrics.jsonl`, as `read_metrics` returns them.
    """
    keys = dict.fromkeys(key for record in records for key in record)
    losses = [key.removeprefix("training/") for key in keys if key.startswith("training/")]
    columns = min(len(losses), 3) or 1
    rows = math.ceil(len(losses) / columns) or 1
    figure = new_figure(4 * columns, 3 * rows)
    styles: dict[str, dict[str, Any]] = {
        "training": {"color": BLUE, "linestyle": "-", "linewidth": 1.2},
        "validation": {"color": VERMILION, "linestyle": "--", "linewidth": 1.6, "marker": "o", "markersize": 4},
    }
    for number, loss in enumerate(losses, start=1):
        axes = figure.add_subplot(rows, columns, number, title=loss, xlabel="optimiser step")
        lowest = math.inf
        for split, style in styles.items():
            if points := _points(records, split, loss):
                axes.plot(*zip(*points, strict=True), label=split, **style)
                lowest = min(lowest, *(value for _, value in points))
        if lowest > 0:
            axes.set_yscale("log")
        axes.grid(alpha=0.3, which="both")
        axes.legend(frameon=False)
    return figure


def _points(records: Sequence[dict[str, Any]], split: str, loss: str) -> list[tuple[int, float]]:
    """Return the steps and values of a loss, which a task's metrics may call `<loss>_loss`."""
    names = (f"{split}/{loss}", f"{split}/{loss}_loss")
    return [(record["step"], record[name]) for record in records for name in names if record.get(name) is not None]


def draw_modalities(
    rows: Mapping[str, Sequence[Any]], modalities: Mapping[str, Drawing], titles: Sequence[str]
) -> Figure:
    """Draw values of several modalities, a row a modality.

    Args:
        rows: Name → values as people get them; None for one that is missing.
        modalities: Name → modality.
        titles: Titles of the columns.
    """
    columns = max(map(len, rows.values()))
    figure = new_figure(1.15 * columns + 0.6, 1.2 * len(rows) + 0.3)
    panels = figure.subplots(len(rows), columns, squeeze=False)
    for row, (name, values) in zip(panels, rows.items(), strict=True):
        for panel, value in zip(row, values, strict=False):
            if value is not None:
                draw_value(panel, modalities[name], modalities[name].drawable(value))
        for panel in row[len(values) :]:
            panel.set_axis_off()
        row[0].set_ylabel(name, fontsize=9, parse_math=False)
    for panel, title in zip(panels[0], titles, strict=False):
        panel.set_title(title, fontsize=8, parse_math=False)
    return figure


def draw_value(axes: Axes, modality: Drawing, drawable: Any) -> None:
    """Draw what a modality makes of a value into a panel."""
    axes.set_xticks([])
    axes.set_yticks([])
    modality.draw(axes, drawable)


def _show(axes: Axes, picture: Picture, title: str = "") -> None:
    axes.imshow(picture.clip(0, 1), cmap="gray", vmin=0, vmax=1)
    axes.set_xticks([])
    axes.set_yticks([])
    axes.spines[:].set_visible(False)
    if title:
        axes.set_title(title, fontsize=9, parse_math=False)


def _overlay(axes: Axes, heat: Picture, size: tuple[int, int], top: float) -> AxesImage:
    """Cover an image the more the further `heat` (n, n) is above 1, fully where it is `top`."""
    smooth = np.asarray(Image.fromarray(heat).resize(size[::-1], Image.Resampling.BILINEAR))
    return axes.imshow(smooth, cmap=HEAT, vmin=1, vmax=top, alpha=((smooth - 1) / (top - 1)).clip(0, 1) ** 0.5)


def _cell(axes: Axes, value: str | Picture) -> None:
    if not isinstance(value, str):
        _show(axes, value)
        return
    axes.set_xticks([])
    axes.set_yticks([])
    axes.spines[:].set_color("#BBBBBB")
    lines = textwrap.wrap(value, 21, max_lines=9, placeholder=" …")
    axes.text(0.04, 0.96, "\n".join(lines), fontsize=6.5, va="top", parse_math=False, transform=axes.transAxes)
    axes.set_aspect("equal")
