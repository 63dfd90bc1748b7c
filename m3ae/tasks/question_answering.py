"""Fine-tuning for questions about images, answered from a list (Chen et al. 2022), and what results are worth.

Beside the model stand four controls: the most frequent answer to each type of question, closed and open ones apart;
logistic regression on the words of the question; and the model itself with a blank image and with that of another
question.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from functools import cache, cached_property, partial
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from accelerate import Accelerator, PartialState
from torch import Tensor

from m3ae.data.phantom.report import ask
from m3ae.data.prepared import load_manifest
from m3ae.data.questions import ANSWERS_FILE, count_answers, normalize_answer
from m3ae.data.samples import Sample, SampleDataset
from m3ae.data.tables import read_json
from m3ae.figures import save_figure
from m3ae.inference.drawing import draw_word_attention
from m3ae.metrics.text import is_right, vqa_accuracy
from m3ae.models.finetuned import M3AEForQuestionAnswering
from m3ae.models.processing import M3AEProcessor
from m3ae.tasks.controls import bag_of_words, majority_by_type
from m3ae.tasks.finetuning import (
    IMAGE_CONTROLS,
    FineTuning,
    best_of,
    in_main_process,
    open_data,
    open_split,
    prefixed,
    validation_limit,
)
from m3ae.tasks.mistakes import plot_mistakes
from m3ae.tasks.models import has_labels, label_names, open_model
from m3ae.training.config import QuestionAnsweringRun

YES_OR_NO = {"yes", "no"}
NUM_ATTENTION_MAPS = 4
MAIN_METRICS = ("accuracy", "closed_accuracy", "open_accuracy")


class Truth(NamedTuple):
    """The right answers to a question, normalised, and the types of answer and question."""

    answers: tuple[str, ...]
    answer_type: str
    question_type: str


class QuestionAnswering(FineTuning[M3AEForQuestionAnswering, QuestionAnsweringRun]):
    """Choice of an answer from the list in the model's `config.id2label`.

    Training leaves out questions without an answer in the list; measuring counts them as wrong.

    Args:
        config: The run.
        model: With a head for the list.
        processor: Of that model.
        dataset: Opens the questions of a split.
    """

    def __init__(
        self,
        config: QuestionAnsweringRun,
        model: M3AEForQuestionAnswering,
        processor: M3AEProcessor,
        dataset: Callable[[str], SampleDataset],
    ) -> None:
        super().__init__(config, model, processor)
        self.dataset = dataset

    @classmethod
    def from_config(cls, config: QuestionAnsweringRun, *, for_training: bool = True) -> QuestionAnswering:
        """Open data and model; a new head is drawn unless the saved model has one for the same answers.

        Raises:
            FileNotFoundError: The prepared folder is missing and the config does not say how to make it.
            ValueError: Data, model and config do not fit together, or no training question has an answer in the list.
        """
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
        if for_training:
            task.check_splits()
        return task

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

    def evaluate(self, model: M3AEForQuestionAnswering, accelerator: Accelerator, split: str) -> dict[str, float]:
        """Return the loss, the accuracies of all, closed and open questions and of each type, and their ceilings."""
        dataset = self.dataset(split)
        logits = self.predict(model, accelerator, dataset).logits
        return self._loss(dataset, logits) | self.score(dataset.samples, self.choose(logits))

    def final(self, model: M3AEForQuestionAnswering, accelerator: Accelerator, split: str) -> dict[str, float]:
        """Return these with 95 % intervals over the images and the controls; write the predictions."""
        dataset = self.dataset(split)
        logits, images = self.predict(model, accelerator, dataset)
        answers, samples = self.choose(logits), dataset.samples
        metrics = self._loss(dataset, logits) | self.score(samples, answers)
        metrics |= self.intervals(_right_by_type(samples, answers), images)
        if self.config.evaluation.controls:
            given = in_main_process(accelerator, lambda: self.answers_without_model(dataset))
            if self.config.data.image_columns:
                for name, source in IMAGE_CONTROLS.items():
                    given[name] = self.choose(self.predict(model, accelerator, dataset, source).logits)
            for name, chosen in given.items():
                scores = self.score(samples, chosen)
                metrics |= prefixed(name, {key: scores[key] for key in MAIN_METRICS if key in scores})
        if accelerator.is_main_process:
            self.write_predictions(split, self._describe_predictions(dataset, self.model.probabilities(logits)))
        return metrics

    def answers_without_model(self, dataset: SampleDataset) -> dict[str, list[str]]:
        """Return what majority and bag of words answer; nothing if there are no training questions."""
        if not self.has("train"):
            return {}
        train, measured = self.dataset("train").samples, dataset.samples
        answers = [sample.target.answers[0] for sample in train]
        types, asked_types = (
            [f"{sample.target.question_type}, {sample.target.answer_type}" for sample in samples]
            for samples in (train, measured)
        )
        texts, asked = ([sample.cells["text"] for sample in samples] for samples in (train, measured))
        return {
            "majority": majority_by_type(answers, types, asked_types),
            "bag_of_words": bag_of_words(texts, answers, asked),
        }

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
                figure = draw_word_attention(model, self.processor, sample.picture, sample.text, note)
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
    """Open the questions of a split, of the validation split as many as the config says; targets are `Truth`s.

    Rows without question or answer are left out, and counted in a message. Those of phantoms are generated.

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
        for asked in ask(cells) if generated else [cells | {"question": " ".join(dataset.columns.texts_of(cells))}]:
            answers = right_answers(asked)
            unusable += not (asked["question"] and answers)
            if asked["question"] and answers:
                truth = Truth(answers, answer_type(asked, answers), asked.get("question_type") or "")
                samples.append(Sample(asked["id"], {"text": asked["question"]}, target=truth, row=row))
    if unusable:
        PartialState().print(f"{unusable} rows of {config.data.path}, {split}, lack question or answer: left out")
    if not samples:
        raise ValueError(f"no row of {config.data.path}, {split}, has both question and answer")
    return dataset.of(samples, validation_limit(config, split))


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
    """Return 1 for right and 0 for wrong by metric; NaN for questions that it does not count."""
    right = [float(is_right(answer, sample.target.answers)) for sample, answer in zip(samples, answers, strict=True)]
    types = [sample.target.answer_type for sample in samples]
    by_type = {
        f"{wanted}_accuracy": [value if own == wanted else np.nan for value, own in zip(right, types, strict=True)]
        for wanted in sorted(set(types))
    }
    return {"accuracy": right} | by_type
