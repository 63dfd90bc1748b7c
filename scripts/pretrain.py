"""Pre-train M3AE: `accelerate launch scripts/pretrain.py configs/pretrain/quickstart.yaml [key=value ...]`."""

import argparse
import sys

from m3ae.tasks.pretraining import PreTraining
from m3ae.training.config import dump_config, load_config
from m3ae.training.loop import train


def main() -> int:
    """Run the command line and return its exit status."""
    parser = argparse.ArgumentParser(
        description="Pre-train a masked multimodal autoencoder on a prepared folder of images and texts.",
        epilog="example: accelerate launch scripts/pretrain.py configs/pretrain/quickstart.yaml training.max_steps=9",
    )
    parser.add_argument("config", help="YAML file, e.g. configs/pretrain/quickstart.yaml")
    parser.add_argument("overrides", nargs="*", metavar="key=value", help="an option, e.g. optimizer.lr=3e-4")
    parser.add_argument("--resume", action="store_true", help="continue from the newest checkpoint in output_dir")
    parser.add_argument("--print-config", action="store_true", help="print all options and stop")
    arguments = parser.parse_args()
    try:
        config = load_config(arguments.config, arguments.overrides)
        if arguments.print_config:
            print(dump_config(config), end="")
            return 0
        train(config, PreTraining.from_config(config), resume=arguments.resume)
    except (ValueError, OSError, ArithmeticError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    return 0


if __name__ == "__main__":
    sys.exit(main())
