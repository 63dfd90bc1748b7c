"""The tab that answers questions about an image."""

from __future__ import annotations

import gradio as gr
from PIL import Image

from m3ae.app.session import Session
from m3ae.app.widgets import examples_row, image_input, picture, read_image, shows_errors, upload_row
from m3ae.figures import render
from m3ae.inference import predict
from m3ae.inference.drawing import draw_word_attention


def add_tab(session: Session) -> None:
    """Add the tab."""
    assert session.answering is not None
    model, processor = session.answering

    @shows_errors
    def run(path: str | None, question: str) -> tuple[dict[str, float], Image.Image]:
        image = read_image(path)
        if not (question or "").strip():
            raise gr.Error("Ask a question first.", print_exception=False)
        (prediction,) = predict((model, processor), [image], question)
        note = f"answer: {prediction['prediction']} ({prediction['probability']:.2f})"
        figure = draw_word_attention(model, processor, image, question, note, columns=4)
        return {answer["answer"]: answer["probability"] for answer in prediction["answers"]}, render(figure)

    with gr.Tab("Ask", id="ask"):
        gr.Markdown(
            f"Ask about an image; the model chooses among its {len(model.config.id2label or {}):,} answers. The maps "
            "show what each word read in the last layer, not why the answer was given."
        )
        image = image_input()
        question = gr.Textbox(label="Question", placeholder="Is there an effusion?", render=False)
        examples_row(session.examples(questions=True), lambda case: (case.image, case.question), [image, question])
        with gr.Row():
            with gr.Column(scale=1, min_width=300):
                upload_row(image)
                question.render()
                button = gr.Button("Answer", variant="primary")
                scores = gr.Label(label="Answers and their probabilities", num_top_classes=5)
            with gr.Column(scale=2, min_width=500):
                shown = picture("Where each word looks: attention over the image")
        gr.on([button.click, question.submit], run, [image, question], [scores, shown])
