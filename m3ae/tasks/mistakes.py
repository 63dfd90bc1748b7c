"""The questions that a model most often answers wrong, and what it answers."""

from __future__ import annotations

import textwrap
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from matplotlib.axes import Axes
from matplotlib.ticker import MaxNLocator

from m3ae.data.questions import normalize_answer
from m3ae.figures import VERMILION, cut, new_figure, save_figure
from m3ae.metrics.text import is_right

WRONG, ASKED = VERMILION, "#DADADA"
ROW = 0.42  # inches


class Mistake(NamedTuple):
    """A question that was answered wrong at least once.

    Attributes:
        question: As it was asked first.
        asked: About how many images.
        wrong: How often the answer was wrong.
        prediction: The commonest wrong answer.
        predicted: How often it was given.
        truth: The commonest right answer where it was given.
    """

    question: str
    asked: int
    wrong: int
    prediction: str
    predicted: int
    truth: str


def common_mistakes(rows: Iterable[Mapping[str, Any]]) -> list[Mistake]:
    """Return the questions answered wrong, the most often wrong first, then those wrong in a greater share.

    Args:
        rows: With `question`, `prediction` and the accepted `answers`. Questions are the same if they are after
            normalisation as answers: they may differ in case, articles and punctuation.
    """
    groups: dict[str, list[Mapping[str, Any]]] = {}
    for row in rows:
        groups.setdefault(normalize_answer(row["question"]), []).append(row)
    mistakes = []
    for group in groups.values():
        wrong = [row for row in group if not is_right(row["prediction"], row["answers"])]
        if wrong:
            prediction, predicted = Counter(row["prediction"] for row in wrong).most_common(1)[0]
            truths = Counter(row["answers"][0] for row in wrong if row["prediction"] == prediction)
            truth = truths.most_common(1)[0][0]
            mistakes.append(Mistake(group[0]["question"], len(group), len(wrong), prediction, predicted, truth))
    return sorted(mistakes, key=lambda mistake: (-mistake.wrong, mistake.asked, mistake.question))


def plot_mistakes(path: Path, rows: Iterable[Mapping[str, Any]], limit: int = 15) -> None:
    """Draw how often each of the `limit` questions most often wrong was asked and answered wrong, as a PNG.

    Args:
        path: Of the PNG.
        rows: See `common_mistakes`.
        limit: Number of questions.
    """
    rows = list(rows)
    mistakes = common_mistakes(rows)
    shown = mistakes[:limit]
    figure = new_figure(10, 1.1 + ROW * len(shown))
    axes = figure.subplots()
    total = sum(mistake.wrong for mistake in mistakes)
    axes.set_title(f"Questions most often wrong ({total:,} wrong answers of {len(rows):,})", loc="left", fontsize=11)
    if shown:
        _draw_bars(axes, shown)
    else:
        axes.set_axis_off()
    save_figure(figure, path)


def _draw_bars(axes: Axes, mistakes: Sequence[Mistake]) -> None:
    places = range(len(mistakes))
    axes.barh(places, [mistake.asked for mistake in mistakes], color=ASKED, height=0.6, label="asked")
    axes.barh(places, [mistake.wrong for mistake in mistakes], color=WRONG, height=0.6, label="answered wrong")
    for place, mistake in enumerate(mistakes):
        axes.text(mistake.asked, place, f"  {_describe(mistake)}", va="center", fontsize=8, parse_math=False)
    questions = [textwrap.fill(cut(mistake.question, 84), 44) for mistake in mistakes]
    axes.set_yticks(places, questions, fontsize=8, parse_math=False)
    axes.set_ylim(len(mistakes) - 0.5, -0.5)
    most = max(mistake.asked for mistake in mistakes)
    axes.set_xlim(0, 1.8 * most)  # the answers stand on the right
    axes.set_xticks([tick for tick in MaxNLocator(integer=True).tick_values(0, most) if tick <= most])
    axes.spines["bottom"].set_bounds(0, most)
    axes.tick_params(axis="x", labelsize=8)
    axes.tick_params(axis="y", length=0)
    axes.spines[["top", "right"]].set_visible(False)
    axes.legend(frameon=False, loc="lower right", bbox_to_anchor=(1, 1), ncols=2, fontsize=8)


def _describe(mistake: Mistake) -> str:
    answer = f"“{cut(mistake.prediction, 28)}” for “{cut(mistake.truth, 28)}”"
    return answer if mistake.wrong == 1 else f"{mistake.predicted} × {answer}"
