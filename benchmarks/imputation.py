"""What a missing view or report costs a classifier, and what filling it in gives, by the share that is missing.

    m3ae train iu_xray_both
    m3ae train iu_xray_classification data.views=all data.text_column=text data.missing_rate=0.3
    python benchmarks/imputation.py --run runs/iu_xray_classification --latent runs/iu_xray_both [--json figures.json]

The classifier of several modalities is measured while a share of them is hidden from it, drawn for each row, the last
of a row never hidden. What is hidden is `absent`, as the trunk itself takes it; `zeros`, a blank image or empty text
that counts as present; or `imputed`: what the latent head of another model, of the same modalities, expects given the
rest. `--latent` names that model; without it, the first two are measured. All three hide the same. A row and a subset
of its modalities have the same scores whatever the share, so that each is computed once.
"""

import argparse
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import combinations
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image

from m3ae.data.collate import drop_modalities
from m3ae.data.samples import Sample, SampleDataset
from m3ae.images.files import StoredImage, encode_image
from m3ae.inference import generate, load_generator
from m3ae.tasks import task_class
from m3ae.tasks.classification import Classification
from m3ae.training.config import load_config

RATES = [step / 10 for step in range(10)]
METRICS = ("macro_auroc", "macro_average_precision", "accuracy", "macro_f1")


def main() -> None:
    """Run the command line."""
    parser = argparse.ArgumentParser(description="What missing modalities cost, and what filling them in gives.")
    parser.add_argument("--run", type=Path, required=True, help="run of m3ae train with the task classification")
    parser.add_argument("--latent", type=Path, help="run or model whose latent head fills in")
    parser.add_argument("--split", default="test", help="split that is measured")
    parser.add_argument("--rates", type=float, nargs="+", default=RATES, help="shares that are hidden")
    parser.add_argument("--draws", type=int, default=10, help="times that what is hidden is drawn")
    parser.add_argument("--json", type=Path, help="write the figures here too")
    arguments = parser.parse_args()
    figures = measure(arguments.run, arguments.latent, arguments.split, arguments.rates, arguments.draws)
    print(report(figures))
    if arguments.json:
        arguments.json.write_text(json.dumps(figures, indent=2) + "\n")


def measure(
    run: Path, latent: Path | None, split: str = "test", rates: Sequence[float] = RATES, draws: int = 10
) -> dict[str, Any]:
    """Return the mean and deviation over draws of each metric, by way of filling in and share that is hidden.

    Args:
        run: The run folder of the classifier.
        latent: The folder of the run or model that fills in, if any.
        split: The split.
        rates: The shares that are hidden.
        draws: The number of draws.
    """
    config = load_config(run / "config.yaml", [f"model={run / 'model'}", "model.init={}"])
    task = task_class(config.task).from_config(config, for_training=False)
    if not isinstance(task, Classification):
        raise SystemExit(f"{run} has the task {config.task}, expected classification")
    rows = Rows.of(task, split)
    scores = {"absent": rows.scores(task), "zeros": rows.scores(task, blank=True)}
    if latent is not None:
        scores["imputed"] = rows.scores(task, imputed(rows, latent))
    hidden = {rate: [rows.subsets_at(rate, seed) for seed in range(draws)] for rate in rates}
    figures: dict[str, Any] = {"run": str(run), "latent": latent and str(latent), "split": split, "draws": draws}
    figures["missing"] = {
        f"{rate:g}": float(np.mean([1 - rows.masks[subsets].sum() / rows.present.sum() for subsets in drawn]))
        for rate, drawn in hidden.items()
    }
    for way, table in scores.items():
        figures[way] = {
            f"{rate:g}": spread(
                [task.score(rows.samples, table[subsets, np.arange(len(subsets))]) for subsets in drawn]
            )
            for rate, drawn in hidden.items()
        }
    return figures


@dataclass(frozen=True)
class Rows:
    """The N rows of a split, and the K subsets of their M modalities.

    Attributes:
        samples: The rows.
        names: The modalities.
        present: (N, M) which modalities a row has.
        masks: (K, M) the subsets, all but the empty one.
    """

    samples: list[Sample]
    names: list[str]
    present: NDArray[np.bool_]
    masks: NDArray[np.bool_]

    @classmethod
    def of(cls, task: Classification, split: str) -> "Rows":
        """Read a split; rows without any modality are left out."""
        dataset: SampleDataset = task.dataset(split)
        samples = [dataset.first(index) for index in range(len(dataset))]
        names = [name for name, columns in dataset.columns.columns.items() if columns]
        samples = [sample for sample in samples if any(sample.cells[name] is not None for name in names)]
        present = np.array([[sample.cells[name] is not None for name in names] for sample in samples])
        sizes = range(1, len(names) + 1)
        subsets = [subset for size in sizes for subset in combinations(range(len(names)), size)]
        return cls(samples, names, present, np.array([np.isin(range(len(names)), subset) for subset in subsets]))

    def subsets_at(self, rate: float, seed: int) -> NDArray[np.intp]:
        """Return the number (N,) of the subset that is left of each row when a share is hidden."""
        noise = np.random.default_rng(seed).random(self.present.shape, dtype=np.float32)
        left = drop_modalities(torch.from_numpy(self.present), torch.from_numpy(noise), rate).numpy()
        return (left[:, None] == self.masks).all(2).argmax(1)

    def left(self, subset: int) -> list[int]:
        """Return the numbers of the rows of which a subset can be left."""
        return np.flatnonzero((self.present >= self.masks[subset]).all(1)).tolist()

    def shown(self, row: int, subset: int, others: Mapping[str, Any] | None = None) -> Sample:
        """Return a row with a subset of its modalities, and with `others` in place of the rest."""
        sample, others = self.samples[row], others or {}
        kept = dict(zip(self.names, self.masks[subset], strict=True))
        cells = {name: cell if kept.get(name) else others.get(name) for name, cell in sample.cells.items()}
        return sample._replace(cells=cells)

    @torch.no_grad()
    def scores(
        self,
        task: Classification,
        others: Mapping[tuple[int, int], Mapping[str, Any]] | None = None,
        *,
        blank: bool = False,
    ) -> NDArray[np.float32]:
        """Return the logits (K, N, A) of each subset of each row, NaN where a row has not the whole subset.

        Args:
            task: The classifier's task.
            others: Cells in place of what is missing, by subset and row.
            blank: Whether what is missing counts as present: a blank image, or an empty text.
        """
        model, size = task.model.eval(), task.config.evaluation.batch_size or task.config.training.batch_size
        table = np.full((len(self.masks), len(self.samples), len(task.classes)), np.nan, np.float32)
        for subset in range(len(self.masks)):
            numbers = self.left(subset)
            for start in range(0, len(numbers), size):
                chunk = numbers[start : start + size]
                samples = [self.shown(row, subset, (others or {}).get((subset, row))) for row in chunk]
                batch = task.inputs(samples)
                if blank:
                    batch |= {
                        name: torch.ones_like(value) for name, value in batch.items() if name.endswith("_present")
                    }
                table[subset, chunk] = model(**batch).logits.float().numpy()
        return table


def imputed(rows: Rows, latent: Path) -> dict[tuple[int, int], dict[str, Any]]:
    """Return what the means of a latent head's decoders put in place of what is missing, by subset and row."""
    model, tokenizer = load_generator(latent)
    if unknown := sorted(set(rows.names) - model.latent_head.modalities.keys()):
        known = ", ".join(model.latent_head.modalities)
        raise SystemExit(f"the latent head of {latent} has no {', '.join(unknown)}; it has {known}")
    filled: dict[tuple[int, int], dict[str, Any]] = {}
    for subset, mask in enumerate(rows.masks):
        absent = [name for name, kept in zip(rows.names, mask, strict=True) if not kept]
        for row in rows.left(subset) if absent else []:
            cells = rows.shown(row, subset).cells
            given = {name: decoded(cell) for name, cell in cells.items() if cell is not None}
            made = generate(model, tokenizer, given, absent, temperature=0.0)
            filled[subset, row] = {name: stored(values[0]) for name, values in made.items()}
    return filled


def decoded(cell: Any) -> Any:
    """Return a cell as `generate` takes it."""
    return cell.decode() if isinstance(cell, StoredImage) else cell


def stored(value: Any) -> Any:
    """Return what `generate` gave as a cell."""
    if isinstance(value, Image.Image):
        return StoredImage(encode_image(value, None, 95), "imputed")
    return value or None


def spread(scores: Sequence[Mapping[str, float]]) -> dict[str, list[float]]:
    """Return the mean and the standard deviation of the main metrics."""
    values = {name: [score[name] for score in scores] for name in METRICS if name in scores[0]}
    return {name: [float(np.mean(drawn)), float(np.std(drawn))] for name, drawn in values.items()}


def report(figures: Mapping[str, Any]) -> str:
    """Lay the figures out."""
    ways = [way for way in ("absent", "zeros", "imputed") if way in figures]
    metric = next(iter(next(iter(figures[ways[0]].values()))))
    lines = [f"{figures['run']}, {figures['split']}: {metric}, mean ± deviation over {figures['draws']} draws"]
    lines.append(f"{'hidden':<10}" + "".join(f"{way:>18}" for way in ways))
    for rate, share in figures["missing"].items():
        cells = ("{:.3f} ± {:.3f}".format(*figures[way][rate][metric]) for way in ways)
        lines.append(f"{100 * share:>5.1f} %   " + "".join(f"{cell:>18}" for cell in cells))
    return "\n".join(lines)


if __name__ == "__main__":
    main()
