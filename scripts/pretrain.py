"""Pre-train M3AE: `accelerate launch scripts/pretrain.py CONFIG [KEY=VALUE]...`; the same as `m3ae pretrain`."""

import sys

from m3ae_command import main

if __name__ == "__main__":
    main(["pretrain", *sys.argv[1:]])
