"""Pictures of a prepared folder: some rows, lengths of the texts, sizes of the images, and counts."""

import io
from collections import Counter
from collections.abc import Callable, Sequence
from itertools import pairwise
from math import ceil, floor
from pathlib import Path
from typing import Any

import datasets
import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator
from PIL import Image

from m3ae.data.contact_sheet import draw_contact_sheet
from m3ae.data.prepared import REJECTED, Manifest, array_shape, image_columns, load_manifest, load_split
from m3ae.data.tables import Broken, read_jsonl
from m3ae.figures import BLUE, ORANGE, cut, new_figure, save_figure
from m3ae.words import count_words

TEXT = datasets.Value("string")
TEXT_COLUMNS = ("text", "question", "answer")
NO_LABELS = ("id", "split", "subject", "study", "article", "text", "question", "answers", "answer_raw")
TOP = 20  # labels that are shown
MAX_PANELS = 4  # columns whose labels are shown
SIZES_READ = 3000  # images of a split and column whose size is read, evenly spread
# Hatching and line style tell the splits apart in grey.
SPLIT_STYLES: dict[str, dict[str, Any]] = {
    "train": {"color": BLUE, "linestyle": "-", "hatch": ""},
    "validation": {"color": ORANGE, "linestyle": "--", "hatch": "///"},
    "test": {"color": "#000000", "linestyle": ":", "hatch": "..."},
}

Splits = dict[str, datasets.Dataset]
Labels = dict[str, dict[str, Counter[str]]]  # how often each occurs, by column and split


def show(
    folder: Path, *, output: Path | None = None, split: str | None = None, num_rows: int = 12, seed: int = 0
) -> list[Path]:
    """Draw a contact sheet, text lengths, image sizes and counts, and print what was rejected and why.

    Args:
        folder: prepared folder.
        output: folder of the pictures; by default figures inside it.
        split: that the contact sheet shows; by default the first that has rows.
        num_rows: of the contact sheet, one drawn from each of as many equal stretches of the split.
        seed: of this draw.

    Returns:
        The PNG files.

    Raises:
        FileNotFoundError: the folder is missing or not prepared.
        ValueError: it is damaged, it has no such split, or the split is empty.
    """
    manifest, output = load_manifest(folder), output or folder / "figures"
    print(_describe_rejected(folder, manifest))
    filled = [name for name, info in manifest.splits.items() if info.rows]
    if not filled:
        raise ValueError(f"{folder} has no rows to show: all are in {REJECTED}")
    splits = {name: load_split(folder, name) for name in dict.fromkeys([*filled, *filter(None, [split])])}
    output.mkdir(parents=True, exist_ok=True)

    shown = split or filled[0]
    rows = splits[shown].select(spread_positions(len(splits[shown]), num_rows, seed))
    title = f"{folder.resolve().name}: {len(rows)} of the {len(splits[shown]):,} rows of split {shown}"
    sheet = output / "contact_sheet.png"
    labels = _label_counts(splits)
    draw_contact_sheet(sheet, title, list(rows), [*image_columns(rows.features), *matrix_columns(rows)], list(labels))
    drawn = [
        _plot_text_lengths(splits, output / "text_lengths.png"),
        _plot_image_sizes(splits, output / "image_sizes.png"),
        _plot_counts(manifest, labels, output / "counts.png"),
    ]
    return [sheet, *filter(None, drawn)]


def spread_positions(total: int, count: int, seed: int) -> list[int]:
    """Draw one position from each of `count` equal stretches of `range(total)`; all positions if there are no more."""
    edges = np.linspace(0, total, min(count, total) + 1).astype(int)
    generator = np.random.default_rng(seed)
    return [int(generator.integers(start, stop)) for start, stop in pairwise(edges)]


def matrix_columns(rows: datasets.Dataset) -> list[str]:
    """Return the columns that hold matrices of numbers, such as sequences of vectors."""
    return [column for column, feature in rows.features.items() if len(array_shape(feature)) == 2]


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


def _plot_text_lengths(splits: Splits, path: Path) -> Path | None:
    first = next(iter(splits.values()))
    lengths = {column: _by_split(splits, column, _word_counts) for column in TEXT_COLUMNS if column in first.features}
    lengths = {column: values for column, values in lengths.items() if any(map(len, values.values()))}
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


def _plot_image_sizes(splits: Splits, path: Path) -> Path | None:
    columns = image_columns(next(iter(splits.values())).features)
    sizes = {column: _by_split(splits, column, _image_sizes) for column in columns}
    sizes = {column: values for column, values in sizes.items() if any(map(len, values.values()))}
    if not sizes:
        return None
    figure, panels = _figure(2 * len(sizes))
    for number, (column, values) in enumerate(sizes.items()):
        every = np.concatenate(list(values.values()))
        shorter, ratio = panels[2 * number : 2 * number + 2]
        _histogram(shorter, {split: part.min(axis=1) for split, part in values.items()})
        shorter.set_title(f"{column}: sides of {every.min()} to {every.max()} px")
        shorter.set_xlabel("shorter side in px")
        _histogram(ratio, {split: part[:, 0] / part[:, 1] for split, part in values.items()})
        ratio.set_title(f"{column}: shape")
        ratio.set_xlabel("width / height")
        shorter.set_ylabel("share of the split's images")
    return save_figure(figure, path)


def _plot_counts(manifest: Manifest, labels: Labels, path: Path) -> Path:
    figure, panels = _figure(1 + len(labels), height=4.4)
    counts = {
        name: {"rows": info.rows, **info.images, **({} if info.texts is None else {"texts": info.texts})}
        for name, info in manifest.splits.items()
    }
    _bars(panels[0], counts, stacked=False)
    panels[0].set_title("rows, and how many have what")
    for axes, (column, by_split) in zip(panels[1:], labels.items(), strict=True):
        total = sum(by_split.values(), Counter())
        names = [name for name, _ in total.most_common(TOP)]
        chosen = {split: {name: found[name] for name in names} for split, found in by_split.items()}
        _bars(axes, chosen, stacked=True)
        axes.set_title(f"{column}: the {TOP} most frequent of {len(total):,}" if len(total) > TOP else column)
    figure.legend(*panels[0].get_legend_handles_labels(), loc="outside upper center", ncols=3, frameon=False)
    return save_figure(figure, path)


def _by_split(
    splits: Splits, column: str, measure: Callable[[datasets.Dataset, str], np.ndarray]
) -> dict[str, np.ndarray]:
    return {split: measure(rows, column) for split, rows in splits.items()}


def _word_counts(rows: datasets.Dataset, column: str) -> np.ndarray:
    """Return the number of words of every text: shape (texts,)."""
    cells = (cell if isinstance(cell, list) else [cell] for cell in rows[column] if cell)
    return np.array([count_words(text) for texts in cells for text in texts if text], dtype=np.int64)


def _image_sizes(rows: datasets.Dataset, column: str) -> np.ndarray:
    """Return width and height of images in px: shape (images, 2); of many, those of evenly spread rows."""
    chosen = np.linspace(0, len(rows) - 1, min(len(rows), SIZES_READ)).round().astype(int)
    cells = (cell for cell in rows.select(chosen)[column] if cell is not None)
    sizes = [Image.open(io.BytesIO(cell["bytes"])).size for cell in cells]
    return np.array(sizes, dtype=np.int64).reshape(-1, 2)


def _label_counts(splits: Splits) -> Labels:
    """Count the labels of columns whose values repeat, `labels` and `answer` first."""
    features = next(iter(splits.values())).features
    found = {}
    for column in sorted(features, key=lambda name: (name != "labels", name != "answer")):
        is_name = column in NO_LABELS or column.endswith("_id")
        if not is_name and features[column] in (TEXT, datasets.List(TEXT)):
            counts = {split: _count(rows[column]) for split, rows in splits.items()}
            total = sum(counts.values(), Counter())
            if total.total() > 2 * len(total):
                found[column] = counts
    return dict(list(found.items())[:MAX_PANELS])


def _count(cells: Sequence[Any]) -> Counter[str]:
    return Counter(label for cell in cells if cell for label in ([cell] if isinstance(cell, str) else cell))


def _histogram(axes: Axes, values: dict[str, np.ndarray]) -> None:
    """Draw the shares of each split as steps over common bins."""
    every = np.concatenate(list(values.values()))
    bins = _bins(every)
    for split, part in values.items():
        if len(part):
            style = SPLIT_STYLES[split]
            shares = np.full(len(part), 1 / len(part))
            axes.hist(
                part,
                bins.tolist(),
                weights=shares,
                histtype="step",
                label=f"{split} ({len(part):,})",
                color=style["color"],
                linestyle=style["linestyle"],
                linewidth=1.5,
            )
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
    names = list(dict.fromkeys(name for part in counts.values() for name in part))
    places, height = np.arange(len(names)), 0.8 if stacked else 0.8 / len(counts)
    left = np.zeros(len(names))
    for number, (split, part) in enumerate(counts.items()):
        values = np.array([part.get(name, 0) for name in names])
        style = SPLIT_STYLES[split]
        offset = 0 if stacked else (number - (len(counts) - 1) / 2) * height
        bars = axes.barh(
            places + offset,
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
    axes.set_yticks(places, [cut(name, 32) for name in names], parse_math=False)
    axes.invert_yaxis()
    axes.margins(x=0.12)
    axes.set_xlabel("rows")
