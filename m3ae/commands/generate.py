"""`m3ae generate`: missing modalities from those that are given."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from m3ae.commands.shared import AS_JSON, DEVICE, MODEL, PATH, be_quiet, print_json

if TYPE_CHECKING:
    from m3ae.inference.generation import Value


@click.command()
@MODEL
@click.option(
    "--given",
    multiple=True,
    metavar="NAME=VALUE",
    help="a modality: an image file, an array in a .npy file, a text or the name of a class; may be given again",
)
@click.option(
    "--target", "targets", multiple=True, metavar="NAME", help="what to generate  [default: all that is not given]"
)
@click.option("--data", type=PATH, help="prepared set: with --row, NAME alone takes that row's")
@click.option("--row", metavar="ID", help="id of a row of --data")
@click.option("--split", default="test", show_default=True, help="split of the row")
@click.option("--samples", type=click.IntRange(1), default=1, show_default=True, help="samples of each modality")
@click.option("--temperature", type=click.FloatRange(0), default=1.0, show_default=True, help="0 gives the means")
@click.option("--seed", type=int, default=0, show_default=True, help="of what is drawn")
@click.option("--output", type=PATH, default=Path("generated"), show_default=True, help="folder of images and arrays")
@AS_JSON
@DEVICE
def generate(
    model: str,
    given: tuple[str, ...],
    targets: tuple[str, ...],
    data: Path | None,
    row: str | None,
    split: str,
    samples: int,
    temperature: float,
    seed: int,
    output: Path,
    as_json: bool,
    device: str | None,
) -> None:
    """Generate missing modalities from those given.

    That takes a latent model; from nothing, it generates all from its prior. Images are written as PNG and sequences
    and vectors as .npy; texts and the probabilities of classes are printed.

    \b
    Examples:
      m3ae generate --model runs/digits --given kannada=three.png --target label --target speech
      m3ae generate --model runs/digits --data data/digits --row test-17 --given speech --samples 8
    """  # noqa: D301
    names = [item.partition("=")[0] for item in given]
    from_row = [item for item in given if "=" not in item]
    if from_row and (data is None or row is None):
        raise click.UsageError(f"--given {from_row[0]}: expected NAME=VALUE, or --data and --row to take it from")
    if twice := [name for name in names if names.count(name) > 1]:
        raise click.UsageError(f"--given {twice[0]} stands there {names.count(twice[0])} times")
    from m3ae.inference import generate as generate_from
    from m3ae.inference import load_generator
    from m3ae.inference.generation import read_modality

    be_quiet()
    loaded, tokenizer = load_generator(model, device)
    values: dict[str, Value] = {}
    for item in given:
        name, has_value, value = item.partition("=")
        if has_value:
            values[name] = read_modality(loaded, name, value)
    if data is not None and row is not None:
        from m3ae.inference.generation import read_row

        values |= read_row(loaded, data, split, row, from_row)
    made = generate_from(
        loaded, tokenizer, values, targets or None, num_samples=samples, temperature=temperature, seed=seed
    )
    described = {
        name: [_keep(own, output, f"{name}-{number}") for number, own in enumerate(draws, start=1)]
        for name, draws in made.items()
    }
    if as_json:
        print_json(described)
        return
    for name, results in described.items():
        for result in results:
            click.echo(f"{name}: {_best(result) if isinstance(result, dict) else result}")


def _keep(value: Value, folder: Path, name: str) -> str | dict[str, float]:
    """Write an image or an array, and return the file; return texts and probabilities as they are."""
    from PIL import Image

    if isinstance(value, str | dict):
        return value
    folder.mkdir(parents=True, exist_ok=True)
    if isinstance(value, Image.Image):
        path = folder / f"{name}.png"
        value.save(path)
        return str(path)
    import numpy as np

    path = folder / f"{name}.npy"
    np.save(path, value)
    return str(path)


def _best(scores: dict[str, Any]) -> str:
    best = sorted(scores.items(), key=lambda item: -item[1])[:3]
    return ", ".join(f"{name} ({score:.2f})" for name, score in best)
