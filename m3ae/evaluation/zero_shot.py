"""How well prompts alone classify the images of a prepared set, beside controls."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray
from PIL import Image
from tqdm import tqdm

from m3ae.data.prepared import load_manifest
from m3ae.data.samples import SampleDataset, trunk_columns
from m3ae.inference.inputs import BATCH_SIZE
from m3ae.inference.zero_shot import ZeroShotClassifier
from m3ae.metrics.aggregation import bootstrap
from m3ae.metrics.classification import UNKNOWN, multi_label_metrics, single_label_metrics
from m3ae.models.configuration import M3AEImageConfig
from m3ae.tasks.classification import UNCERTAIN
from m3ae.tasks.finetuning import limits

SHUFFLES = 20  # whose mean is the control: one of few positives varies much


class ZeroShotReport(NamedTuple):
    """Metrics of zero-shot classification.

    Attributes:
        metrics: See `zero_shot_metrics`.
        rows: The id, the truth and the probabilities of every row that was measured.
        left_out: The number of rows without an image, or without a label among the classes.
    """

    metrics: dict[str, float]
    rows: list[dict[str, Any]]
    left_out: int


def measure_zero_shot(
    classifier: ZeroShotClassifier,
    data: Path,
    split: str,
    label_column: str,
    *,
    image_columns: Sequence[str] = (),
    resamples: int = 1000,
) -> ZeroShotReport:
    """Classify the first image of every row of a split. Prompts are to be fixed beforehand, or chosen on validation.

    Args:
        classifier: The model and its prompts, whose classes are called as the labels are.
        data: The prepared set.
        split: The split.
        label_column: The column of the label, or of the list of labels. Those in `labels_uncertain` do not count.
        image_columns: The columns of images; each row gives its first image of them. All columns if empty.
        resamples: The number of draws of the bootstrap, in which rows with the same image stay together; 0 for none.

    Raises:
        FileNotFoundError: There is no such prepared set.
        ValueError: There is no such split or column, or no row has an image and one of the classes.
    """
    splits, names = load_manifest(data).splits, classifier.names
    columns = [*(image_columns or (splits[split].images if split in splits else ()))]
    dataset = SampleDataset(data, split, trunk_columns(columns, None))
    if label_column not in dataset.features:
        raise ValueError(f"{data} has no column {label_column!r}; it has {', '.join(dataset.features)}")
    targets = [_target(classifier, cells, label_column) for cells in dataset.rows()]
    labelled = [row for row, target in enumerate(targets) if target is not None]
    rows, images, truths, scores = list[dict[str, Any]](), list[int](), list[Any](), list[NDArray[np.float32]]()
    for start in tqdm(range(0, len(labelled), BATCH_SIZE), desc="zero-shot", unit=f"×{BATCH_SIZE}", disable=None):
        read = [(targets[row], dataset.first(row)) for row in labelled[start : start + BATCH_SIZE]]
        if batch := [(target, sample) for target, sample in read if sample.images]:
            scored = classifier.scores([sample.picture for _, sample in batch])
            scores.append(scored.numpy())
            for (target, sample), probabilities in zip(batch, classifier.probabilities(scored), strict=True):
                known = np.flatnonzero(np.array(target) == 1) if classifier.multi_label else [target]
                truth = [names[column] for column in known]
                rows.append({"id": sample.id, "truth": truth, "scores": probabilities})
                truths.append(target)
                images.append(sample.image_id)
    if not any(row["truth"] for row in rows):
        classes = ", ".join(names)
        raise ValueError(
            f"no row of {data}, {split}, has an image and one of the classes {classes} in {label_column!r}"
        )
    config = classifier.model.config.image_config
    assert isinstance(config, M3AEImageConfig)
    grey = tuple(round(255 * mean) for mean in config.image_mean or [0.5] * 3)
    blank = classifier.scores([Image.new("RGB", (config.image_size, config.image_size), grey)]).numpy()
    metrics = zero_shot_metrics(names, np.concatenate(scores), np.array(truths), blank, images, resamples)
    return ZeroShotReport(metrics, rows, len(targets) - len(rows))


def zero_shot_metrics(
    names: Sequence[str],
    scores: NDArray[Any],
    truth: NDArray[Any],
    blank: NDArray[Any],
    groups: Sequence[Any],
    resamples: int = 1000,
) -> dict[str, float]:
    """Return metrics with 95 % intervals and controls.

    Args:
        names: The names of the C classes.
        scores: (N, C) larger = more likely.
        truth: (N,) the number of each row's class, or (N, C) which labels a row has, −100 = unknown.
        blank: (1, C) the scores of an image that shows nothing.
        groups: (N,) equal entries name rows that are drawn together.
        resamples: The number of draws of the bootstrap.

    Returns:
        Classes that exclude each other: `accuracy`, `macro_f1` and the `<class>_recall` of each. Labels: as
        `multi_label_metrics`. `<metric>_low` and `<metric>_high` are the limits. Controls: `shuffled_<metric>` with
        the images of other rows; `blank_accuracy` with a grey image in every row, which shows what the prompts prefer;
        `majority_accuracy`, of the most frequent class; `chance_accuracy`, of a guess.
    """

    def measure(scores: NDArray[Any], truth: NDArray[Any]) -> dict[str, float]:
        if truth.ndim == 2:
            return multi_label_metrics(scores, truth, names)
        right = scores.argmax(1) == truth
        rows = {name: right[truth == column] for column, name in enumerate(names)}
        recalls = {f"{name}_recall": float(row.mean()) if len(row) else np.nan for name, row in rows.items()}
        return single_label_metrics(scores.argmax(1), truth) | recalls

    metrics, generator, shuffled = measure(scores, truth), np.random.default_rng(0), []
    for _ in range(SHUFFLES):
        order, others = generator.permutation(len(truth)), np.empty_like(scores)
        others[order] = scores[np.roll(order, 1)]  # no row keeps its image
        shuffled.append(measure(others, truth))
    metrics |= {f"shuffled_{name}": float(np.mean([values[name] for values in shuffled])) for name in metrics}
    if truth.ndim == 1:
        metrics["blank_accuracy"] = float((truth == blank.argmax(1)).mean())
        metrics["majority_accuracy"] = float(np.bincount(truth).max() / len(truth))
        metrics["chance_accuracy"] = 1 / len(names)
    if not resamples:
        return metrics

    def draw(rows: NDArray[np.intp]) -> dict[str, float]:
        return measure(scores[rows], truth[rows])

    return metrics | limits(bootstrap(draw, len(truth), groups=groups, resamples=resamples))


def _target(classifier: ZeroShotClassifier, cells: Mapping[str, Any], column: str) -> Any:
    """Return the number of a row's class, or which labels (C,) it has; None if its label is unknown or no class."""
    cell, names = cells[column], classifier.names
    if cell is None:
        return None
    present = [cell] if isinstance(cell, str) else cell
    if classifier.multi_label:
        uncertain = set(cells.get(UNCERTAIN) or ()) - set(present)
        return [UNKNOWN if name in uncertain else int(name in present) for name in names]
    if len(present) > 1:
        raise ValueError(
            f"row {cells['id']!r} has {len(present)} labels in {column!r}, expected one: labels that do not exclude "
            "each other need negative prompts (--multi-label)"
        )
    return names.index(present[0]) if present and present[0] in names else None
