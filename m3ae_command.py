"""The command `m3ae`, outside the package: where this module has been imported, `m3ae` imports no model by itself."""

from collections.abc import Sequence


def main(arguments: Sequence[str] | None = None) -> None:
    """Run the command line and exit.

    Args:
        arguments: The words behind `m3ae`; by default those that the process was started with.
    """
    from m3ae.cli import cli

    cli(arguments)
