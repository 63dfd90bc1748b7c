"""The tab that hides parts of an image and of its text."""

from __future__ import annotations

import gradio as gr
from PIL import Image

from m3ae.app.session import Session
from m3ae.app.widgets import (
    examples_row,
    image_input,
    picture,
    read_image,
    seed_input,
    shows_errors,
    upload_row,
)
from m3ae.figures import render
from m3ae.inference import reconstruct
from m3ae.inference.drawing import draw_samples


def add_tab(session: Session) -> None:
    """Add the tab."""
    assert session.masked is not None
    model, processor = session.masked

    @shows_errors
    def run(
        path: str | None, text: str, mask_ratio: float, word_ratio: float, seed: float
    ) -> tuple[Image.Image, list[tuple[str, str | None]]]:
        ratios = {"mask_ratio": mask_ratio, "word_ratio": word_ratio}
        texts = [(text or "").strip() or None]
        samples = reconstruct(model, processor, [read_image(path)], texts, **ratios, seed=int(seed))
        words: list[tuple[str, str | None]] = []
        for word in samples[0].words or []:
            verdict = "right" if word.predicted == word.word else "wrong"
            words += [(f"{word.word} → {word.predicted} ({word.score:.2f})", verdict), ("  ", None)]
        return render(draw_samples(model, samples, [None], mask_ratio)), words

    with gr.Tab("Reconstruct", id="reconstruct"):
        gr.Markdown("Hide patches of an image and words of its report; the model fills them in, each from both.")
        image, text = image_input(), gr.Textbox(label="Report (may be left out)", lines=3, render=False)
        examples_row(session.examples(), lambda case: (case.image, case.text), [image, text])
        with gr.Row():
            with gr.Column(scale=1, min_width=300):
                upload_row(image)
                text.render()
                mask = gr.Slider(0, 0.95, model.config.mask_ratio, step=0.05, label="Share of the patches to hide")
                words = gr.Slider(0, 1, 0.3, step=0.05, label="Share of the words to hide")
                seed = seed_input("Seed of the masks")
                button = gr.Button("Reconstruct", variant="primary")
            with gr.Column(scale=2, min_width=500):
                shown = picture("Original, masked, reconstruction, error of each patch")
                predictions = gr.HighlightedText(
                    label="Hidden words → the model's words (probability)",
                    color_map={"right": "#56B4E9", "wrong": "#E69F00"},
                    show_legend=True,
                )
        gr.on([button.click, mask.release], run, [image, text, mask, words, seed], [shown, predictions])
