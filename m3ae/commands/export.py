"""`m3ae export`: programs that run without this package."""

from __future__ import annotations

from pathlib import Path
from typing import Literal

import click

from m3ae.commands.shared import MODEL, PATH, be_quiet


@click.command()
@MODEL
@click.option("--output", type=PATH, required=True, help="new or empty folder for the programs")
@click.option("--format", "form", type=click.Choice(["pt2", "onnx"]), default="pt2", show_default=True)
def export(model: str, output: Path, form: Literal["pt2", "onnx"]) -> None:
    """Write a model as programs of torch.export or ONNX, for batches of any size.

    image_encoder takes pixel values (B, C, H, W), normalised as the model's processor does; text_encoder takes token
    ids and attention mask (B, L). Each gives tokens, and with a contrastive head embedding, the vectors that search
    compares. model takes all three, and gives logits, or the score of a pair. Of a latent model, encoder gives the
    mean of z, and a decoder for each modality takes z. torch.export.load reads pt2; the programs are for the CPU.

    \b
    Example:
      m3ae export --model runs/phantom --output exported --format onnx
    """  # noqa: D301
    from m3ae import (
        M3AEForClassification,
        M3AEForGeneration,
        M3AEForImageTextRetrieval,
        M3AEForPreTraining,
        M3AEForQuestionAnswering,
        M3AEModel,
    )
    from m3ae.inference import load_generator, load_model
    from m3ae.inference.export import save_programs
    from m3ae.inference.inputs import saved_class

    be_quiet()
    if saved_class(model) == M3AEForGeneration.__name__:
        paths = save_programs(load_generator(model, "cpu")[0], output, form)
    else:
        classes = [
            M3AEModel,
            M3AEForPreTraining,
            M3AEForQuestionAnswering,
            M3AEForClassification,
            M3AEForImageTextRetrieval,
        ]
        paths = save_programs(load_model(model, classes, "cpu")[0], output, form)
    for path in paths:
        click.echo(path)
