"""Prepare a data set once: verified images and clean texts as Parquet shards; the same as `m3ae prepare`."""

import sys

from m3ae.cli import cli

if __name__ == "__main__":
    cli(["prepare", *sys.argv[1:]])
