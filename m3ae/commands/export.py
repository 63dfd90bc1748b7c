"""`m3ae export`: encoders that run without this package."""

from __future__ import annotations

from pathlib import Path

import click

from m3ae.commands.shared import MODEL, PATH, be_quiet


@click.command()
@MODEL
@click.option("--output", type=PATH, required=True, help="new or empty folder for the two programs")
def export(model: str, output: Path) -> None:
    """Write the encoders of a model as programs of torch.export.

    image_encoder.pt2 takes pixel values (B, C, H, W), normalised as the model's processor does; text_encoder.pt2 takes
    token ids and attention mask (B, L). Each gives tokens, and with a contrastive head embedding, the vectors that
    search compares. torch.export.load reads them; they are for the CPU.

    \b
    Example:
      m3ae export --model runs/phantom --output exported
    """  # noqa: D301
    from m3ae import (
        M3AEForClassification,
        M3AEForImageTextRetrieval,
        M3AEForPreTraining,
        M3AEForQuestionAnswering,
        M3AEModel,
    )
    from m3ae.inference import load_model
    from m3ae.inference.export import save_encoders

    be_quiet()
    classes = [
        M3AEModel,
        M3AEForPreTraining,
        M3AEForQuestionAnswering,
        M3AEForClassification,
        M3AEForImageTextRetrieval,
    ]
    for path in save_encoders(load_model(model, classes, "cpu")[0], output):
        click.echo(path)
