"""`m3ae sweep`: a grid of settings, trained and measured, as one table."""

from pathlib import Path

import click

from m3ae.commands.configs import ConfigFile


@click.command()
@click.argument("config", type=ConfigFile("pretrain", "finetune"))
@click.argument("overrides", nargs=-1, metavar="[KEY=VALUE]...")
@click.option("--over", "axes", multiple=True, required=True, metavar="KEY=V1,V2", help="an axis; may be given again")
@click.option("--metric", "metrics", multiple=True, help="a column, such as test/elbo  [default: the main ones]")
@click.option("--split", default="test", show_default=True, help="split that latent models are measured on")
def sweep(
    config: Path, overrides: tuple[str, ...], axes: tuple[str, ...], metrics: tuple[str, ...], split: str
) -> None:
    """Train and measure a model for every combination of some settings.

    CONFIG is the file or the name of a shipped one, KEY=VALUE replaces one of its options in all runs. Each run has a
    folder below output_dir; started again, the command repeats no run that is complete, resumes one that was
    interrupted, and tries one that failed once more. The table is printed and stays there as sweep.md, with all
    metrics in sweep.json: of a latent model those of its report, of others those at the end of training. The exit
    status is 1 if a run failed; the others go on.

    \b
    Examples:
      m3ae sweep iu_xray_latent --over model.overrides.latent.kind=poe,moe,mopoe --over training.seed=0,1,2
      m3ae sweep iu_xray_latent --over model.overrides.image_config.image_size=64,128 --metric test/elbo
    """  # noqa: D301
    from accelerate import PartialState

    from m3ae.tasks.sweep import plan_sweep, run_sweep, write_sweep

    runs = plan_sweep(config, axes, overrides)
    announce = PartialState().on_main_process(lambda line: click.echo(line, err=True))
    results = list(run_sweep(runs, split, announce))
    table = write_sweep(runs[0].config.output_dir.parent, results, metrics)
    PartialState().print(table, end="")
    if any(result.failure is not None for result in results):
        click.get_current_context().exit(1)
