"""`m3ae convert` and `m3ae check-parity`: released checkpoints of the published code, into our format and back."""

from pathlib import Path

import click

PATH = click.Path(path_type=Path)


@click.command()
@click.option("--checkpoint", type=PATH, required=True, help="released file, m3ae.ckpt; with --reverse a folder")
@click.option("--output", type=PATH, required=True, help="folder to write; with --reverse a file")
@click.option("--tokenizer", help="tokenizer that the model was trained with: a folder, or a hub name (roberta-base)")
@click.option("--answers", type=PATH, help="names of the answers or classes in the head's order, one a line or JSON")
@click.option("--task", help="what to convert a file with several heads for, e.g. question_answering")
@click.option("--reverse", is_flag=True, help="write a saved model back in the released format")
def convert(
    checkpoint: Path, output: Path, tokenizer: str | None, answers: Path | None, task: str | None, reverse: bool
) -> None:
    """Turn a released M3AE checkpoint into a folder that `from_pretrained` loads, or back.

    Nothing that the file contains is run. All sizes are read off the weights, every parameter is either mapped or left
    out for a stated reason, and anything else is an error.

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
    given = {"--task": task, "--tokenizer": tokenizer, "--answers": answers}
    if unused := [name for name, value in given.items() if value is not None]:
        raise click.UsageError(f"--reverse writes the whole model as it is and takes no {', '.join(unused)}")
    click.echo(release(checkpoint, output))


@click.command("check-parity")
@click.option("--checkpoint", type=PATH, required=True, help="released file, e.g. m3ae.ckpt")
@click.option("--expected", type=PATH, required=True, help="inputs and the published code's numbers, safetensors")
def check_parity(checkpoint: Path, expected: Path) -> None:
    """Compare a converted checkpoint with numbers that the published code computed from it.

    Every stored step is run; the largest difference of each tensor is printed, and the exit status is 1 if one exceeds
    1e-5 (gradients: 1e-4 of their size).

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
