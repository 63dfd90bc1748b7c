"""Fine-tune a model: `accelerate launch scripts/finetune.py CONFIG [KEY=VALUE]...`; the same as `m3ae finetune`."""

import sys

from m3ae_command import main

if __name__ == "__main__":
    main(["finetune", *sys.argv[1:]])
