"""`m3ae search` and `m3ae embed`: images and texts as vectors, and what goes with what."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import click

from m3ae.commands.options import AS_JSON, DEVICE, FILE, MODEL, OUTPUT_FILE, PATH, be_quiet, print_result

OUTPUT = "folder of shards, a new or empty one, or one to be continued; or a .parquet, .csv or .npy file"
RERANK = "candidates of the contrastive head, if there is one, that the matching head ranks; 0 for none"


@click.command()
@click.argument("data", type=PATH)
@MODEL
@click.option("--text", help="find the images that go with this text")
@click.option("--image", type=FILE, help="find the texts that go with this image")
@click.option("--top-k", type=click.IntRange(1), default=10, show_default=True, help="results")
@click.option("--split", default="test", show_default=True, help="split of a prepared set")
@click.option("--rerank", type=click.IntRange(0), default=20, show_default=True, help=RERANK)
@click.option("--index", type=PATH, help="folder of the index  [default: one below ~/.cache/m3ae/search]")
@click.option("--rebuild", is_flag=True, help="build the index in any case")
@click.option("--picture", type=OUTPUT_FILE, help="PNG to draw; what is known to belong to the query is framed")
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
    folder = index or index_folder(model, data, split)
    query = (text or "") if image is None else read_images([image])[0]
    hits = open_index(loaded, processor, collection, folder, rebuild=rebuild).find(query, top_k, rerank)
    if picture is not None:
        from m3ae.figures import save_figure
        from m3ae.inference.drawing import draw_hits

        save_figure(draw_hits(processor, collection, query, hits), picture)
    results, lines = list[dict[str, Any]](), list[str]()
    for rank, hit in enumerate(hits, start=1):
        texts = {"texts": hit.texts} if image is None else {"text": hit.texts[0]}
        results.append({"rank": rank, "score": hit.score, "image": hit.image, **texts})
        line = f"{rank:>3}. {hit.score:>8.3f}  {hit.image or '(no image)'}  {' | '.join(hit.texts)}"
        lines.append(line.rstrip())
    print_result(results, [*lines, picture])


@click.command()
@click.argument("data", type=PATH)
@MODEL
@click.option("--output", type=OUTPUT_FILE, required=True, help=OUTPUT)
@click.option("--image-columns", help="columns of images of a prepared set, separated by commas  [default: all]")
@click.option("--text-column", default="text", show_default=True, help="column of texts of a prepared set")
@click.option("--batch-size", type=click.IntRange(1), default=32, show_default=True, help="rows at once")
@click.option("--shard-range", help="write only these shards, counted over all splits: 0:16 for the first sixteen")
@DEVICE
def embed(data: Path, output: Path, **options: Any) -> None:
    """Write a vector of every row of a set, or of every image, and its labels.

    The model may be pre-trained or fine-tuned. DATA is a set made by m3ae prepare, a folder of images, with a table or
    without, or a table. A model of several views reads all views of a row. Images that cannot be read are left out and
    listed. A folder OUTPUT gets shards of vectors: several machines share the work by --shard-range, as in preparing,
    and the command without a range then completes the folder. A .npy file has the vectors alone, and a .rows.csv file
    beside it has ids and labels. A command that was interrupted continues when it is started again.

    \b
    Examples, the third one on the first of several machines:
      m3ae embed my_images --model runs/iu_xray --output vectors.csv
      m3ae embed data/iu_xray --model runs/iu_xray --output vectors/iu_xray
      m3ae embed data/archive --model runs/iu_xray --output vectors/archive --shard-range 0:400
    """  # noqa: D301
    from m3ae.inference.embedding import DESCRIPTION, embed_set
    from m3ae.inference.vectors import FORMATS, embed_file

    be_quiet()
    is_file = output.suffix in FORMATS
    description = (embed_file if is_file else embed_set)(data, output, **options)
    if description is not None:
        rows = ", ".join(f"{count} {split}" for split, count in description["splits"].items())
        lost = len(description["rejected"])
        click.echo(f"{output if is_file else output / DESCRIPTION}: {rows}{f'; {lost} left out' * bool(lost)}")
