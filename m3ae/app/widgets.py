"""What the tabs share: images in and out, examples to click on, errors that are shown."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import wraps
from pathlib import Path
from typing import Any, ParamSpec, TypeVar

import gradio as gr
from PIL import Image

from m3ae.app.session import Example
from m3ae.images.files import load_image

CSS = """
@media (max-width: 640px) {
  .picture .image-container, .picture .image-frame { overflow-x: auto; justify-content: start }
  .picture img { min-width: 640px }
}
"""  # on a phone a picture of many panels is scrolled, since each would be as small as a letter
MAX_PIXELS = 25_000_000  # of an upload: 100 KB of PNG may hold many more, each of ten bytes while it is decoded
Parameters = ParamSpec("Parameters")
Result = TypeVar("Result")


def image_input(label: str = "Image") -> gr.Image:
    """Return an input for an image, to be rendered by `upload_row`; functions get the name of the uploaded file."""
    sources = ["upload", "clipboard"]
    image = gr.Image(
        label=label, type="filepath", image_mode=None, format="png", sources=sources, height=300, render=False
    )
    image.preprocess = lambda payload: payload and payload.path  # gradio's shows its library's error and the path
    return image


def upload_row(image: gr.Image) -> None:
    """Render an input for an image, which shows an upload as the model sees it, and a button for DICOM files."""
    image.render()
    button = gr.UploadButton("DICOM file", file_types=[".dcm", ".dicom"], size="sm")
    show = shows_errors(read_image)
    image.upload(show, image, image, api_visibility="private")
    button.upload(show, button, image, api_visibility="private")


def picture(label: str) -> gr.Image:
    """Return an output for a picture that the app draws, below a line that says what it shows."""
    gr.Markdown(label)
    options = {"show_label": False, "buttons": ["download", "fullscreen"], "elem_classes": "picture"}
    return gr.Image(label=label, format="png", interactive=False, **options)


def seed_input(label: str) -> gr.Number:
    """Return an input for a seed."""
    return gr.Number(0, precision=0, minimum=0, maximum=2**32 - 1, label=label)


def count_slider(count: int, label: str) -> gr.Slider:
    """Return an input for one of `count` numbers from 0, which stays still if there is one alone."""
    return gr.Slider(0, max(count - 1, 1), 0, step=1, label=label, interactive=count > 1, min_width=300)


def read_image(path: str | None) -> Image.Image:
    """Decode an uploaded image.

    Raises:
        gr.Error: Nothing was uploaded.
        ValueError: The image cannot be read.
    """
    if path is None:
        raise gr.Error("Give an image first.", print_exception=False)
    return load_image(Path(path), MAX_PIXELS)


def shows_errors(function: Callable[Parameters, Result]) -> Callable[Parameters, Result]:
    """Let the user read the message of an error that a function raises."""

    @wraps(function)
    def run(*args: Parameters.args, **options: Parameters.kwargs) -> Result:
        try:
            return function(*args, **options)
        except (ValueError, OSError) as error:
            raise gr.Error(str(error), print_exception=False) from error

    return run


def examples_row(examples: Sequence[Example], fill: Callable[[Example], Any], outputs: Sequence[Any]) -> None:
    """Show examples; a click on one fills in `outputs` with the values of `fill`."""
    if not examples:
        return

    def choose(event: gr.SelectData) -> Any:
        return fill(examples[event.index])

    gr.Markdown("Take a case of the prepared set, or give an image of your own:")
    gallery = gr.Gallery(
        [(example.image, "") for example in examples],
        label="Cases of the prepared set",
        show_label=False,
        columns=len(examples),
        height=150,
        format="png",
        object_fit="contain",
        allow_preview=False,
        interactive=False,
        buttons=[],
    )
    gallery.select(choose, None, list(outputs))
