"""The tabs that show what is in a prepared set, and how a run went."""

from __future__ import annotations

from pathlib import Path
from tempfile import TemporaryDirectory

import gradio as gr
from PIL import Image

from m3ae.app.session import PreparedSet
from m3ae.app.widgets import picture, seed_input, shows_errors
from m3ae.data.pictures import describe_labels, draw_contact_sheet, label_counts
from m3ae.data.prepared import load_manifest
from m3ae.figures import draw_losses, render
from m3ae.training.progress import read_metrics

ROWS = 12


def add_data_tab(sets: list[PreparedSet]) -> None:
    """Add the tab of prepared sets."""
    folders = {str(prepared.folder): prepared.folder for prepared in sets}

    def splits(name: str) -> list[str]:
        return [split for split, info in load_manifest(folders[name]).splits.items() if info.rows]

    @shows_errors
    def draw(name: str, split: str, seed: float) -> Image.Image:
        rows = PreparedSet(folders[name], split).rows
        labels = [*label_counts({split: rows})]
        with TemporaryDirectory(prefix="m3ae-app-") as folder:
            sheet = Path(folder) / "sheet.png"
            draw_contact_sheet(sheet, folders[name].name, split, rows, labels, ROWS, int(seed))
            with Image.open(sheet) as image:
                return image.convert("RGB")

    with gr.Tab("Data", id="data") as tab:
        with gr.Row():
            name = gr.Dropdown([*folders], value=next(iter(folders)), label="Prepared set", min_width=300)
            split = gr.Dropdown(splits(next(iter(folders))), value=sets[0].split, label="Split")
            seed = seed_input("Seed: another one shows other rows")
        shown = picture("Rows, spread over the split")
        described = (
            f"{prepared.folder}\n{load_manifest(prepared.folder)}\n"
            + describe_labels(label_counts({prepared.split: prepared.rows}))
            for prepared in sets
        )
        summary = "\n\n".join(described)
        gr.Code(summary, label="What was prepared", language=None)
        inputs = [name, split, seed]
        gr.on([tab.select, split.input, seed.change], draw, inputs, shown)
        listed = name.change(lambda name: gr.Dropdown(splits(name), value=splits(name)[0]), name, split)
        listed.then(draw, inputs, shown, api_visibility="private")


def add_run_tab(runs: list[Path]) -> None:
    """Add the tab of runs."""
    folders = {str(run): run for run in runs}

    @shows_errors
    def draw(name: str) -> tuple[Image.Image, list[list[str]]]:
        records = read_metrics(folders[name] / "metrics.jsonl")
        last = {key: value for record in records for key, value in record.items() if "/" in key}
        final = {key: value for key, value in last.items() if not key.startswith("training/")}
        rows = [[key, f"{value:.4f}"] for key, value in final.items() if value is not None]
        return render(draw_losses(records)), rows

    with gr.Tab("Run", id="run") as tab:
        name = gr.Dropdown([*folders], value=next(iter(folders)), label="Run")
        shown = picture("Losses: training and validation")
        metrics = gr.Dataframe(headers=["metric", "value"], interactive=False, label="Last values", max_height=360)
        gr.on([tab.select, name.change], draw, name, [shown, metrics])
