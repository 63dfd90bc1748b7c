"""`m3ae prepare`: one command per source, with the options that its reader declares."""

import ast
import sys
from collections import Counter
from pathlib import Path
from typing import Any

import click

from m3ae.commands.options import declaration, example_of, options_of, parse_module
from m3ae.data.sources import SOURCES, load_source, source_module

MAX_REJECTED = click.Option(
    ["--max-rejected"],
    type=click.FloatRange(0, 1),
    default=0.5,
    show_default=True,
    help="end with status 1 if a larger share of the rows was rejected; the rest is written all the same",
)


class SourceGroup(click.Group):
    """A command per source; only the one that is called is imported."""

    def list_commands(self, ctx: click.Context) -> list[str]:
        """Return the names of the sources."""
        return [*SOURCES]

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command:
        """Return the command of a source."""
        try:
            return source_command(cmd_name)
        except ValueError as error:
            raise click.UsageError(str(error), ctx) from error

    def format_commands(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        """Write a line for every source, without importing them."""
        with formatter.section("Sources"):
            formatter.write_dl([(name, _docstring(module).partition("\n")[0]) for name, module in SOURCES.items()])


def source_command(name: str) -> click.Command:
    """Return the command that prepares a source."""
    module = source_module(name)
    prepare = declaration("m3ae.data.prepare", "prepare")
    common = {option.name: option for option in options_of(prepare, skip=("name", "source", "options"))}
    own = {option.name: option for option in options_of(declaration(module, "rows"))}
    first = [option for option in (own.pop("source", None), common.pop("output")) if option]
    example = f"m3ae prepare {name}{' --source DOWNLOADS/' + name if len(first) == 2 else ''} --output data/{name}"

    def run(max_rejected: float, **options: Any) -> None:
        from m3ae.data.prepare import prepare

        manifest = prepare(name, **options)
        if manifest is None:  # a range of shards, of which only the whole can be judged
            return
        by_choice = getattr(load_source(name), "LEFT_OUT_BY_CHOICE", ())
        if (share := manifest.rejected_share(by_choice)) > max_rejected:
            rejected = {reason: count for reason, count in manifest.rejected.items() if reason not in by_choice}
            raise click.ClickException(_too_many(share, rejected, options["output"]))

    return click.Command(
        name,
        params=[*first, *own.values(), *common.values(), MAX_REJECTED],
        callback=run,
        help=_keep_layout(_docstring(module)),
        epilog=example_of(example),
    )


def _too_many(share: float, rejected: dict[str, int], output: Path) -> str:
    reasons = ", ".join(f"{count} {reason}" for reason, count in Counter(rejected).most_common(3))
    if not reasons:
        return "the source has no rows"
    return (
        f"{share:.0%} of the rows were rejected ({reasons}); what could be used is written: "
        f"see {output / 'rejected.jsonl'}, and raise --max-rejected if this is as it should be"
    )


def _docstring(module: str) -> str:
    """Return a module's docstring without importing the module."""
    if module in sys.modules:
        return sys.modules[module].__doc__ or ""
    return ast.get_docstring(parse_module(module)) or ""


def _keep_layout(docstring: str) -> str:
    r"""Mark the paragraphs of a docstring that click must not fill again, those with indented lines, by `\b`."""
    paragraphs = docstring.strip().split("\n\n")
    return "\n\n".join(f"\b\n{part}" if "\n " in part or part[0] in " -`" else part for part in paragraphs)
