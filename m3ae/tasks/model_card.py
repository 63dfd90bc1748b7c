"""The README.md of a model that a run has trained: how, on which data, with which results."""

from __future__ import annotations

from pathlib import Path

from transformers import PreTrainedModel

from m3ae.data.prepared import Manifest
from m3ae.evaluation.tables import table
from m3ae.models.hub import model_card
from m3ae.training.config import RunConfig

# Notes on the licences of data sets.
LICENCES = {
    "iu_xray": "the terms of use of Open-i.",
    "mimic_cxr": "PhysioNet's credentialed data use agreement, before anything derived from it is shared.",
    "phantom": "none; the images and texts are generated.",
    "roco": "each figure has the licence of its article, listed in `licences.txt`.",
    "rocov2": "each figure has the licence of its article, a Creative Commons one.",
    "vqa_rad": "CC0 1.0.",
}


def write_model_card(
    folder: Path, config: RunConfig, model: PreTrainedModel, manifest: Manifest, metrics: dict[str, float]
) -> None:
    """Write `README.md` into a saved model's folder.

    Args:
        folder: The folder, named as users will load it.
        config: The run.
        model: Any model of this package.
        manifest: The manifest of the prepared data.
        metrics: `<split>/<metric>` → value.
    """
    training = config.training
    batch = training.batch_size * training.gradient_accumulation_steps
    schedule = f"{model.config.schedule} schedule, " if type(model).__name__ == "M3AEForPreTraining" else ""
    counts = ", ".join(f"{split} {info.rows:,}" for split, info in manifest.splits.items())
    licence = LICENCES.get(manifest.source, "not recorded; ask its publishers.")
    card = model_card(
        model,
        folder.name,
        title=f"M3AE, {config.output_dir.name}",
        training=f"Trained with the {schedule}{training.max_steps} steps of {batch} samples per process.",
        data=f"Prepared from `{manifest.source}`: {counts}. Its licence applies to what is derived from it: {licence}",
        metrics=metrics_table(metrics),
    )
    (folder / "README.md").write_text(card, encoding="utf-8")


def metrics_table(metrics: dict[str, float]) -> str:
    """Lay out `<split>/<metric>` as a Markdown table, beside it `<split>/shuffled_<metric>` where that is measured.

    The numbers of questions of each type are left out.
    """
    metrics = {name: value for name, value in metrics.items() if not name.endswith("_questions")}
    shown = {name: value for name, value in metrics.items() if "/shuffled_" not in name}
    if not shown:
        return "Not measured yet."
    if shown == metrics:
        rows = [[*name.split("/", 1), f"{value:.4g}"] for name, value in shown.items()]
        return table(["split", "metric", "value"], rows, text_columns=2)
    rows = []
    for name, value in shown.items():
        shuffled = metrics.get(name.replace("/", "/shuffled_", 1))
        rows.append([*name.split("/", 1), f"{value:.4g}", "" if shuffled is None else f"{shuffled:.4g}"])
    explanation = (
        "`shuffled` gives each text another sample's image: the difference is what the model reads across modalities."
    )
    return "\n\n".join([explanation, table(["split", "metric", "own image", "shuffled image"], rows, text_columns=2)])
