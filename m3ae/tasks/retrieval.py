"""Fine-tuning for retrieval: images and texts that find each other, and how well they do (Chen et al. 2022).

A pre-trained model is measured without training (`m3ae evaluate`, zero-shot) in the same way as a fine-tuned one.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from functools import cached_property, partial
from pathlib import Path
from typing import Any, NamedTuple, Self

import torch
from accelerate import Accelerator, PartialState
from accelerate.utils import send_to_device
from torch import Tensor

from m3ae.data.samples import Sample, SampleDataset
from m3ae.figures import Strip, draw_retrieval, save_figure
from m3ae.files import write_text
from m3ae.inference.inputs import pictures
from m3ae.metrics.aggregation import MeanMetrics
from m3ae.metrics.retrieval import DIRECTIONS, KS, BothWays, Ranking, Relevance, RelevanceRule
from m3ae.models.retrieval import M3AEForImageTextRetrieval
from m3ae.tasks.data import check_used_splits, open_data
from m3ae.tasks.finetuning import TOP, FineTuning, open_split, validation_limit
from m3ae.tasks.gallery import Gallery
from m3ae.tasks.models import open_model
from m3ae.training.config import RetrievalRun

STRIPS = 5  # queries that are drawn


class Candidates(NamedTuple):
    """The T texts and I images of the pairs of a split, in order.

    Attributes:
        samples: The samples with both an image and a text.
        indices: (I,) position of each of these samples in the dataset.
        texts: Every text of every sample.
        text_rows: (T,) position in `samples` of the sample that each text belongs to; that of image i is i.
        text_names: A name for each text: that of its sample, with a number if the sample has several.
        image_ids: (I,) equal numbers name the same image.
    """

    samples: list[Sample]
    indices: list[int]
    texts: list[str]
    text_rows: list[int]
    text_names: list[str]
    image_ids: list[int]

    def judge(self, results: BothWays, rule: RelevanceRule) -> Ranking:
        """Return the results of a search together with what is right."""
        pairs = torch.stack([torch.arange(len(self.texts)), torch.tensor(self.text_rows)], dim=1)
        return Ranking.of(results, pairs, rule)


class Retrieval(FineTuning[M3AEForImageTextRetrieval, RetrievalRun]):
    """Images and texts that find each other by the matching head.

    Training tells each image's text apart from others of its batch: hard ones if the model has a contrastive head.
    Measuring ranks all texts of a split, whatever their number in a row, and the first view of each row.
    """

    @classmethod
    def from_config(cls, config: RetrievalRun, *, for_training: bool = True) -> Self:
        """Open data and model, which needs the heads that rank."""
        open_data(config, for_training=for_training)
        model, processor = open_model(
            config, M3AEForImageTextRetrieval, lambda: open_texts(config, "train").texts(), new_head=False
        )
        k = config.retrieval.rerank
        if k is not None and model.itc_head is None:
            raise ValueError(
                f"retrieval.rerank: got {k}, but the model has no contrastive head to choose candidates with: "
                "pre-train it with model.overrides.itc_weight, or set retrieval.rerank=null"
            )
        if k != 0 and model.config.num_negatives == 0:
            raise ValueError(
                f"retrieval.rerank: got {k} with num_negatives=0, which does not train the matching head; expected "
                "retrieval.rerank=0 to rank by contrast alone, or set model.overrides.num_negatives"
            )
        task = cls(config, model, processor, partial(open_measured, config))
        return check_used_splits(task) if for_training else task

    @cached_property
    def train_dataset(self) -> SampleDataset:
        """The training rows; a visit draws one of a row's views and one of its texts."""
        return open_texts(self.config, "train")

    def labels(self, samples: Sequence[Sample]) -> dict[str, Tensor]:
        """Return numbers that are the same for the same image and the same text, which are no negatives."""
        ids = {"image_ids": [s.image_id for s in samples], "text_ids": [s.text_id for s in samples]}
        return {name: torch.tensor(numbers) for name, numbers in ids.items()}

    def metrics(
        self, model: M3AEForImageTextRetrieval, accelerator: Accelerator, split: str, *, at_length: bool
    ) -> dict[str, float]:
        """Return the losses, recalls and median ranks both ways, and the mean recall.

        At length, intervals are over the images, the controls are chance and the first stage alone, and the ids of the
        pairs are written, too.
        """
        dataset, controls = self.dataset(split), at_length and self.config.evaluation.controls
        candidates = self.candidates(dataset)
        ranking, first_stage = self.rank(model, accelerator, dataset, candidates, first_stage=controls)
        metrics = self._losses(model, accelerator, dataset) | ranking.metrics()
        if at_length:
            metrics |= self._intervals(candidates, ranking)
        if controls:
            by_control = {"chance": chance_ranking(ranking.relevance)}
            by_control |= {"first_stage": first_stage.metrics()} if first_stage is not None else {}
            metrics |= {f"{name}_{key}": value for name, row in by_control.items() for key, value in row.items()}
        if at_length and accelerator.is_main_process:
            self.write_predictions(split, self._describe_predictions(dataset, candidates, ranking))
            ids = "".join(f"{sample.id}\n" for sample in candidates.samples)
            write_text(self.folder.root / f"{split}.ids.txt", ids)
        return metrics

    def describe(self) -> dict[str, Any]:
        """Return what the results depend on, the rule of what is right among it."""
        return super().describe() | self.config.retrieval.model_dump()

    def check(self, split: str) -> None:
        """Make sure that a split has a pair, and the training split two that differ in image and text."""
        images, texts = set[int](), set[str]()
        dataset = self.train_dataset if split == "train" else self.dataset(split)
        needed = 2 if split == "train" else 1
        for index, captions in enumerate(dataset.texts_of("text")):
            if (sample := dataset.first(index)).images:
                images.add(sample.image_id)
                texts.update(captions)
            if min(len(images), len(texts)) >= needed:
                return
        rows = f"the rows of {self.config.data.path}, {split},"
        if not images:
            raise ValueError(f"none of {rows} has both image and text: choose data.image_columns and data.text_column")
        raise ValueError(
            f"{rows} with image and text have {len(images)} different images and {len(texts)} different texts, "
            "expected at least 2 of each: retrieval learns to tell pairs apart"
        )

    def candidates(self, dataset: SampleDataset) -> Candidates:
        """Return what is searched for each other: all texts and the first view of the rows with an image."""
        candidates = Candidates([], [], [], [], [], [])
        for index, texts in enumerate(dataset.texts_of("text")):
            sample = dataset.first(index)
            if not sample.images:
                continue
            candidates.texts.extend(texts)
            candidates.text_rows.extend([len(candidates.samples)] * len(texts))
            names = [sample.id] if len(texts) == 1 else [f"{sample.id}#{n}" for n in range(len(texts))]
            candidates.text_names.extend(names)
            candidates.samples.append(dataset.samples[index])
            candidates.indices.append(index)
            candidates.image_ids.append(sample.image_id)
        return candidates

    def rank(
        self,
        model: M3AEForImageTextRetrieval,
        accelerator: Accelerator,
        dataset: SampleDataset,
        candidates: Candidates,
        *,
        first_stage: bool = False,
    ) -> tuple[Ranking, Ranking | None]:
        """Search texts and images for each other, in one stage or two as the config says.

        Returns:
            The ranking, and the ranking of the contrastive head alone for `first_stage`, if the model has that head.
        """
        k, head = self.config.retrieval.rerank, model.itc_head
        gallery = Gallery(
            model.m3ae,
            candidates.texts,
            candidates.image_ids,
            lambda number: dataset.first(candidates.indices[number]),
            self.evaluation_collator,
            accelerator,
            self._batch_size,
        )
        first, rule = None, self.config.retrieval.relevance
        if k == 0 and head is not None:
            results = gallery.compare_all(head)
        elif k is not None and head is not None:
            first, results = gallery.search(model.score, head, k)
        else:
            results = gallery.match_all(model.score)
            first = gallery.compare_all(head) if first_stage and head is not None else None
        return candidates.judge(results, rule), None if first is None else candidates.judge(first, rule)

    def illustrate(self, model: M3AEForImageTextRetrieval, folder: Path) -> list[Path]:
        """Draw the images found for some texts, spread over the split; the right ones are framed."""
        split = "test" if self.has("test") else "validation"
        dataset = self.dataset(split)
        candidates = self.candidates(dataset)
        indices = {sample.id: index for sample, index in zip(candidates.samples, candidates.indices, strict=True)}
        texts = dict(zip(candidates.text_names, candidates.texts, strict=True))
        lines = [line for line in self.read_predictions(split) if line["direction"] == DIRECTIONS[0]]
        strips = []
        for line in lines[:: math.ceil(len(lines) / STRIPS)]:
            top = line["top"]
            images = pictures(self.processor, [dataset.first(indices[hit["label"]]).picture for hit in top])
            captions = [f"{number}. {hit['score']:.2f}" for number, hit in enumerate(top, start=1)]
            right = [position for position, hit in enumerate(top) if hit["label"] in line["truth"]]
            strips.append(Strip(texts[line["query"]], list(images), captions, right))
        return [save_figure(draw_retrieval(strips), folder / "retrieval.png")]

    @property
    def _batch_size(self) -> int:
        return self.config.evaluation.batch_size or self.config.training.batch_size

    def _losses(
        self, model: M3AEForImageTextRetrieval, accelerator: Accelerator, dataset: SampleDataset
    ) -> dict[str, float]:
        """Return the training losses over batches of a fixed composition, however many processes share them."""
        sums, size = MeanMetrics(), self._batch_size
        numbers = range(accelerator.process_index, math.ceil(len(dataset) / size), accelerator.num_processes)
        rows = [row for number in numbers for row in range(number * size, min((number + 1) * size, len(dataset)))]
        for number, batch in zip(numbers, self._batches(dataset, rows, self._labelled_inputs), strict=True):
            count = len(batch["text_ids"])
            noise = torch.rand(count, count, generator=torch.Generator().manual_seed(number))
            with accelerator.autocast():
                output = model(**send_to_device(batch | {"negative_noise": noise}, accelerator.device))
            sums.add("loss", output.loss.expand(count))
            for name, loss in output.losses.items():
                sums.add(f"{name}_loss", loss.expand(count))
        return sums.compute()

    def _labelled_inputs(self, samples: Sequence[Sample]) -> dict[str, Tensor]:
        return self.inputs(samples) | self.labels(samples)

    def _intervals(self, candidates: Candidates, ranking: Ranking) -> dict[str, float]:
        limits: dict[str, float] = {}
        groups = ([candidates.image_ids[row] for row in candidates.text_rows], candidates.image_ids)
        for direction, ranks, images in zip(DIRECTIONS, ranking.ranks, groups, strict=True):
            hits = {f"{direction}_recall@{k}": (ranks <= k).double().tolist() for k in KS}
            limits |= self.intervals(hits, images)
        return limits

    def _describe_predictions(
        self, dataset: SampleDataset, candidates: Candidates, ranking: Ranking
    ) -> Iterator[dict[str, Any]]:
        """Yield a line for every query, the texts first; the rank is null if no right candidate is found."""
        image_names = [sample.id for sample in candidates.samples]
        sides = (
            (candidates.text_names, candidates.text_rows, image_names),
            (image_names, range(len(image_names)), candidates.text_names),
        )
        for i, (queries, rows, names) in enumerate(sides):
            ranks, best = ranking.ranks[i].tolist(), ranking.scores[i].best(TOP)
            for position, (query, row, top) in enumerate(zip(queries, rows, best, strict=True)):
                yield {
                    **self.reference(dataset, candidates.samples[row]),
                    "direction": DIRECTIONS[i],
                    "query": query,
                    "prediction": names[top[0][0]],
                    "top": [{"label": names[number], "score": round(score, 5)} for number, score in top],
                    "truth": [names[right] for right in ranking.relevance[i].right_for(position)],
                    "rank": int(ranks[position]) if math.isfinite(ranks[position]) else None,
                }


def open_measured(config: RetrievalRun, split: str) -> SampleDataset:
    """Open a split to measure on: the rows with a text, at most as many as the config allows."""
    return open_texts(config, split, validation_limit(config, split) or config.retrieval.max_rows)


def open_texts(config: RetrievalRun, split: str, limit: int | None = None) -> SampleDataset:
    """Open the rows of a split that have a text; those without are left out, and counted in a message.

    Raises:
        FileNotFoundError: There is no such prepared folder.
        ValueError: It lacks the split or a column, or no row has a text.
    """
    dataset = open_split(config, split)
    texts = zip(dataset.ids, dataset.texts_of("text"), strict=True)
    samples = [Sample(id, {}, row=row) for row, (id, captions) in enumerate(texts) if captions]
    if left_out := len(dataset) - len(samples):
        PartialState().print(f"{left_out} rows of {config.data.path}, {split}, have no text: left out")
    if not samples:
        raise ValueError(f"no row of {config.data.path}, {split}, has a text")
    return dataset.of(samples, limit)


def chance_ranking(relevance: tuple[Relevance, Relevance]) -> dict[str, float]:
    """Return the recalls and median ranks that random orders are expected to reach, both ways.

    If r of C candidates are right, the first k are all wrong with probability Π (C − r − i) / (C − i), i < k.
    """
    metrics: dict[str, float] = {}
    right = relevance[0].counts(), relevance[1].counts()
    for direction, counts, total in zip(DIRECTIONS, right, (len(right[1]), len(right[0])), strict=True):
        numbers, queries = counts.unique(return_counts=True)  # few numbers of right ones, each of many queries
        i = torch.arange(total)
        missed = ((total - numbers[:, None].double() - i).clamp(min=0) / (total - i)).cumprod(1)  # after 1 … C
        reached = 1 - (queries[:, None] * missed).sum(0) / queries.sum()
        for k in KS:
            metrics[f"{direction}_recall@{k}"] = float(reached[min(k, total) - 1])
        metrics[f"{direction}_median_rank"] = float((reached < 0.5).sum() + 1)
    return metrics
