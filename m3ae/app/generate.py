"""The tab that generates missing modalities, and moves along latent dimensions."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import gradio as gr
from PIL import Image

from m3ae.app.session import PreparedSet, Session
from m3ae.app.widgets import count_slider, picture, seed_input, shows_errors
from m3ae.figures import draw_modalities, render
from m3ae.inference import generate, traverse
from m3ae.inference.generation import Value, read_values
from m3ae.models.generation import M3AEForGeneration

SAMPLES = 6
STEPS = (-3.0, -2.0, -1.0, 0.0, 1.0, 2.0, 3.0)


def add_tab(session: Session, prepared: PreparedSet) -> None:
    """Add the tab, for rows of a prepared set that has the model's modalities."""
    assert session.latent is not None
    model, tokenizer = session.latent
    modalities, rows, condition = model.latent_head.modalities, prepared.rows, model.latent.condition
    offered = condition or model.latent.experts  # of a conditional VAE nothing else alone says anything

    def read(row: float, names: Sequence[str]) -> dict[str, Value]:
        return read_values(model, rows, int(row), names)

    @shows_errors
    def run(row: float, given: list[str], temperature: float, seed: float) -> Image.Image:
        options: dict[str, Any] = {"num_samples": SAMPLES, "seed": int(seed), "temperature": temperature}
        samples = generate(model, tokenizer, read(row, given), model.latent.decoded, **options)
        real = read(row, [name for name in modalities if rows[int(row)][name] is not None])
        titled = {f"{name}\n(given)" if name in given else name: name for name in samples}
        shown = {title: [real.get(name), *samples[name]] for title, name in titled.items()}
        titles = ["the row", *(f"sample {number}" for number in range(1, SAMPLES + 1))]
        return render(draw_modalities(shown, {title: modalities[name] for title, name in titled.items()}, titles))

    @shows_errors
    def move(row: float, given: list[str], dimension: float, seed: float) -> Image.Image:
        samples = traverse(model, tokenizer, read(row, given), int(dimension), STEPS, seed=int(seed))
        titles = [f"{step:+g}" if step else "0" for step in STEPS]
        return render(draw_modalities(samples, modalities, titles))

    with gr.Tab("Generate", id="generate"):
        gr.Markdown(
            f"Take a row of the set {prepared.folder.name} and give the model some of its modalities. The model draws "
            f"{'what it decodes' if condition else 'all modalities'} from the posterior of the given ones"
            f"{'' if condition else '; with nothing given, from its prior'}."
        )
        with gr.Row():
            row = count_slider(len(rows), "Row of the set")
            given = gr.CheckboxGroup(offered, value=condition or offered[:1], label="Given", min_width=300)
            seed = seed_input("Seed")
        temperature = gr.Slider(0, 1.5, 0.7, step=0.1, label="Temperature: 0 gives the means, 1 the samples")
        button = gr.Button("Generate", variant="primary")
        shown = picture("The modalities of the row, and generated ones")
        gr.Markdown(
            f"Move along one of {model.latent.total_size} latent dimensions while the others stay, and private ones "
            f"follow a shared one: {_owners(model)}."
        )
        dimension = count_slider(model.latent.total_size, "Latent dimension")
        walk = gr.Button("Traverse", variant="primary")
        path = picture("What changes while the dimension goes from −3 to 3")
        button.click(run, [row, given, temperature, seed], shown)
        gr.on([walk.click, dimension.release], move, [row, given, dimension, seed], path)


def _owners(model: M3AEForGeneration) -> str:
    """Say which modality each latent dimension belongs to."""
    private = model.latent_head.private_dimensions.items()
    ranges = [
        f"{span.start}–{span.stop - 1} are private to {name}" for name, span in private if span.stop > span.start
    ]
    return ", ".join([f"0–{model.latent.size - 1} are shared by all", *ranges])
