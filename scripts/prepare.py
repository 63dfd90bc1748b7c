"""Prepare a data set once: verified images and clean texts as Parquet shards; the same as `m3ae prepare`."""

import sys

from m3ae_command import main

if __name__ == "__main__":
    main(["prepare", *sys.argv[1:]])
