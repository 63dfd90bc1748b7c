"""The tab that searches a prepared set, from texts to images and back."""

from __future__ import annotations

from collections.abc import Sequence
from functools import cache

import gradio as gr
from PIL import Image

from m3ae.app.session import PreparedSet, Session
from m3ae.app.widgets import examples_row, image_input, picture, read_image, shows_errors
from m3ae.figures import render
from m3ae.inference import Hit, SearchIndex, index_folder, open_collection, open_index
from m3ae.inference.drawing import draw_hits

TOP = 6


def add_tab(session: Session, prepared: PreparedSet) -> None:
    """Add the tab; the index is opened, or built, at the first search."""
    assert session.searching is not None
    model, processor, name = session.searching

    @cache
    def index() -> SearchIndex:
        collection = open_collection(prepared.folder, prepared.split)
        return open_index(model, processor, collection, index_folder(name, prepared.folder, prepared.split))

    def table(hits: Sequence[Hit]) -> list[list[str]]:
        return [[f"{hit.score:.2f}", hit.image or "", " ".join(hit.texts)] for hit in hits]

    @shows_errors
    def find_images(text: str) -> tuple[Image.Image, list[list[str]]]:
        if not (text or "").strip():
            raise gr.Error("Write what to look for first.", print_exception=False)
        hits = index().find(text, TOP)
        return render(draw_hits(processor, index().collection, text, hits)), table(hits)

    @shows_errors
    def find_texts(path: str | None) -> list[list[str]]:
        return table(index().find(read_image(path), TOP))

    def results(label: str) -> gr.Dataframe:
        widths = ["12%", "23%", "65%"]
        headers = ["score", "image", "text"]
        return gr.Dataframe(headers=headers, column_widths=widths, interactive=False, wrap=True, label=label)

    with gr.Tab("Search", id="search"):
        gr.Markdown(
            f"Search the {prepared.split} split of {prepared.folder.name}. The first search encodes all its images; "
            "what is known to belong to the query is framed."
        )
        text = gr.Textbox(label="Find images for a text", placeholder="Small effusion in the right lower zone.")
        button = gr.Button("Find images", variant="primary")
        shown, images = picture("The query, and the images found"), results("Images found")
        if text_examples := [[case.text] for case in session.examples() if case.text][:3]:
            gr.Examples(text_examples, text, label="Texts of the set")
        gr.Markdown("---")
        image = image_input("Find texts for an image")
        examples_row(session.examples(), lambda case: case.image, [image])
        with gr.Row():
            with gr.Column(scale=1, min_width=300):
                image.render()
                back = gr.Button("Find texts", variant="primary")
            with gr.Column(scale=2, min_width=500):
                texts = results("Texts found")
        gr.on([button.click, text.submit], find_images, text, [shown, images])
        back.click(find_texts, image, texts)
