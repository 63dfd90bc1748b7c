"""`m3ae embed`: the vectors of a prepared set or of a folder of images."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import click

from m3ae.commands.options import DEVICE, MODEL, PATH, be_quiet


@click.command()
@click.argument("data", type=PATH)
@MODEL
@click.option("--output", type=PATH, required=True, help="folder to write: a new or empty one, or one to be continued")
@click.option("--image-columns", help="columns of images of a prepared set, separated by commas  [default: all]")
@click.option("--text-column", default="text", show_default=True, help="column of texts of a prepared set")
@click.option("--batch-size", type=click.IntRange(1), default=32, show_default=True, help="rows at once")
@click.option("--shard-range", help="write only these shards, counted over all splits: 0:16 for the first sixteen")
@DEVICE
def embed(data: Path, output: Path, **options: Any) -> None:
    """Write a vector of every row of a set, or of every image.

    DATA is a set made by m3ae prepare, and OUTPUT gets a shard of vectors for each of its shards; or DATA is a folder
    of images, with a table of texts or without, and images that cannot be read are left out and listed. A command that
    was interrupted continues when it is started again. Several machines share the work by --shard-range, as in
    preparing: the command without a range then completes the folder.

    \b
    Examples, the second one on the first of several machines:
      m3ae embed data/iu_xray --model runs/iu_xray --output vectors/iu_xray
      m3ae embed data/archive --model runs/iu_xray --output vectors/archive --shard-range 0:400
    """  # noqa: D301
    from m3ae.inference.embedding import DESCRIPTION, embed_set

    be_quiet()
    description = embed_set(data, output, **options)
    if description is not None:
        rows = ", ".join(f"{count} {split}" for split, count in description["splits"].items())
        click.echo(f"{output / DESCRIPTION}: {rows}")
