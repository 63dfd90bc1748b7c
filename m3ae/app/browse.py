"""The tabs that show what is in a prepared set, and how a run went."""

from __future__ import annotations

from pathlib import Path
from tempfile import TemporaryDirectory

import gradio as gr
from PIL import Image

from m3ae.app.session import PreparedSet
from m3ae.app.widgets import picture, told
from m3ae.data.contact_sheet import draw_contact_sheet
from m3ae.data.prepared import image_columns, load_manifest
from m3ae.data.show import matrix_columns, spread_positions
from m3ae.figures import draw_losses, render
from m3ae.training.progress import read_metrics

ROWS = 12
LABELS = ("labels", "label", "finding", "modality", "question_type")


def add_data_tab(sets: list[PreparedSet]) -> None:
    """Add the tab of prepared sets."""
    folders = {str(own.folder): own.folder for own in sets}

    @told
    def draw(name: str, split: str, seed: float) -> Image.Image:
        rows = PreparedSet(folders[name], split).rows
        chosen = rows.select(spread_positions(len(rows), ROWS, int(seed)))
        columns = [*image_columns(chosen.features), *matrix_columns(chosen)]
        title = f"{folders[name].name}: {len(chosen)} of the {len(rows):,} rows of split {split}"
        with TemporaryDirectory(prefix="m3ae-app-") as folder:
            sheet = Path(folder) / "sheet.png"
            labels = [own for own in LABELS if own in rows.features]
            draw_contact_sheet(sheet, title, list(chosen), columns, labels)
            with Image.open(sheet) as image:
                return image.convert("RGB")

    def splits(name: str) -> gr.Dropdown:
        there = [own for own, info in load_manifest(folders[name]).splits.items() if info.rows]
        return gr.Dropdown(there, value=there[0])

    with gr.Tab("Data", id="data"):
        with gr.Row():
            name = gr.Dropdown([*folders], value=next(iter(folders)), label="Prepared set")
            first = load_manifest(sets[0].folder).splits
            split = gr.Dropdown([own for own, info in first.items() if info.rows], value=sets[0].split, label="Split")
            seed = gr.Number(0, precision=0, label="Seed: other rows")
            button = gr.Button("Show rows", variant="primary")
        shown = picture("Rows, spread over the split")
        gr.Code(_summary(sets), label="What was prepared", language=None)
        name.change(splits, name, split)
        button.click(draw, [name, split, seed], shown)


def add_run_tab(runs: list[Path]) -> None:
    """Add the tab of runs."""
    folders = {str(run): run for run in runs}

    @told
    def draw(name: str) -> tuple[Image.Image, list[list[str]]]:
        records = read_metrics(folders[name] / "metrics.jsonl")
        last = {key: value for record in records for key, value in record.items() if "/" in key}
        rows = [
            [key, f"{value:.4f}"]
            for key, value in last.items()
            if value is not None and not key.startswith("training/")
        ]
        return render(draw_losses(records)), rows

    with gr.Tab("Run", id="run"):
        with gr.Row():
            name = gr.Dropdown([*folders], value=next(iter(folders)), label="Run")
            button = gr.Button("Show", variant="primary")
        shown = picture("Losses: training and validation")
        metrics = gr.Dataframe(headers=["metric", "value"], interactive=False, label="Last values", max_height=360)
        button.click(draw, name, [shown, metrics])


def _summary(sets: list[PreparedSet]) -> str:
    return "\n\n".join(f"{own.folder}\n{load_manifest(own.folder)}" for own in sets)
