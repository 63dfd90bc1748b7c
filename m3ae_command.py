"""The console command `m3ae`: help and shell completion answer at once.

Python runs a package before any of its modules, and ours imports PyTorch and registers its models with transformers,
which takes seconds. Here the package is known but has not been run; `m3ae.cli` does so before a command works.
"""

import sys
from importlib.util import find_spec, module_from_spec


def main() -> None:
    """Run the command line and exit."""
    spec = find_spec("m3ae")
    assert spec is not None
    sys.modules["m3ae"] = module_from_spec(spec)
    from m3ae.cli import cli

    cli()
