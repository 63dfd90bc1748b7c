"""The commands about data: `m3ae prepare`, `m3ae data` and `m3ae train-tokenizer`.

The options of `m3ae prepare NAME` are the parameters of the source's function `rows`. They are read from the syntax
tree of the source's file: the libraries that a source imports take seconds, which help must not.
"""

from __future__ import annotations

import ast
import re
from collections import Counter
from collections.abc import Collection
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import click

from m3ae.commands.options import OUTPUT_FILE, PATH, SEED
from m3ae.data.sources import SOURCES, load_source, source_module

TYPES = {"str": click.STRING, "int": click.INT, "float": click.FLOAT, "bool": click.BOOL, "Path": PATH}
MAX_REJECTED = click.Option(
    ["--max-rejected"],
    type=click.FloatRange(0, 1),
    default=0.5,
    show_default=True,
    help="end with status 1 if a larger share of the rows was rejected; the rest is written all the same",
)


class SourceGroup(click.Group):
    """A command per source; only the one that runs imports its source."""

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
        """Write a line for every source."""
        lines = {name: ast.get_docstring(parse_module(module)) or "" for name, module in SOURCES.items()}
        with formatter.section("Sources"):
            formatter.write_dl([(name, line.partition("\n")[0]) for name, line in lines.items()])


@click.group(cls=SourceGroup, subcommand_metavar="NAME ...")
def prepare() -> None:
    """Turn a data set, as downloaded, into verified shards.

    Every image is decoded once, and every row ends in a shard or, with its reason, in rejected.jsonl. A run that was
    interrupted continues when it is started again. `m3ae prepare NAME --help` lists the options of a source.

    \b
    Example:
      m3ae prepare iu_xray --source DOWNLOADS/iu_xray --output data/iu_xray
    """  # noqa: D301


def source_command(name: str) -> click.Command:
    """Return the command that prepares a source.

    Raises:
        ValueError: There is no such source, or a parameter of its function `rows` is of a type that no option has.
    """
    tree = parse_module(source_module(name))
    options = function_options(tree, "rows")
    common = function_options(parse_module("m3ae.data.prepare"), "prepare", skip=("name", "source", "options"))
    first = [option for option in (options.pop("source", None), common.pop("output")) if option]
    download = f" --source DOWNLOADS/{name}" if len(first) == 2 else ""

    def run(max_rejected: float, **options: Any) -> None:
        from m3ae.data.prepare import prepare

        manifest = prepare(name, **options)
        if manifest is None:  # a range of shards; only the whole can be judged
            return
        by_choice = getattr(load_source(name), "LEFT_OUT_BY_CHOICE", ())
        if (share := manifest.rejected_share(by_choice)) > max_rejected:
            rejected = {reason: count for reason, count in manifest.rejected.items() if reason not in by_choice}
            raise click.ClickException(_too_many(share, rejected, options["output"]))

    return click.Command(
        name,
        params=[*first, *options.values(), *common.values(), MAX_REJECTED],
        callback=run,
        help=_keep_layout(ast.get_docstring(tree) or name),
        epilog=f"\b\nExample:\n  m3ae prepare {name}{download} --output data/{name}",
    )


def parse_module(module: str) -> ast.Module:
    """Return the syntax tree of a module without importing it."""
    spec = find_spec(module)
    assert spec is not None and spec.origin is not None
    return ast.parse(Path(spec.origin).read_text(encoding="utf-8"))


def function_options(module: ast.Module, function: str, skip: Collection[str] = ()) -> dict[str, click.Option]:
    """Return an option for every parameter of a function; the `Args:` of its docstring describe the options.

    Args:
        module: The syntax tree of the module.
        function: The function's name. Its defaults are literals or constants of the module.
        skip: Parameters that get no option.

    Raises:
        ValueError: There is no such function, or a parameter has no type, or one that no option has.
    """
    functions = {node.name: node for node in module.body if isinstance(node, ast.FunctionDef)}
    if function not in functions:
        raise ValueError(f"the source has no function {function}; it has {', '.join(functions) or 'none'}")
    node = functions[function]
    constants = {
        ast.unparse(target): assigned.value
        for assigned in module.body
        if isinstance(assigned, ast.Assign)
        for target in assigned.targets
    }
    helps = describe_arguments(ast.get_docstring(node) or "")
    positional, keywords = node.args.args, node.args.kwonlyargs
    defaults = [*[None] * (len(positional) - len(node.args.defaults)), *node.args.defaults, *node.args.kw_defaults]
    options = {}
    for parameter, default in zip([*positional, *keywords], defaults, strict=True):
        if (name := parameter.arg) not in skip:
            settings: dict[str, Any] = {"required": default is None, "help": helps.get(name)}
            if default is not None:
                settings["default"] = ast.literal_eval(constants.get(ast.unparse(default), default))
                settings["show_default"] = not isinstance(settings["default"], bool)
            options[name] = _option(name, parameter.annotation, settings)
    return options


def describe_arguments(docstring: str) -> dict[str, str]:
    """Return what the `Args:` of a docstring say, by name of the argument."""
    section = re.search(r"^Args:\n((?: .*\n?)+)", docstring, re.MULTILINE)
    entries = re.findall(r"^    (\w+): (.*(?:\n {5,}.*)*)", section[1] if section else "", re.MULTILINE)
    texts = {name: " ".join(text.replace("`", "").split()).removesuffix(".") for name, text in entries}
    return {name: text[:1].lower() + text[1:] if text[1:2].islower() else text for name, text in texts.items()}


def _option(name: str, annotation: ast.expr | None, settings: dict[str, Any]) -> click.Option:
    flag = name.replace("_", "-")
    kinds = ast.unparse(annotation).split(" | ") if annotation else [""]
    kind = "Path" if "Path" in kinds else kinds[0]
    if kind.startswith("Literal["):
        choices = ast.literal_eval(kind.removeprefix("Literal"))
        return click.Option([f"--{flag}"], type=click.Choice(choices), **settings)
    if kind not in TYPES:
        raise ValueError(f"{name}: an option cannot have the type {kind!r}; expected Literal or {', '.join(TYPES)}")
    if kind == "bool":
        flags = f"--{flag}/--no-{flag}" if settings.get("default") else f"--{flag}"
        return click.Option([flags], is_flag=True, **settings)
    return click.Option([f"--{flag}"], type=TYPES[kind], **settings)


def _too_many(share: float, rejected: dict[str, int], output: Path) -> str:
    reasons = ", ".join(f"{count} {reason}" for reason, count in Counter(rejected).most_common(3))
    if not reasons:
        return "the source has no rows"
    return (
        f"{share:.0%} of the rows were rejected ({reasons}); what could be used is written: "
        f"see {output / 'rejected.jsonl'}, and raise --max-rejected if this is as it should be"
    )


def _keep_layout(docstring: str) -> str:
    r"""Mark the paragraphs of a docstring that click must not fill again, those with indented lines, by `\b`."""
    paragraphs = docstring.strip().split("\n\n")
    return "\n\n".join(f"\b\n{text}" if "\n " in text or text[0] in " -`" else text for text in paragraphs)


@click.group()
def data() -> None:
    """Look at prepared data: leaks between splits, pictures."""


@data.command()
@click.argument("folders", type=PATH, nargs=-1, required=True, metavar="FOLDER...")
@click.option(
    "--max-distance",
    type=click.IntRange(max=64),
    default=20,
    show_default=True,
    help="bits out of 256 in which the perceptual hashes of near images may differ; below 0 for equal pixels only",
)
@click.option("--num-workers", type=int, help="processes that decode images  [default: one per core]")
@click.option("--json", type=OUTPUT_FILE, help="file for the result")
def check(folders: tuple[Path, ...], json: Path | None, **options: Any) -> None:
    """Find the same images and texts within and across the splits of prepared folders.

    Every image is decoded once, in parallel, a few milliseconds each; its fingerprints stay in the folder. Near images
    of a million take a minute of one core. The exit status is 1 if a training split shares images with a held-out one.

    \b
    Example:
      m3ae data check data/iu_xray data/vqa_rad
    """  # noqa: D301
    from m3ae.data.leaks import find_leaks
    from m3ae.files import write_text

    report = find_leaks(folders, **options)
    click.echo(str(report))
    if json is not None:
        write_text(json, report.to_json())
    click.get_current_context().exit(report.exit_status)


@data.command()
@click.argument("folder", type=PATH)
@click.option("--output", type=PATH, help="folder for the pictures  [default: figures in FOLDER]")
@click.option("--split", help="split that the contact sheet shows  [default: the first one that has rows]")
@click.option(
    "--num-rows",
    type=int,
    default=12,
    show_default=True,
    help="rows of the contact sheet, one from each of as many equal stretches of the split",
)
@click.option("--seed", type=SEED, default=0, show_default=True, help="seed of the choice of rows")
def show(folder: Path, **options: Any) -> None:
    """Draw a contact sheet, text lengths, image sizes and counts, and print what was rejected and why.

    \b
    Example:
      m3ae data show data/iu_xray --output pictures
    """  # noqa: D301
    from m3ae.data.pictures import draw_pictures

    for path in draw_pictures(folder, **options):
        click.echo(path)


@click.command("train-tokenizer")
@click.argument("folder", type=PATH)
@click.option("--output", type=PATH, required=True, help="new or empty folder for the tokenizer")
@click.option("--vocab-size", type=int, default=8192, show_default=True, help="tokens at most, the 256 bytes included")
@click.option("--text-column", default="text", show_default=True, help="column of the texts")
def train_tokenizer(folder: Path, output: Path, vocab_size: int, text_column: str) -> None:
    """Train a tokenizer on a prepared FOLDER: byte-level BPE.

    The command reads the training split; the option tokenizer.path of a run names the tokenizer.

    \b
    Example:
      m3ae train-tokenizer data/iu_xray --output data/tokenizer
    """  # noqa: D301
    from m3ae.data.samples import SampleDataset, trunk_columns
    from m3ae.data.tokenizer import train_tokenizer
    from m3ae.files import new_folder
    from m3ae.words import count_words

    with new_folder(output) as unfinished:
        columns = trunk_columns([], text_column)
        columns.advice = "Set --text-column."
        texts = SampleDataset(folder, "train", columns).texts()
        tokenizer = train_tokenizer(texts, vocab_size)
        tokenizer.save_pretrained(unfinished)
    words = sum(map(count_words, texts))
    tokens = sum(len(ids) for ids in tokenizer(texts, add_special_tokens=False, verbose=False)["input_ids"])
    click.echo(f"{output}: {len(tokenizer)} tokens from {len(texts)} texts, {tokens / words:.2f} tokens a word")
