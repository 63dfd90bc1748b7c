"""`m3ae app`: trained models in a browser."""

from __future__ import annotations

from pathlib import Path

import click

from m3ae.commands.options import CONFIGS, DEVICE, PATH, be_quiet


@click.command()
@click.option("--model", "models", multiple=True, metavar="DIR", help="a model; one for each task may be named")
@click.option("--data", "sets", type=PATH, multiple=True, help="a prepared set to search, take rows from and browse")
@click.option("--split", default="test", show_default=True, help="split of the sets, if they have it")
@click.option("--host", default="127.0.0.1", show_default=True, help="address; any other one lets others use the app")
@click.option("--port", type=int, default=7860, show_default=True, help="port to listen on")
@DEVICE
def app(models: tuple[str, ...], sets: tuple[Path, ...], split: str, host: str, port: int, device: str | None) -> None:
    """Try models in a browser.

    The tabs depend on the models: a pre-trained one reconstructs and searches, a fine-tuned one answers questions,
    classifies, writes reports or searches, a latent one generates what is missing. Without a model, the app trains the
    quickstart first, which takes some minutes. The address is printed when the app answers. Uploads are limited to
    20 MB and never kept.

    \b
    Examples:
      m3ae app --model runs/phantom --model runs/vqa_rad_small --data data/phantom-12k
      m3ae app
    """  # noqa: D301
    from m3ae.app import serve

    if not models:
        import gradio  # noqa: F401  # before training, not after it

        click.echo("no --model given: training the quickstart, or using what it has left in runs/quickstart")
        model, data = _train_quickstart()
        models, sets = (model,), sets or (data,)
    be_quiet()
    serve(models, sets, split=split, host=host, port=port, device=device)


def _train_quickstart() -> tuple[str, Path]:
    """Return the folders of the quickstart's model and data; train the model where there is none."""
    from m3ae.tasks import task_class
    from m3ae.training.config import load_config
    from m3ae.training.loop import train

    config = load_config(CONFIGS / "pretrain" / "quickstart.yaml", [])
    model = config.output_dir / "model"
    if not (model / "config.json").is_file():
        train(config, task_class(config.task).from_config(config), resume=True)
    return str(model), config.data.path
