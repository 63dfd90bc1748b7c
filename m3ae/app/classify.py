"""The tabs of models that say something about an image at once: classes, and reports."""

from __future__ import annotations

from typing import Any

import gradio as gr
from PIL import Image

from m3ae.app.session import Session
from m3ae.app.widgets import examples_row, image_input, picture, read_image, shows_errors, upload_row
from m3ae.figures import render
from m3ae.inference import predict
from m3ae.inference.drawing import draw_word_attention
from m3ae.models.modeling import STREAMS


def add_classify_tab(session: Session) -> None:
    """Add the tab of a classifier."""
    assert session.classifying is not None
    model, processor = session.classifying
    reads = model.config.input_streams or STREAMS
    several = model.config.problem_type == "multi_label_classification"

    @shows_errors
    def classify(path: str | None, text: str) -> tuple[dict[str, float], str, Image.Image | None]:
        image = read_image(path) if path or reads == ["image"] else None
        (prediction,) = predict((model, processor), [image], (text or "").strip() or None)
        if "error" in prediction:
            raise gr.Error(prediction["error"], print_exception=False)
        decided = ", ".join(prediction["prediction"]) or "none" if several else prediction["prediction"]
        figure = (
            draw_word_attention(model, processor, image, (text or "").strip() or None, columns=4) if image else None
        )
        return prediction["probabilities"], decided, render(figure) if figure else None

    with gr.Tab("Classify", id="classify"):
        rule = "Labels whose probability reaches the threshold that was chosen on validation." if several else ""
        gr.Markdown(f"The probability of each of {len(model.config.id2label or {})} classes. {rule}")
        image = image_input()
        text = gr.Textbox(label="Text (may be left out)", lines=3, render=False, visible="text" in reads)
        examples_row(session.examples(), lambda case: (case.image, case.text), [image, text])
        with gr.Row():
            with gr.Column(scale=1, min_width=300):
                upload_row(image)
                text.render()
                button = gr.Button("Classify", variant="primary")
            with gr.Column(scale=2, min_width=500):
                decision = gr.Textbox(label="Labels" if several else "Class", interactive=False)
                label = "Classes and their probabilities"
                scores = gr.Label(label=label, num_top_classes=8, show_heading=False)  # the decision is above
                shown = picture("Where the model looks: attention over the image")
        button.click(classify, [image, text], [scores, decision, shown])


def add_report_tab(session: Session) -> None:
    """Add the tab of a model that writes reports."""
    assert session.reporting is not None
    loaded = session.reporting

    @shows_errors
    def write(path: str | None) -> Any:
        (prediction,) = predict(loaded, [read_image(path)])
        return prediction["report"]

    with gr.Tab("Report", id="report"):
        gr.Markdown("A report that the model writes on the image. Not a finding of a physician.")
        image = image_input()
        examples_row(session.examples(), lambda case: case.image, [image])
        with gr.Row():
            with gr.Column(scale=1, min_width=300):
                upload_row(image)
                button = gr.Button("Write a report", variant="primary")
            with gr.Column(scale=2, min_width=500):
                report = gr.Textbox(label="Report", lines=8, interactive=False)
        button.click(write, image, report)
