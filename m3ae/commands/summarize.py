"""`m3ae summarize`: several runs of one recipe as mean ± standard deviation."""

from pathlib import Path

import click

PATH = click.Path(path_type=Path)


@click.command()
@click.argument("runs", type=PATH, nargs=-1, required=True, metavar="RUN...")
@click.option("--metric", "metrics", multiple=True, help="a column, such as test/accuracy  [default: the main ones]")
@click.option("--name", help="what the row is called  [default: the name of the first run]")
@click.option("--json", type=PATH, help="file to write all metrics of all runs to as well")
def summarize(runs: tuple[Path, ...], metrics: tuple[str, ...], name: str | None, json: Path | None) -> None:
    """Print runs of several seeds as one row: mean ± sd.

    RUN is the folder of a finished run. The table is Markdown; shares are in percent, and of a single run they come
    with their 95 % interval. Below it stands in which settings the runs differ.

    \b
    Examples:
      m3ae summarize runs/vqa_rad_seed_*
      m3ae summarize runs/vqa_rad_seed_* --metric test/accuracy --metric test/shuffled_accuracy --json vqa_rad.json
    """  # noqa: D301
    from m3ae.tasks.summary import summarize_runs

    summary = summarize_runs(runs)
    click.echo(summary.table(name or runs[0].resolve().name, metrics or summary.main_metrics()))
    for setting, values in summary.differing_settings.items():
        click.echo(f"{setting}: {', '.join(map(str, values))}")
    if json is not None:
        json.write_text(summary.to_json(), encoding="utf-8")
