"""Fine-tune a model: `accelerate launch scripts/finetune.py CONFIG [KEY=VALUE]...`; the same as `m3ae finetune`."""

import sys

from m3ae.cli import cli

if __name__ == "__main__":
    cli(["finetune", *sys.argv[1:]])
