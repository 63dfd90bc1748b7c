"""`m3ae search`: images that go with a text, texts that go with an image."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import click

from m3ae.commands.shared import AS_JSON, DEVICE, FILE, MODEL, PATH, be_quiet, print_json


@click.command()
@click.argument("data", type=PATH)
@MODEL
@click.option("--text", help="find the images that go with it")
@click.option("--image", type=FILE, help="find the texts that go with it")
@click.option("--top-k", type=click.IntRange(1), default=10, show_default=True, help="results")
@click.option("--split", default="test", show_default=True, help="of a prepared set")
@click.option(
    "--rerank",
    type=click.IntRange(0),
    default=20,
    show_default=True,
    help="candidates of the contrastive head, if there is one, that the matching head ranks; 0 for none",
)
@click.option("--index", type=PATH, help="folder of the index  [default: one below ~/.cache/m3ae/search]")
@click.option("--rebuild", is_flag=True, help="build the index in any case")
@click.option("--picture", type=PATH, help="PNG to draw; what is known to belong to the query is framed")
@AS_JSON
@DEVICE
def search(
    data: Path,
    model: str,
    text: str | None,
    image: Path | None,
    top_k: int,
    split: str,
    rerank: int,
    index: Path | None,
    rebuild: bool,
    picture: Path | None,
    as_json: bool,
    device: str | None,
) -> None:
    """Find images for a text, or texts for an image.

    DATA is a folder of images, with a table of texts or without, or a prepared set. Its images and texts are encoded
    once; the index is used again as long as model and data stay what they are.

    \b
    Examples:
      m3ae search data/iu_xray --model runs/iu_xray --text "large pleural effusion on the left"
      m3ae search my_images --model runs/iu_xray --image chest.png --json
    """  # noqa: D301
    if (text is None) == (image is None):
        raise click.UsageError("give either --text or --image")
    from m3ae.inference import index_folder, load_model, open_collection, open_index, read_images
    from m3ae.inference.search import SEARCHING

    be_quiet()
    collection = open_collection(data, split)
    loaded, processor = load_model(model, SEARCHING, device)
    place = index or index_folder(model, data, split)
    searcher = open_index(loaded, processor, collection, place, rebuild=rebuild)
    queries = read_images([image]) if image is not None else []
    hits = (
        searcher.find_images(text, top_k, rerank)
        if text is not None
        else searcher.find_texts(queries[0], top_k, rerank)
    )
    if picture is not None:
        from m3ae.figures import save_figure
        from m3ae.inference.drawing import draw_found_images, draw_found_texts

        figure = (
            draw_found_images(processor, collection, [text], [hits])
            if text is not None
            else draw_found_texts(processor, queries, [hits])
        )
        save_figure(figure, picture)
    found: list[dict[str, Any]] = []
    for number, hit in enumerate(hits, start=1):
        owner = collection.owners[hit.place] if image is not None else hit.place
        name = collection.names[owner] if owner >= 0 else None
        own = {"text": hit.name} if image is not None else {"texts": collection.texts_of(hit.place)}
        found.append({"rank": number, "score": hit.score, "image": name, **own})
    if as_json:
        print_json(found)
        return
    for row in found:
        shown = row["text"] if image is not None else " | ".join(row["texts"])
        click.echo(f"{row['rank']:>3}. {row['score']:>8.3f}  {row['image'] or '(no image)'}  {shown}".rstrip())
    if picture is not None:
        click.echo(picture)
