"""The command about the machine: what a bug report needs."""

from __future__ import annotations

import re

import click

from m3ae.commands.options import AS_JSON, print_json


@click.command()
@AS_JSON
def env(as_json: bool) -> None:
    """Print what a bug report needs: versions, processor, devices and precision.

    The command reads no data and prints no environment variable.

    \b
    Examples:
      m3ae env
      m3ae env --json | jq .packages.torch
    """  # noqa: D301
    import torch

    from m3ae.precision import choose_precision
    from m3ae.training.run_folder import environment

    gpus = [torch.cuda.get_device_name(index) for index in range(torch.cuda.device_count())]
    device = torch.device("cuda" if gpus else "cpu")
    units = [
        name for name, held in torch.cpu.get_capabilities().items() if held and re.match("avx|amx|sve|neon", name)
    ]
    machine = {
        "processor": units,
        "gpus": gpus,
        "cuda": torch.version.cuda,
        "precision": str(choose_precision(device)),
    }
    facts = environment() | machine
    if as_json:
        print_json(facts)
        return
    lines = [f"m3ae {facts['packages'].pop('m3ae')}, python {facts['python']}, {facts['system']}"]
    lines += [f"{name} {version or 'not installed'}" for name, version in facts["packages"].items()]
    lines.append(f"processor: {facts['cpu_count']} cores, {', '.join(units) or 'no vector units known'}")
    lines.append(f"GPUs: {', '.join(gpus) or 'none'}; CUDA of torch: {torch.version.cuda or 'none'}")
    lines.append(str(facts["precision"]))
    lines.append(f"git revision: {facts['git_revision'] or 'none'}")
    click.echo("\n".join(lines))
