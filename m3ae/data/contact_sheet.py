"""A contact sheet: rows of a prepared split as cards, images above, texts and labels below."""

import textwrap
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from matplotlib.patches import Rectangle

from m3ae.figures import BLUE, FAINT, INK, cut, save_figure
from m3ae.images.files import decode_image

WIDTH = 12.0  # inches, as are all lengths
GAP = 0.25
TITLE = 0.45
IMAGE_HEIGHT = 2.2
LINE = 0.135
FONT_SIZE = 7.5  # points
CHARACTERS_PER_INCH = 72 / (0.55 * FONT_SIZE)
# column: what stands before its cell, colour, and the lines it may take
TEXT_STYLES = {"text": ("", INK, 8), "question": ("Q: ", INK, 4), "answer": ("A: ", BLUE, 2)}
LABEL_LINES = 3


class _Line(NamedTuple):
    text: str
    color: str
    style: str = "normal"


def draw_contact_sheet(
    path: Path, title: str, rows: Sequence[Mapping[str, Any]], images: Sequence[str], labels: Sequence[str]
) -> None:
    """Draw the cards of some rows, several side by side, as a PNG.

    A missing image or text is said to be missing; texts that are too long end in "…".

    Args:
        path: Of the PNG.
        title: Stands above the cards.
        rows: With undecoded images, and any of the columns text, question, answer.
        images: Columns that hold images, or matrices, whose rows are drawn from left to right.
        labels: Columns that hold a label or a list of labels.
    """
    columns = 4 if len(images) < 2 else 3
    width = (WIDTH - GAP) / columns - GAP
    lines = [list(_lines(row, labels, int(width * CHARACTERS_PER_INCH))) for row in rows]
    bands = [range(start, min(start + columns, len(rows))) for start in range(0, len(rows), columns)]
    image_height = min(IMAGE_HEIGHT, 1.1 * width / len(images)) if images else 0.0
    heights = [image_height + LINE * (1.5 + max(len(lines[i]) for i in band)) + GAP for band in bands]
    figure = Figure(figsize=(WIDTH, TITLE + sum(heights)))
    FigureCanvasAgg(figure)
    _write(figure, GAP, TITLE - 0.15, title, fontsize=12, color=INK)
    top = TITLE
    for band, height in zip(bands, heights, strict=True):
        for column, index in enumerate(band):
            left = GAP + column * (width + GAP)
            for number, name in enumerate(images):
                box = (left + number * width / len(images), top, width / len(images) - 0.05, image_height)
                _draw_image(figure, box, name if len(images) > 1 else "", rows[index][name], rows[index]["id"])
            _write_lines(figure, left, top + image_height, rows[index]["id"], lines[index])
        top += height
    save_figure(figure, path)


def _draw_image(figure: Figure, box: tuple[float, float, float, float], name: str, cell: Any, row: str) -> None:
    """Draw an image, and its name above it if it has one."""
    left, top, width, height = box
    total = figure.get_figheight()
    axes = figure.add_axes((left / WIDTH, 1 - (top + height) / total, width / WIDTH, height / total))
    axes.set_axis_off()
    axes.set_anchor("S")
    if cell is None:
        axes.set_aspect("equal")
        axes.add_patch(Rectangle((0, 0), 1, 1, facecolor="#F2F2F2", edgecolor=FAINT, linestyle="--"))
        axes.text(0.5, 0.5, f"no {name or 'image'}", ha="center", va="center", fontsize=9, color=INK)
        return
    if isinstance(cell, list):
        axes.imshow(np.array(cell).T, origin="lower", interpolation="nearest")
    else:
        axes.imshow(decode_image(cell["bytes"], row).convert("RGB"))
    if name:
        axes.set_title(name, fontsize=FONT_SIZE, color=FAINT, pad=2)


def _lines(row: Mapping[str, Any], labels: Sequence[str], width: int) -> Iterator[_Line]:
    """Yield the lines below a row's images."""
    for column, (prefix, color, limit) in TEXT_STYLES.items():
        if not row.get(column, " "):
            yield _Line(f"no {column}", FAINT, "italic")
        elif column in row:
            texts = [row[column]] if isinstance(row[column], str) else row[column]
            yield from (_Line(line, color) for line in _wrap(prefix + texts[0], width, limit))
            if len(texts) > 1:
                yield _Line(f"and {len(texts) - 1} more", FAINT, "italic")
    cells = {name: row[name] for name in labels if row[name] and name not in TEXT_STYLES}
    named = [f"{name}: {cell if isinstance(cell, str) else ', '.join(cell)}" for name, cell in cells.items()]
    yield from (_Line(line, BLUE) for line in _wrap(" · ".join(named), width, LABEL_LINES))


def _wrap(text: str, width: int, max_lines: int) -> list[str]:
    return textwrap.wrap(text, width, max_lines=max_lines, placeholder=" …")


def _write_lines(figure: Figure, left: float, top: float, row_id: str, lines: Sequence[_Line]) -> None:
    _write(figure, left, top + 1.2 * LINE, cut(row_id, 36), fontsize=FONT_SIZE, color=INK, weight="bold")
    for number, line in enumerate(lines, start=2):
        below = top + (number + 0.2) * LINE
        _write(figure, left, below, line.text, fontsize=FONT_SIZE, color=line.color, style=line.style)


def _write(figure: Figure, left: float, top: float, text: str, **style: Any) -> None:
    """Write a line whose base is `top` inches below the upper edge; dollars are dollars, not formulas."""
    figure.text(left / WIDTH, 1 - top / figure.get_figheight(), text, va="baseline", parse_math=False, **style)
