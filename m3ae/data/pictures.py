"""Pictures of a prepared folder: a contact sheet of rows, lengths of texts, sizes of images, and counts."""

import io
import sys
import textwrap
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from itertools import pairwise
from math import ceil, floor
from pathlib import Path
from typing import Any, NamedTuple

import datasets
import numpy as np
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from matplotlib.patches import Rectangle
from matplotlib.ticker import MaxNLocator
from PIL import Image

from m3ae.data.prepared import REJECTED, Manifest, array_shape, image_columns, load_manifest, load_split
from m3ae.data.tables import Broken, read_jsonl
from m3ae.figures import BLUE, FAINT, INK, ORANGE, cut, new_figure, save_figure
from m3ae.images.files import decode_image
from m3ae.words import count_words

TEXT = datasets.Value("string")
TEXT_COLUMNS = ("text", "question", "answer")
NO_LABELS = ("id", "split", "subject", "study", "article", "text", "question", "answers", "answer_raw")
TOP = 20  # labels of a panel
LISTED = 8  # labels of a line
MAX_PANELS = 4  # columns of labels
SIZES_READ = 3000  # images of a split and column whose size is read, evenly spread
# Hatching and line style tell the splits apart in grey.
SPLIT_STYLES: dict[str, dict[str, Any]] = {
    "train": {"color": BLUE, "linestyle": "-", "hatch": ""},
    "validation": {"color": ORANGE, "linestyle": "--", "hatch": "///"},
    "test": {"color": "#000000", "linestyle": ":", "hatch": "..."},
}

# lengths of the contact sheet, in inches
WIDTH, GAP, TITLE, IMAGE_HEIGHT, LINE = 12.0, 0.25, 0.45, 2.2, 0.135
FONT_SIZE = 7.5  # points
CHARACTERS_PER_INCH = 72 / (0.55 * FONT_SIZE)
# column: the prefix of its cell, the colour, and the largest number of lines
TEXT_STYLES = {"text": ("", INK, 8), "question": ("Q: ", INK, 4), "answer": ("A: ", BLUE, 2)}
LABEL_LINES = 3

Splits = dict[str, datasets.Dataset]
Labels = dict[str, dict[str, Counter[str]]]  # the frequency of each label, by column and split


def draw_pictures(
    folder: Path, *, output: Path | None = None, split: str | None = None, num_rows: int = 12, seed: int = 0
) -> list[Path]:
    """Draw a contact sheet, text lengths, image sizes and counts, and print what was rejected and why.

    Args:
        folder: The prepared folder.
        output: The folder of the pictures; by default `figures` inside the prepared folder. Older pictures in it are
            replaced, and the standard error names them.
        split: The split of the contact sheet; by default the first one that has rows.
        num_rows: The number of rows of the contact sheet, one from each of as many equal stretches of the split.
        seed: The seed of the choice of rows.

    Returns:
        The PNG files.

    Raises:
        FileNotFoundError: The folder is missing or not prepared.
        ValueError: The folder is damaged, the split is unknown, or it is empty.
    """
    manifest, output = load_manifest(folder), output or folder / "figures"
    print(_describe_rejected(folder, manifest))
    filled = [name for name, info in manifest.splits.items() if info.rows]
    if not filled:
        raise ValueError(f"{folder} has no rows to show: all are in {REJECTED}")
    splits = {name: load_split(folder, name) for name in dict.fromkeys([*filled, *filter(None, [split])])}
    labels = label_counts(splits)
    print(describe_labels(labels), end="")
    split = split or filled[0]
    drawings: dict[str, Callable[[Path], Path | None]] = {
        "contact_sheet.png": lambda path: draw_contact_sheet(
            path, folder.resolve().name, split, splits[split], [*labels], num_rows, seed
        ),
        "text_lengths.png": lambda path: _plot_text_lengths(splits, path),
        "image_sizes.png": lambda path: _plot_image_sizes(splits, path),
        "counts.png": lambda path: _plot_counts(manifest, labels, path),
    }
    if replaced := [name for name in drawings if (output / name).exists()]:
        print(f"{output}: replaced {', '.join(replaced)}", file=sys.stderr)
    return [path for name, draw in drawings.items() if (path := draw(output / name)) is not None]


def draw_contact_sheet(
    path: Path, name: str, split: str, rows: datasets.Dataset, labels: Sequence[str], num_rows: int = 12, seed: int = 0
) -> Path:
    """Draw rows of a prepared split as cards, images above, texts and labels below, and return the PNG.

    The cards name missing images and texts; texts that are too long end in "…". Matrices are drawn
    with their rows from left to right.

    Args:
        path: The PNG.
        name: The name of the set.
        split: The name of the split.
        rows: The rows of the split, with undecoded images.
        labels: The columns that hold a label or a list of labels.
        num_rows: The number of cards, one from each of as many equal stretches of the split.
        seed: The seed of the choice of rows.
    """
    empty = [name for name in TEXT_COLUMNS if name in rows.features and not any(rows[name])]
    cards = [*rows.remove_columns(empty).select(spread_positions(len(rows), num_rows, seed))]  # not "no answer" on all
    title = f"{name}: {len(cards)} of the {len(rows):,} rows of split {split}"
    images = [*image_columns(rows.features), *matrix_columns(rows)]
    columns = 4 if len(images) < 2 else 3
    width = (WIDTH - GAP) / columns - GAP
    lines = [list(_lines(row, labels, int(width * CHARACTERS_PER_INCH))) for row in cards]
    bands = [range(start, min(start + columns, len(cards))) for start in range(0, len(cards), columns)]
    image_height = min(IMAGE_HEIGHT, 1.1 * width / len(images)) if images else 0.0
    heights = [image_height + LINE * (1.5 + max(len(lines[i]) for i in band)) + GAP for band in bands]
    figure = Figure(figsize=(WIDTH, TITLE + sum(heights)))
    FigureCanvasAgg(figure)
    _write(figure, GAP, TITLE - 0.15, title, fontsize=12, color=INK)
    top = TITLE
    for band, height in zip(bands, heights, strict=True):
        for column, index in enumerate(band):
            left = GAP + column * (width + GAP)
            for number, image in enumerate(images):
                box = (left + number * width / len(images), top, width / len(images) - 0.05, image_height)
                _draw_image(figure, box, image if len(images) > 1 else "", cards[index][image], cards[index]["id"])
            _write_lines(figure, left, top + image_height, cards[index]["id"], lines[index])
        top += height
    save_figure(figure, path)
    return path


def spread_positions(total: int, count: int, seed: int) -> list[int]:
    """Draw one position from each of `count` equal stretches of `range(total)`; all positions if `count` is larger."""
    edges = np.linspace(0, total, min(count, total) + 1).astype(int)
    generator = np.random.default_rng(seed)
    return [int(generator.integers(start, stop)) for start, stop in pairwise(edges)]


def matrix_columns(rows: datasets.Dataset) -> list[str]:
    """Return the columns that hold matrices of numbers, such as sequences of vectors."""
    return [column for column, feature in rows.features.items() if len(array_shape(feature)) == 2]


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


class _Line(NamedTuple):
    text: str
    color: str
    style: str = "normal"


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


def _describe_rejected(folder: Path, manifest: Manifest) -> str:
    """Return a table of reasons with an example each, for rows and for single cells that were left out."""
    counts: Counter[str] = Counter()
    examples: dict[str, str] = {}
    if (folder / REJECTED).is_file():
        for _, entry in read_jsonl(folder / REJECTED):
            if not isinstance(entry, Broken):
                what = f"{entry['column']}: {entry['reason']}" if entry["column"] else f"row: {entry['reason']}"
                counts[what] += 1
                detail = f" ({entry['detail']})" if entry["detail"] else ""
                examples.setdefault(what, f"{entry['id']}{detail}")
    lines = [f"{folder}: {sum(info.rows for info in manifest.splits.values()):,} rows, {counts.total():,} rejected"]
    lines += [f"{count:>9,}  {what}, e.g. {examples[what]}" for what, count in counts.most_common()]
    return "\n".join(lines)


def _figure(panels: int, height: float = 3.4) -> tuple[Figure, list[Axes]]:
    columns = min(panels, 2)
    rows = -(-panels // columns)
    figure = new_figure(6 * columns, height * rows)
    return figure, [figure.add_subplot(rows, columns, number) for number in range(1, panels + 1)]


def _measure(
    splits: Splits, columns: Sequence[str], measure: Callable[[datasets.Dataset, str], np.ndarray]
) -> dict[str, dict[str, np.ndarray]]:
    """Return the values of each column by split, without columns that have none."""
    measured = {column: {split: measure(rows, column) for split, rows in splits.items()} for column in columns}
    return {column: values for column, values in measured.items() if any(map(len, values.values()))}


def _plot_text_lengths(splits: Splits, path: Path) -> Path | None:
    features = next(iter(splits.values())).features
    lengths = _measure(splits, [column for column in TEXT_COLUMNS if column in features], _word_counts)
    if not lengths:
        return None
    figure, panels = _figure(len(lengths))
    for axes, (column, values) in zip(panels, lengths.items(), strict=True):
        every = np.concatenate(list(values.values()))
        _histogram(axes, values)
        axes.set_title(f"{column}: median {np.median(every):.0f}, longest {every.max()} words")
        axes.set_xlabel("words")
        axes.set_ylabel("share of the split's texts")
    return save_figure(figure, path)


def _word_counts(rows: datasets.Dataset, column: str) -> np.ndarray:
    """Return the number of words of every text: shape (texts,)."""
    cells = (cell if isinstance(cell, list) else [cell] for cell in rows[column] if cell)
    return np.array([count_words(text) for texts in cells for text in texts if text], dtype=np.int64)


def _plot_image_sizes(splits: Splits, path: Path) -> Path | None:
    sizes = _measure(splits, image_columns(next(iter(splits.values())).features), _image_sizes)
    if not sizes:
        return None
    figure, panels = _figure(2 * len(sizes))
    for number, (column, values) in enumerate(sizes.items()):
        every = np.concatenate(list(values.values()))
        shorter, ratio = panels[2 * number : 2 * number + 2]
        _histogram(shorter, {split: sides.min(axis=1) for split, sides in values.items()})
        shorter.set_title(f"{column}: sides of {every.min()} to {every.max()} px")
        shorter.set_xlabel("shorter side in px")
        shorter.set_ylabel("share of the split's images")
        _histogram(ratio, {split: sides[:, 0] / sides[:, 1] for split, sides in values.items()})
        ratio.set_title(f"{column}: shape")
        ratio.set_xlabel("width / height")
    return save_figure(figure, path)


def _image_sizes(rows: datasets.Dataset, column: str) -> np.ndarray:
    """Return width and height of images in px: shape (images, 2); evenly spread rows stand for many."""
    positions = np.linspace(0, len(rows) - 1, min(len(rows), SIZES_READ)).round().astype(int)
    cells = (cell for cell in rows.select(positions)[column] if cell is not None)
    sizes = [Image.open(io.BytesIO(cell["bytes"])).size for cell in cells]
    return np.array(sizes, dtype=np.int64).reshape(-1, 2)


def _plot_counts(manifest: Manifest, labels: Labels, path: Path) -> Path:
    figure, panels = _figure(1 + len(labels), height=4.4)
    counts = {
        name: {"rows": info.rows, **info.images, **({} if info.texts is None else {"texts": info.texts})}
        for name, info in manifest.splits.items()
    }
    _bars(panels[0], counts, stacked=False)
    panels[0].set_title("rows, images and texts")
    for axes, (column, by_split) in zip(panels[1:], labels.items(), strict=True):
        total = sum(by_split.values(), Counter())
        names = [name for name, _ in total.most_common(TOP)]
        _bars(axes, {split: {name: count[name] for name in names} for split, count in by_split.items()}, stacked=True)
        axes.set_title(f"{column}: the {TOP} most frequent of {len(total):,}" if len(total) > TOP else column)
    figure.legend(*panels[0].get_legend_handles_labels(), loc="outside upper center", ncols=3, frameon=False)
    return save_figure(figure, path)


def label_counts(splits: Splits) -> Labels:
    """Count the labels of columns whose values repeat, `labels` and `answer` first."""
    features = next(iter(splits.values())).features
    labels: Labels = {}
    for column in sorted(features, key=lambda name: (name != "labels", name != "answer")):
        is_name = column in NO_LABELS or column.endswith("_id")
        if not is_name and features[column] in (TEXT, datasets.List(TEXT)):
            counts = {split: _count(rows[column]) for split, rows in splits.items()}
            total = sum(counts.values(), Counter())
            if total.total() > 2 * len(total):
                labels[column] = counts
    return dict(list(labels.items())[:MAX_PANELS])


def describe_labels(labels: Labels) -> str:
    """Return a line for each column and split with its most frequent labels."""
    lines = []
    for column, by_split in labels.items():
        for split, counts in by_split.items():
            names = ", ".join(f"{cut(name, 40)} {count:,}" for name, count in counts.most_common(LISTED))
            more = f" and {len(counts) - LISTED} more" if len(counts) > LISTED else ""
            lines.append(f"{column}, {split}: {names or 'none'}{more}\n")
    return "".join(lines)


def _count(cells: Sequence[Any]) -> Counter[str]:
    return Counter(label for cell in cells if cell for label in ([cell] if isinstance(cell, str) else cell))


def _histogram(axes: Axes, values: dict[str, np.ndarray]) -> None:
    """Draw the shares of each split as steps over common bins."""
    every = np.concatenate(list(values.values()))
    bins = _bins(every).tolist()
    for split, numbers in values.items():
        if len(numbers):
            style = {key: SPLIT_STYLES[split][key] for key in ("color", "linestyle")}
            shares, label = np.full(len(numbers), 1 / len(numbers)), f"{split} ({len(numbers):,})"
            axes.hist(numbers, bins, weights=shares, histtype="step", label=label, linewidth=1.5, **style)
    axes.xaxis.set_major_locator(MaxNLocator(integer=np.issubdtype(every.dtype, np.integer)))
    axes.legend(frameon=False)


def _bins(values: np.ndarray) -> np.ndarray:
    """Return the edges of about 30 bins, all of which hold equally many whole numbers if the values are whole."""
    low, high = values.min(), values.max()
    if low == high:
        low, high = 0.9 * low, 1.1 * high
    if not np.issubdtype(values.dtype, np.integer):
        return np.linspace(low, high, 32)
    low, high = floor(low), ceil(high)
    step = ceil((high - low + 1) / 30)
    return np.arange(low, high + step + 1, step) - 0.5


def _bars(axes: Axes, counts: dict[str, dict[str, int]], *, stacked: bool) -> None:
    """Draw a horizontal bar for every name, its splits behind or below each other."""
    names = list(dict.fromkeys(name for split_counts in counts.values() for name in split_counts))
    positions, height = np.arange(len(names)), 0.8 if stacked else 0.8 / len(counts)
    left = np.zeros(len(names))
    for number, (split, split_counts) in enumerate(counts.items()):
        values = np.array([split_counts.get(name, 0) for name in names])
        style = SPLIT_STYLES[split]
        offset = 0 if stacked else (number - (len(counts) - 1) / 2) * height
        bars = axes.barh(
            positions + offset,
            values,
            height,
            left=left if stacked else None,
            label=split,
            facecolor=style["color"] if not style["hatch"] else "white",
            edgecolor=style["color"],
            hatch=style["hatch"],
            linewidth=np.where(values, 1, 0),  # or a split without such rows would still be a line
        )
        if not stacked:
            axes.bar_label(bars, fmt="{:,.0f}", padding=3, fontsize=8)
        left += values
    axes.set_yticks(positions, [cut(name, 32) for name in names], parse_math=False)
    axes.invert_yaxis()
    axes.margins(x=0.12)
    axes.set_xlabel("rows")
