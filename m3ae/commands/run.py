"""`m3ae run`: what the folder of a run says about it."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import click

from m3ae.commands.shared import AS_JSON, PATH, print_json


@click.group()
def run() -> None:
    """Look at runs."""


@run.command()
@click.argument("folder", type=PATH)
@AS_JSON
def show(folder: Path, as_json: bool) -> None:
    """Print what is needed to judge a run, and to repeat it.

    FOLDER is the output_dir of a run, finished or not. Printed are its state and last metrics; each start with its
    command line, device, seeds and versions; the prepared data, and whether they are still the same; all settings.

    \b
    Examples:
      m3ae run show runs/iu_xray
      m3ae run show runs/iu_xray --json | jq .starts[-1].packages.torch
    """  # noqa: D301
    from m3ae.training.run_folder import RunFolder

    found = RunFolder(folder).describe()
    if as_json:
        print_json(found)
    else:
        click.echo(_layout(folder, found))


def _layout(folder: Path, found: dict[str, Any]) -> str:
    import yaml

    config, starts = found["config"], found["starts"]
    state = "finished" if found["finished"] else "not finished"
    steps = f"step {found['step']} of {config['training']['max_steps']}"
    lines = [f"{folder}: {config['task']}, {state}, {steps}"]
    lines.append(f"checkpoints: {', '.join(found['checkpoints']) or 'none'}")
    lines += _section("last metrics", [f"{name}: {_number(value)}" for name, value in found["metrics"].items()])
    for number, start in enumerate(starts):
        packages = dict(start["packages"].items() - (starts[number - 1]["packages"].items() if number else set()))
        versions = ", ".join(f"{name} {packages[name]}" for name in sorted(packages)) or "as before"
        lines += _section(
            f"start at step {start['step']}, {start['time']}",
            [
                f"command: {start['command']}",
                f"{len(start['seeds'])} × {start['device']}, {start['threads']} threads each; {start['system']}",
                f"seeds: {', '.join(map(str, start['seeds']))}",
                f"python {start['python']}; packages: {versions}",
                f"git revision: {start['git_revision'] or 'none'}",
            ],
        )
    data = starts[-1].get("data", {}) if starts else {}
    lines += _section("data", [f"{path}: manifest {digest} ({_now(path, digest)})" for path, digest in data.items()])
    settings = yaml.safe_dump(config, sort_keys=False, allow_unicode=True)
    return "\n".join([*lines, *_section("settings", settings.splitlines())])


def _section(title: str, lines: list[str]) -> list[str]:
    return ["", title, *(f"  {line}" for line in lines)] if lines else []


def _number(value: float | None) -> str:
    return "not finite" if value is None else f"{value:.6g}"


def _now(path: str, digest: str) -> str:
    from m3ae.data.prepared import MANIFEST
    from m3ae.files import file_sha256

    manifest = Path(path) / MANIFEST
    if not manifest.is_file():
        return "not there now"
    return "the same now" if file_sha256(manifest) == digest else "another now"
