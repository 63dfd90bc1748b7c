"""Compare a converted checkpoint with the published code's numbers; the same as `m3ae check-parity`."""

import sys

from m3ae.cli import cli

if __name__ == "__main__":
    cli(["check-parity", *sys.argv[1:]])
