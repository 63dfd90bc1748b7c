"""The app: trained models in a browser. Each tab is a file; all of them call `m3ae.inference`."""

from __future__ import annotations

import atexit
import gc
import os
import signal
import sys
from collections.abc import Sequence
from contextlib import ExitStack
from pathlib import Path
from typing import TYPE_CHECKING

from m3ae.files import temporary_folder

if TYPE_CHECKING:
    import gradio as gr

    from m3ae.app.session import Session

MAX_UPLOAD = "20mb"
KEPT = 600  # seconds until an upload is deleted; all are at the end


def build(session: Session) -> gr.Blocks:
    """Return the app: a tab for everything that models and sets allow.

    Raises:
        ValueError: No prepared set goes with a model.
    """
    import gradio as gr

    from m3ae.app import ask, browse, classify, generate, reconstruct, search

    with gr.Blocks(title="m3ae", analytics_enabled=False, delete_cache=(KEPT, KEPT), fill_width=True) as app:
        gr.Markdown("# m3ae\nMasked multimodal autoencoders for medical images and text. Not a medical device.")
        with gr.Tabs():
            if session.masked is not None:
                reconstruct.add_tab(session)
            if session.answering is not None:
                ask.add_tab(session)
            if session.classifying is not None:
                classify.add_classify_tab(session)
            if session.reporting is not None:
                classify.add_report_tab(session)
            with_images = [prepared for prepared in session.sets if prepared.image_columns]
            if session.searching is not None and with_images:
                search.add_tab(session, with_images)
            elif session.searching is not None and session.masked is None:
                raise ValueError("--data: search needs a prepared set with images, got none")
            if session.latent is not None:
                names = [*session.latent[0].latent.typed_modalities]
                if (fitting := session.set_of(names)) is None:
                    raise ValueError(
                        f"--data: the latent model needs a prepared set with {', '.join(names)}, got none"
                    )
                generate.add_tab(session, fitting)
            if session.sets:
                browse.add_data_tab(session.sets)
            if session.runs:
                browse.add_run_tab(session.runs)
    return app


def serve(
    models: Sequence[str],
    sets: Sequence[Path] = (),
    *,
    split: str = "test",
    host: str = "127.0.0.1",
    port: int = 7860,
    device: str | None = None,
    block: bool = True,
) -> str:
    """Serve the app until it is interrupted.

    Uploads are at most 20 MB, and images 25 million pixels. They lie in a temporary folder, and are deleted after ten
    minutes. The folder is removed at the end, by SIGTERM and SIGHUP, too; the next app removes the folder of a killed
    one.

    Args:
        models: Folders or hub names, at most one for each task.
        sets: Prepared folders.
        split: The split that rows and examples are taken from.
        host: The address to listen on; any but the default lets others use the app.
        port: The port to listen on.
        device: The device of the models.
        block: Whether to wait; otherwise the app is served in the background.

    Returns:
        The address of the app.

    Raises:
        FileNotFoundError: There is no such prepared folder.
        ValueError: A model cannot be loaded, or no prepared set goes with it.
        OSError: The port is taken.
    """
    with ExitStack() as stack:
        os.environ["GRADIO_TEMP_DIR"] = str(stack.enter_context(temporary_folder("m3ae-app-uploads-")))
        for number in (signal.SIGTERM, signal.SIGHUP) if block else ():
            signal.signal(number, lambda number, frame: sys.exit(128 + number))  # the folder is removed on the way out
        os.environ["GRADIO_ANALYTICS_ENABLED"] = "False"
        import gradio as gr

        from m3ae.app.session import open_session
        from m3ae.app.widgets import CSS

        session = open_session(models, sets, split, device)
        fonts = {"font": ["system-ui", "sans-serif"], "font_mono": ["ui-monospace", "monospace"]}
        app = build(session)
        _, address, _ = app.launch(
            server_name=host,
            server_port=port,
            share=False,
            max_file_size=MAX_UPLOAD,
            show_error=True,
            quiet=True,
            footer_links=[],
            run_history=False,
            ssr_mode=False,
            prevent_thread_lock=True,
            theme=gr.themes.Default(**fonts),
            css=CSS,
        )
        if block:
            gc.collect()
            gc.freeze()  # collections are quick and early: else drawn figures pile up to 200 MB before one
            print(f"{address}, to be stopped with Ctrl-C", flush=True)
            app.block_thread()
        else:
            atexit.register(stack.pop_all().close)
        return str(address)
