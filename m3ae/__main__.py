"""`python -m m3ae` is the command `m3ae`: `accelerate launch -m m3ae train quickstart`."""

from m3ae.cli import cli

cli()
