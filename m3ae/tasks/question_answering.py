"""Fine-tuning for questions about images, answered from a list (Chen et al. 2022), and what results are worth.

Beside the model stand five controls: the most frequent answer to each type of question, closed and open ones apart;
logistic regression on the words of the question; the answers to the same question, or to those of its type, about the
training images that look most like its own; and the model itself with a blank image and with that of another question.
"""

from __future__ import annotations

import math
import textwrap
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from functools import cache, cached_property, partial
from pathlib import Path
from typing import Any, NamedTuple, Self

import numpy as np
import torch
from accelerate import Accelerator, PartialState
from matplotlib.axes import Axes
from matplotlib.ticker import MaxNLocator
from numpy.typing import NDArray
from torch import Tensor

from m3ae.data.phantom.report import ask
from m3ae.data.prepared import load_manifest
from m3ae.data.questions import ANSWERS_FILE, count_answers, normalize_answer
from m3ae.data.samples import Sample, SampleDataset
from m3ae.data.tables import read_json
from m3ae.figures import VERMILION, cut, new_figure, save_figure
from m3ae.images.files import StoredImage
from m3ae.inference.drawing import draw_word_attention
from m3ae.metrics.text import is_right, vqa_accuracy
from m3ae.models.finetuned import M3AEForQuestionAnswering
from m3ae.tasks.controls import bag_of_words, look, majority_by_type, nearest_labels
from m3ae.tasks.data import check_used_splits, open_data
from m3ae.tasks.finetuning import (
    FineTuning,
    best_of,
    open_split,
    validation_limit,
)
from m3ae.tasks.models import has_labels, label_names, open_model
from m3ae.training.config import QuestionAnsweringRun

YES_OR_NO = {"yes", "no"}
WRONG, ASKED = VERMILION, "#DADADA"  # colours of the bars
ROW = 0.42  # height of a bar with its margin, in inches
NUM_ATTENTION_MAPS = 4


class Truth(NamedTuple):
    """The right answers to a question, normalised, and the types of answer and question."""

    answers: tuple[str, ...]
    answer_type: str
    question_type: str


class QuestionAnswering(FineTuning[M3AEForQuestionAnswering, QuestionAnsweringRun]):
    """Choice of an answer from the list in the model's `config.id2label`.

    Training leaves out questions without an answer in the list; measuring counts them as wrong.
    """

    main_metrics = ("accuracy", "closed_accuracy", "open_accuracy")

    @classmethod
    def from_config(cls, config: QuestionAnsweringRun, *, for_training: bool = True) -> Self:
        """Open data and model; a new head is drawn unless the saved model has one for the same answers."""
        open_data(config, for_training=for_training)
        dataset = cache(partial(open_questions, config))
        keep_head = config.question_answering.answers == "checkpoint"
        answers = [] if keep_head else answer_list(config, dataset)
        model, processor = open_model(
            config,
            M3AEForQuestionAnswering,
            lambda: dataset("train").texts(),
            {} if keep_head else {"id2label": dict(enumerate(answers))},
            new_head=not keep_head and not has_labels(config.model.path, M3AEForQuestionAnswering, answers),
        )
        task = cls(config, model, processor, dataset)
        return check_used_splits(task) if for_training else task

    @cached_property
    def answers(self) -> list[str]:
        """The answers that can be given, in the order of the model's columns."""
        return label_names(self.model.config)

    @cached_property
    def train_dataset(self) -> SampleDataset:
        """The training questions with an answer in the list."""
        dataset = self.dataset("train")
        return dataset.of([sample for sample in dataset.samples if self._targets(sample).any()])

    def check(self, split: str) -> None:
        """Make sure that a question of a split has an answer in the list."""
        samples = self.dataset(split).samples
        if not any(answer in self._columns for sample in samples for answer in sample.target.answers):
            raise ValueError(
                f"no question of {self.config.data.path}, {split}, has an answer among the {len(self.answers)} of the "
                f"list ({', '.join(self.answers[:3])}, …); its answers are {', '.join(samples[0].target.answers)}, … "
                "Set question_answering.answers to folder, or choose other data."
            )

    @cached_property
    def _columns(self) -> dict[str, int]:
        return {normalize_answer(answer): column for column, answer in enumerate(self.answers)}

    def labels(self, samples: Sequence[Sample]) -> dict[str, Tensor]:
        """Return which answers are right, (B, A)."""
        return {"labels": torch.stack([self._targets(sample) for sample in samples])}

    def metrics(
        self, model: M3AEForQuestionAnswering, accelerator: Accelerator, split: str, *, at_length: bool
    ) -> dict[str, float]:
        """Return the loss, the accuracies of all, closed and open questions and of each type, and their ceilings."""
        dataset = self.dataset(split)
        samples, (logits, images) = dataset.samples, self.predict(model, accelerator, dataset)
        answers = self.choose(logits)
        metrics = self._loss(dataset, logits) | self.score(samples, answers)
        if not at_length:
            return metrics
        if accelerator.is_main_process:
            self.write_predictions(split, self._describe_predictions(dataset, self.model.probabilities(logits)))
        metrics |= self.intervals(_right_by_type(samples, answers), images)
        return metrics | self.controls(
            model,
            accelerator,
            dataset,
            without_model=lambda: self.answers_without_model(dataset),
            read=self.choose,
            score=partial(self.score, samples),
        )

    def answers_without_model(self, dataset: SampleDataset) -> dict[str, list[str]]:
        """Return what majority, bag of words and the nearest images answer; nothing without training questions."""
        if not self.has("train"):
            return {}
        training = self.dataset("train")
        train, measured = training.samples, dataset.samples
        answers = [sample.target.answers[0] for sample in train]
        types, measured_types = (
            [f"{sample.target.question_type}, {sample.target.answer_type}" for sample in samples]
            for samples in (train, measured)
        )
        questions, measured_questions = ([sample.cells["text"] for sample in samples] for samples in (train, measured))
        controls = {
            "majority": majority_by_type(answers, types, measured_types),
            "bag_of_words": bag_of_words(questions, answers, measured_questions),
        }
        if self.config.data.image_columns:
            groups, wanted = (
                [*zip(*pair, strict=True)] for pair in ((questions, types), (measured_questions, measured_types))
            )
            controls["nearest"] = nearest_labels(looks(training), answers, groups, looks(dataset), wanted)
        return controls

    def choose(self, logits: Tensor) -> list[str]:
        """Return the answer with the highest logit (n, A) of each question."""
        return [self.answers[column] for column in logits.argmax(-1).tolist()]

    def score(self, samples: Sequence[Sample], answers: Sequence[str]) -> dict[str, float]:
        """Return accuracies and ceilings, see `vqa_accuracy`."""
        return vqa_accuracy(
            predictions=answers,
            references=[sample.target.answers for sample in samples],
            answer_types=[sample.target.answer_type for sample in samples],
            question_types=[sample.target.question_type for sample in samples],
            answer_list=self.answers,
        )

    def describe(self) -> dict[str, Any]:
        """Return what the results depend on, the list of answers among it."""
        return super().describe() | {"answers": len(self.answers), "answers_from": answers_from(self.config)}

    def illustrate(self, model: M3AEForQuestionAnswering, folder: Path) -> list[Path]:
        """Draw the questions most often wrong and, for some, where in the image their words look."""
        split = "test" if self.has("test") else "validation"
        rows = [row | {"answers": row["truth"]} for row in self.read_predictions(split)]
        plot_mistakes(folder / "mistakes.png", rows)
        return [folder / "mistakes.png", *self._draw_attention(model, folder, split, rows)]

    def _draw_attention(
        self, model: M3AEForQuestionAnswering, folder: Path, split: str, predictions: Sequence[Mapping[str, Any]]
    ) -> list[Path]:
        """Draw the attention behind some answers, spread over the split."""
        dataset, paths = self.dataset(split), list[Path]()
        for index in range(0, len(dataset), max(1, math.ceil(len(dataset) / NUM_ATTENTION_MAPS))):
            sample, prediction = dataset.first(index), predictions[index]
            if sample.images and sample.text is not None:
                note = f"answer: {prediction['prediction']}; right: {' or '.join(prediction['truth'])}"
                images = {name: c.decode() for name, c in sample.cells.items() if isinstance(c, StoredImage)}
                figure = draw_word_attention(model, self.processor, images, sample.text, note)
                paths.append(save_figure(figure, folder / f"attention_{len(paths) + 1}.png"))
        return paths

    def _targets(self, sample: Sample) -> Tensor:
        columns = [self._columns[answer] for answer in sample.target.answers if answer in self._columns]
        return torch.zeros(len(self.answers)).index_fill(0, torch.tensor(columns, dtype=torch.long), 1.0)

    def _loss(self, dataset: SampleDataset, logits: Tensor) -> dict[str, float]:
        targets = self.labels(dataset.samples)["labels"]
        known = targets.any(-1)
        return {"loss": float(self.model.loss(logits[known], targets[known]))}

    def _describe_predictions(self, dataset: SampleDataset, scores: Tensor) -> Iterator[dict[str, Any]]:
        for sample, sample_scores in zip(dataset.samples, scores, strict=True):
            top, truth = best_of(self.answers, sample_scores), sample.target
            yield {
                **self.reference(dataset, sample),
                "question": sample.cells["text"],
                "answer_type": truth.answer_type,
                "question_type": truth.question_type,
                "prediction": top[0]["label"],
                "top": top,
                "truth": list(truth.answers),
                "correct": is_right(top[0]["label"], truth.answers),
                "in_list": not self._columns.keys().isdisjoint(truth.answers),
            }


def open_questions(config: QuestionAnsweringRun, split: str) -> SampleDataset:
    """Open the questions of a split, at most `data.max_validation_samples` of validation; targets are `Truth`s.

    Rows without question or answer are left out, and counted in a message. Questions about phantoms are generated.

    Raises:
        FileNotFoundError: There is no such prepared folder.
        ValueError: It lacks the split or a column, or no row has both question and answer.
    """
    generated = load_manifest(config.data.path).source == "phantom"
    dataset = open_split(config, split, texts=not generated)
    if not generated and not {"answer", "answers"} & set(dataset.features):
        raise ValueError(
            f"{config.data.path} has no column 'answer'; it has {', '.join(dataset.features)}. Question answering "
            "needs questions with answers: prepare a data set that has them."
        )
    samples, unusable = [], 0
    for row, cells in enumerate(dataset.rows()):
        for item in ask(cells) if generated else [cells | {"question": " ".join(dataset.columns.texts_of(cells))}]:
            answers = right_answers(item)
            unusable += not (item["question"] and answers)
            if item["question"] and answers:
                truth = Truth(answers, answer_type(item, answers), item.get("question_type") or "")
                samples.append(Sample(item["id"], {"text": item["question"]}, target=truth, row=row))
    if unusable:
        PartialState().print(f"{unusable} rows of {config.data.path}, {split}, lack question or answer: left out")
    if not samples:
        raise ValueError(f"no row of {config.data.path}, {split}, has both question and answer")
    return dataset.of(samples, validation_limit(config, split))


def looks(dataset: SampleDataset) -> NDArray[np.float32]:
    """Return what the first image of each question looks like (n, F); several questions are about one image."""
    known: dict[int, NDArray[np.float32]] = {}
    rows = []
    for sample in map(dataset.first, range(len(dataset))):
        if sample.image_id not in known:
            known[sample.image_id] = look(sample.picture if sample.images else None)
        rows.append(known[sample.image_id])
    return np.stack(rows)


def right_answers(cells: Mapping[str, Any]) -> tuple[str, ...]:
    """Return the right answers of a row, normalised and each once: its `answers`, or else its `answer`."""
    answers = cells.get("answers") or [cells.get("answer") or ""]
    return tuple(dict.fromkeys(filter(None, map(normalize_answer, answers))))


def answer_type(cells: Mapping[str, Any], answers: Sequence[str]) -> str:
    """Return the type of a row's answer: where the data do not say it, closed if it is yes or no."""
    known: str = cells.get("answer_type") or ""
    return known or ("closed" if YES_OR_NO.issuperset(answers) else "open")


def answer_list(config: QuestionAnsweringRun, dataset: Callable[[str], SampleDataset]) -> list[str]:
    """Return the answers of `answers.json` beside the prepared data, or else those to its training questions.

    Raises:
        ValueError: The file holds no list of answers.
    """
    path = config.data.path / ANSWERS_FILE
    if not path.is_file():
        return list(count_answers({"answers": sample.target.answers} for sample in dataset("train").samples))
    content = read_json(path)
    answers = content.get("answers") if isinstance(content, dict) else None
    if not answers or not all(isinstance(answer, str) for answer in answers):
        raise ValueError(f"{path} holds no list of answers: prepare the folder again, or remove the file to train on")
    return list(answers)


def answers_from(config: QuestionAnsweringRun) -> str:
    """Say where the list of answers is from: the checkpoint, the training split, or all splits, test included."""
    path = config.data.path / ANSWERS_FILE
    if config.question_answering.answers == "checkpoint":
        return "checkpoint"
    return str(read_json(path).get("answers_from")) if path.is_file() else "train"


def _right_by_type(samples: Sequence[Sample], answers: Sequence[str]) -> dict[str, list[float]]:
    """Return 1 for right and 0 for wrong by metric; NaN for questions that the metric does not count."""
    right = [float(is_right(answer, sample.target.answers)) for sample, answer in zip(samples, answers, strict=True)]
    types = [sample.target.answer_type for sample in samples]
    by_type = {
        f"{name}_accuracy": [value if kind == name else np.nan for value, kind in zip(right, types, strict=True)]
        for name in sorted(set(types))
    }
    return {"accuracy": right} | by_type


class Mistake(NamedTuple):
    """A question that was answered wrong at least once.

    Attributes:
        question: The question in its first wording.
        images: Number of images with this question.
        wrong: Number of wrong answers.
        prediction: The commonest wrong answer.
        predicted: Number of times that the commonest wrong answer was given.
        truth: The commonest right answer where that wrong one was given.
    """

    question: str
    images: int
    wrong: int
    prediction: str
    predicted: int
    truth: str


def common_mistakes(rows: Iterable[Mapping[str, Any]]) -> list[Mistake]:
    """Return the questions answered wrong, the most often wrong first, then those wrong in a greater share.

    Args:
        rows: Mappings with `question`, `prediction` and the accepted `answers`. Questions that differ only in case,
            articles and punctuation count as one.
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
    return sorted(mistakes, key=lambda mistake: (-mistake.wrong, mistake.images, mistake.question))


def plot_mistakes(path: Path, rows: Iterable[Mapping[str, Any]], limit: int = 15) -> None:
    """Draw how often the `limit` questions most often wrong were asked and answered wrong, as a PNG."""
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
    positions = range(len(mistakes))
    axes.barh(positions, [mistake.images for mistake in mistakes], color=ASKED, height=0.6, label="asked")
    axes.barh(positions, [mistake.wrong for mistake in mistakes], color=WRONG, height=0.6, label="answered wrong")
    for position, mistake in enumerate(mistakes):
        answer = f"“{cut(mistake.prediction, 28)}” for “{cut(mistake.truth, 28)}”"
        note = answer if mistake.wrong == 1 else f"{mistake.predicted} × {answer}"
        axes.text(mistake.images, position, f"  {note}", va="center", fontsize=8, parse_math=False)
    questions = [textwrap.fill(cut(mistake.question, 84), 44) for mistake in mistakes]
    axes.set_yticks(positions, questions, fontsize=8, parse_math=False)
    axes.set_ylim(len(mistakes) - 0.5, -0.5)
    most = max(mistake.images for mistake in mistakes)
    axes.set_xlim(0, 1.8 * most)  # the answers stand on the right
    axes.set_xticks([tick for tick in MaxNLocator(integer=True).tick_values(0, most) if tick <= most])
    axes.spines["bottom"].set_bounds(0, most)
    axes.tick_params(axis="x", labelsize=8)
    axes.tick_params(axis="y", length=0)
    axes.spines[["top", "right"]].set_visible(False)
    axes.legend(frameon=False, loc="lower right", bbox_to_anchor=(1, 1), ncols=2, fontsize=8)
