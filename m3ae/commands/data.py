"""`m3ae data`: commands that look at prepared folders, with the options that their functions declare."""

from pathlib import Path
from typing import Any

import click

from m3ae.commands.options import declaration, describe, example_of, options_of

PATH = click.Path(path_type=Path)


class DataGroup(click.Group):
    """Commands whose functions are imported when they are asked for."""

    def list_commands(self, ctx: click.Context) -> list[str]:
        """Return the names of the commands."""
        return [*COMMANDS]

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:
        """Return a command, or None if there is none of that name."""
        return COMMANDS[cmd_name]() if cmd_name in COMMANDS else None


def check_command() -> click.Command:
    """Return the command that finds what several splits or sets share."""
    check = declaration("m3ae.data.check", "check")

    def run(folders: tuple[Path, ...], json: Path | None, **options: Any) -> None:
        from m3ae.data.check import check

        report = check(folders, **options)
        click.echo(str(report))
        if json is not None:
            json.write_text(report.to_json(), encoding="utf-8")
        click.get_current_context().exit(report.exit_status)

    return click.Command(
        "check",
        params=[
            click.Argument(["folders"], type=PATH, nargs=-1, required=True, metavar="FOLDER..."),
            *options_of(check, skip=("folders",)),
            click.Option(["--json"], type=PATH, help="file to write the result to as well"),
        ],
        callback=run,
        help=describe(check) + "\n\nThe exit status is 1 if a training split shares images with a held-out one.",
        epilog=example_of("m3ae data check data/iu_xray data/vqa_rad"),
    )


def show_command() -> click.Command:
    """Return the command that draws what a prepared folder holds."""
    show = declaration("m3ae.data.show", "show")

    def run(folder: Path, **options: Any) -> None:
        from m3ae.data.show import show

        for path in show(folder, **options):
            click.echo(path)

    return click.Command(
        "show",
        params=[click.Argument(["folder"], type=PATH), *options_of(show, skip=("folder",))],
        callback=run,
        help=describe(show),
        epilog=example_of("m3ae data show data/iu_xray --output pictures"),
    )


COMMANDS = {"check": check_command, "show": show_command}
