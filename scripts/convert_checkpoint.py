"""Convert a released M3AE checkpoint into our format, or back; the same as `m3ae convert`."""

import sys

from m3ae.cli import cli

if __name__ == "__main__":
    cli(["convert", *sys.argv[1:]])
