"""The commands that turn models into other formats, and back: `m3ae convert`, `check-parity` and `export`."""

from pathlib import Path
from typing import Literal

import click

from m3ae.commands.options import MODEL, PATH, be_quiet

FORMAT = "programs of torch.export, or of ONNX"


@click.command()
@click.option("--checkpoint", type=PATH, required=True, help="released file, m3ae.ckpt; with --reverse a folder")
@click.option("--output", type=PATH, required=True, help="new or empty folder; with --reverse a new file")
@click.option("--tokenizer", help="tokenizer that the model was trained with: a folder, or a hub name (roberta-base)")
@click.option("--answers", type=PATH, help="names of the answers or classes in the head's order, one a line or JSON")
@click.option("--task", help="task that a file with several heads is converted for, e.g. question_answering")
@click.option("--reverse", is_flag=True, help="write a saved model in the released format")
def convert(
    checkpoint: Path, output: Path, tokenizer: str | None, answers: Path | None, task: str | None, reverse: bool
) -> None:
    """Convert a released M3AE checkpoint, or a model back.

    The result is a folder that `from_pretrained` loads; with --reverse, a file in the released format.

    Nothing that the file contains is run. All sizes are read off the weights. Every parameter is either mapped or left
    out for a stated reason; anything else is an error.

    \b
    Examples:
      m3ae convert --checkpoint m3ae.ckpt --output models/m3ae --tokenizer roberta-base
      m3ae convert --checkpoint models/m3ae --output m3ae.ckpt --reverse
    """  # noqa: D301
    from m3ae.transfer.convert import convert as convert_released
    from m3ae.transfer.convert import release

    if not reverse:
        click.echo(convert_released(checkpoint, output, task, tokenizer, answers))
        return
    options = {"--task": task, "--tokenizer": tokenizer, "--answers": answers}
    if unused := [name for name, value in options.items() if value is not None]:
        raise click.UsageError(f"--reverse writes the whole model as it is and takes no {', '.join(unused)}")
    click.echo(release(checkpoint, output))


@click.command("check-parity")
@click.option("--checkpoint", type=PATH, required=True, help="released file, e.g. m3ae.ckpt")
@click.option("--expected", type=PATH, required=True, help="inputs and the published code's numbers, safetensors")
def check_parity(checkpoint: Path, expected: Path) -> None:
    """Compare a checkpoint with the published code's numbers.

    Every stored step is run with the converted checkpoint. The command prints the largest difference of each tensor;
    the exit status is 1 if one exceeds 1e-5 (gradients: 1e-4 of their size).

    \b
    Example:
      m3ae check-parity --checkpoint m3ae.ckpt --expected expected.safetensors
    """  # noqa: D301
    from m3ae.transfer.parity import compare, table

    differences = compare(checkpoint, expected)
    click.echo(table(differences))
    failed = sum(not difference.ok for difference in differences)
    click.echo(f"{len(differences) - failed} of {len(differences)} tensors within tolerance")
    click.get_current_context().exit(1 if failed else 0)


@click.command()
@MODEL
@click.option("--output", type=PATH, required=True, help="new or empty folder for the programs")
@click.option("--format", "form", type=click.Choice(["pt2", "onnx"]), default="pt2", show_default=True, help=FORMAT)
@click.option(
    "--encoder", type=click.Choice(["image", "text"]), help="one encoder as a folder of transformers or timm"
)
def export(model: str, output: Path, form: Literal["pt2", "onnx"], encoder: Literal["image", "text"] | None) -> None:
    """Write a model as programs, or one of its encoders.

    --format names the kind of programs, torch.export or ONNX; --encoder writes an encoder for transformers or timm.

    The programs take batches of any size. image_encoder takes pixel values (B, C, H, W), normalised as the model's
    processor does; text_encoder takes token ids and attention mask (B, L). Each gives tokens, and with a contrastive
    head embedding, the vectors that search compares. model takes all three, and gives logits, or the score of a pair.
    For a latent model, encoder gives the mean of z, and a decoder for each modality takes z. torch.export.load reads
    pt2; the programs are for the CPU.

    \b
    Examples:
      m3ae export --model runs/phantom --output exported --format onnx
      m3ae export --model runs/phantom --output exported --encoder image
    """  # noqa: D301
    from m3ae.inference.export import save_programs
    from m3ae.inference.inputs import load_any

    be_quiet()
    loaded, processor = load_any(model, "cpu")
    if encoder is not None:
        from m3ae.transfer.exported import export_encoder

        click.echo(export_encoder(loaded, encoder, output, getattr(processor, "tokenizer", processor)))
        return
    for path in save_programs(loaded, output, form):
        click.echo(path)
