"""Convert a released M3AE checkpoint into a hub-format folder, or a saved model back into the released format.

Example:
    python scripts/convert_checkpoint.py --checkpoint m3ae.ckpt --output models/m3ae --tokenizer roberta-base
    python scripts/convert_checkpoint.py --checkpoint models/m3ae --output m3ae.ckpt --reverse
"""

import argparse
import sys
from pathlib import Path

from m3ae.models.conversion import convert, release
from m3ae.models.released_weights import TASKS


def main() -> int:
    """Convert what the command line names and print a report; return the exit status."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--checkpoint", type=Path, required=True, metavar="FILE", help="released file, e.g. m3ae.ckpt")
    parser.add_argument("--output", type=Path, required=True, metavar="DIR", help="folder to write")
    parser.add_argument("--tokenizer", metavar="DIR", help="tokenizer to put beside the model, e.g. roberta-base")
    parser.add_argument("--answers", type=Path, metavar="FILE", help="names of the answers or classes, in order")
    parser.add_argument("--task", choices=TASKS, help="what to convert a file with several heads for")
    parser.add_argument("--reverse", action="store_true", help="--checkpoint is a saved folder, --output a file")
    arguments = parser.parse_args()
    options = {name: getattr(arguments, name) for name in ("task", "tokenizer", "answers")}
    try:
        if arguments.reverse:
            unused = [f"--{name}" for name, value in options.items() if value is not None]
            if unused:
                raise ValueError(f"--reverse writes the whole model as it is and takes no {', '.join(unused)}.")
            report = release(arguments.checkpoint, arguments.output)
        else:
            report = convert(arguments.checkpoint, arguments.output, **options)
    except (OSError, ValueError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    print(report)
    return 0


if __name__ == "__main__":
    sys.exit(main())
