"""The tab that searches prepared sets, from texts to images and back."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from functools import cache

import gradio as gr
from PIL import Image

from m3ae.app.session import PreparedSet, Session
from m3ae.app.widgets import examples_row, image_input, picture, read_image, shows_errors, upload_row
from m3ae.figures import render
from m3ae.inference import Collection, Hit, SearchIndex, index_folder, open_collection, open_index
from m3ae.inference.drawing import draw_hits

TOP = 6
CANDIDATES = 32  # equal images among them are merged


def add_tab(session: Session, sets: Sequence[PreparedSet]) -> None:
    """Add the tab; the index of a set is opened, or built, at the first search."""
    assert session.searching is not None
    model, processor, name = session.searching
    by_name = {f"{prepared.folder}, {prepared.split}": prepared for prepared in sets}

    @cache
    def index(chosen: str) -> SearchIndex:
        folder, split = by_name[chosen].folder, by_name[chosen].split
        return open_index(model, processor, open_collection(folder, split), index_folder(name, folder, split))

    def table(hits: Sequence[Hit]) -> list[list[str]]:
        return [[f"{hit.score:.2f}", hit.image or "", " ".join(hit.texts)] for hit in hits]

    @shows_errors
    def find_images(text: str, chosen: str) -> tuple[Image.Image, list[list[str]]]:
        if not (text or "").strip():
            raise gr.Error("Write what to look for first.", print_exception=False)
        collection = index(chosen).collection
        hits = merge_equal(index(chosen).find(text, CANDIDATES, CANDIDATES), collection)[:TOP]
        return render(draw_hits(processor, collection, text, hits)), table(hits)

    @shows_errors
    def find_texts(path: str | None, chosen: str) -> list[list[str]]:
        return table(index(chosen).find(read_image(path), TOP))

    def results(label: str) -> gr.Dataframe:
        widths = ["72px", "130px", "auto"]
        headers = ["score", "image", "text"]
        return gr.Dataframe(headers=headers, column_widths=widths, interactive=False, wrap=True, label=label)

    with gr.Tab("Search", id="search"):
        gr.Markdown(
            "The first search of a set encodes all its images. A frame marks an image whose own text is the query. "
            "Equal images are shown once."
        )
        chosen = gr.Dropdown([*by_name], value=next(iter(by_name)), label="Prepared set", visible=len(by_name) > 1)
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
                upload_row(image)
                back = gr.Button("Find texts", variant="primary")
            with gr.Column(scale=2, min_width=500):
                texts = results("Texts found")
        gr.on([button.click, text.submit], find_images, [text, chosen], [shown, images])
        back.click(find_texts, [image, chosen], texts)


def merge_equal(hits: Sequence[Hit], collection: Collection) -> list[Hit]:
    """Return hits with different images, the first of equal ones with the texts of all."""
    by_image: dict[bytes, Hit] = {}
    for hit in hits:
        pixels = hashlib.sha256(collection.load(hit.row).tobytes()).digest()
        first = by_image.setdefault(pixels, hit)
        by_image[pixels] = first._replace(texts=[*dict.fromkeys([*first.texts, *hit.texts])])
    return [*by_image.values()]
