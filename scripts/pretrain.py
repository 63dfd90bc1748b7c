"""Pre-train M3AE: `accelerate launch scripts/pretrain.py CONFIG [KEY=VALUE]...`; the same as `m3ae pretrain`."""

import sys

from m3ae.cli import cli

if __name__ == "__main__":
    cli(["pretrain", *sys.argv[1:]])
