"""Train a model: `accelerate launch scripts/train.py CONFIG [KEY=VALUE]...`; the same as `m3ae train`."""

import sys

from m3ae_command import main

if __name__ == "__main__":
    main(["train", *sys.argv[1:]])
