"""Compare a released M3AE checkpoint, converted, with numbers that the published code computed from it.

Example:
    python scripts/check_parity.py --checkpoint m3ae.ckpt --expected expected.safetensors
"""

import argparse
import sys
from pathlib import Path

from m3ae.models.parity import compare, table


def main() -> int:
    """Print the largest difference of every stored tensor; return 1 if one exceeds what is allowed."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--checkpoint", type=Path, required=True, metavar="FILE", help="released file, e.g. m3ae.ckpt")
    parser.add_argument("--expected", type=Path, required=True, metavar="FILE", help="inputs and numbers, safetensors")
    arguments = parser.parse_args()
    try:
        differences = compare(arguments.checkpoint, arguments.expected)
    except (OSError, ValueError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    print(table(differences))
    failed = sum(not difference.ok for difference in differences)
    print(f"{len(differences) - failed} of {len(differences)} tensors within tolerance")
    return 1 if failed else 0


if __name__ == "__main__":
    sys.exit(main())
