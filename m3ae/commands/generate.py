"""`m3ae generate`: missing modalities from present ones."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import click

from m3ae.commands.options import AS_JSON, DEVICE, MODEL, PATH, SEED, be_quiet, print_result

GIVEN = "a present modality: an image file, an array in a .npy file, a text or the name of a class; may be repeated"
TARGET = "a modality to generate; may be repeated  [default: all that are not given]"
OUTPUT = "folder of images and arrays; no file in it is replaced"


@click.command()
@MODEL
@click.option("--given", multiple=True, metavar="NAME=VALUE", help=GIVEN)
@click.option("--target", "targets", multiple=True, metavar="NAME", help=TARGET)
@click.option("--data", type=PATH, help="prepared set; with --row, NAME without a value takes that row's")
@click.option("--row", metavar="ID", help="id of a row of --data")
@click.option("--split", default="test", show_default=True, help="split of the row")
@click.option("--samples", type=click.IntRange(1), default=1, show_default=True, help="samples of each modality")
@click.option("--temperature", type=click.FloatRange(0), default=1.0, show_default=True, help="0 gives the means")
@click.option("--seed", type=SEED, default=0, show_default=True, help="seed of the samples")
@click.option("--output", type=PATH, default=Path("generated"), show_default=True, help=OUTPUT)
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
    output: Path,
    device: str | None,
    **options: Any,
) -> None:
    """Generate missing modalities from present ones.

    The model must have a latent head; from nothing, it generates all modalities from its prior. Images are written as
    PNG and sequences and vectors as .npy; texts and the probabilities of classes are printed.

    \b
    Examples:
      m3ae generate --model runs/digits --given kannada=three.png --target label --target speech
      m3ae generate --model runs/digits --data data/digits --row test-17 --given speech --samples 8
    """  # noqa: D301
    names = [item.partition("=")[0] for item in given]
    from_row = [item for item in given if "=" not in item]
    if from_row and (data is None or row is None):
        raise click.UsageError(f"--given {from_row[0]}: expected NAME=VALUE, or --data and --row to take it from")
    if repeated := [name for name in names if names.count(name) > 1]:
        raise click.UsageError(f"--given names {repeated[0]} {names.count(repeated[0])} times")
    from m3ae.inference import generate, load_generator
    from m3ae.inference.generation import read_modality, read_row, write_value

    be_quiet()
    loaded, tokenizer = load_generator(model, device)
    targets = targets or tuple(name for name in loaded.latent.decoded if name not in names)
    if existing := sorted(path for name in targets for path in output.glob(f"{name}-*.*")):
        raise FileExistsError(f"{existing[0]} exists, and would be replaced: choose another --output")
    typed = {name: value for name, sign, value in (item.partition("=") for item in given) if sign}
    values = {name: read_modality(loaded, name, value) for name, value in typed.items()}
    if data is not None and row is not None:
        values |= read_row(loaded, data, split, row, from_row)
    made = generate(loaded, tokenizer, values, targets, num_samples=samples, **options)
    described = {
        name: [write_value(value, output / f"{name}-{number}") for number, value in enumerate(draws, start=1)]
        for name, draws in made.items()
    }
    items = [(name, result) for name, results in described.items() for result in results]
    print_result(described, (f"{name}: {_best(item) if isinstance(item, dict) else item}" for name, item in items))


def _best(scores: dict[str, float]) -> str:
    best = sorted(scores.items(), key=lambda item: -item[1])[:3]
    return ", ".join(f"{name} ({score:.2f})" for name, score in best)
