"""Prepare a data set once: verified images and clean texts as Parquet shards, nothing lost silently.

Example:
    python scripts/prepare.py iu_xray --source ~/iu_xray --output data/iu_xray
    python scripts/prepare.py phantom --output data/phantom --num-studies 2000
"""

import argparse
import sys
from pathlib import Path

from m3ae.data.prepare import SOURCES, prepare


def main() -> int:
    """Prepare the source named on the command line; return the exit status."""
    parser = argparse.ArgumentParser(
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
        argument_default=argparse.SUPPRESS,  # what is not given is left to the defaults of `prepare` and the source
    )
    parser.add_argument("name", choices=SOURCES, metavar="NAME", help=f"source: {', '.join(SOURCES)}")
    parser.add_argument("--source", type=Path, metavar="DIR", help="folder of the original files")
    parser.add_argument("--output", type=Path, metavar="DIR", required=True, help="folder to write")
    parser.add_argument("--shorter-side", type=int, help="shrink larger images to this many pixels (384)")
    parser.add_argument("--min-words", type=int, help="leave out shorter texts (3)")
    parser.add_argument("--num-shards", type=int, help="shards per split (one per 4,096 rows)")
    parser.add_argument("--num-workers", type=int, help="processes (one per core)")
    parser.add_argument("--overwrite", action="store_true", help="replace what was prepared in the folder before")
    phantom = parser.add_argument_group("phantom")
    phantom.add_argument("--num-studies", type=int, help="studies to generate (2000)")
    phantom.add_argument("--seed", type=int, help="of the generator (0)")
    phantom.add_argument("--image-size", type=int, help="side of the images in pixels (128)")
    try:
        manifest = prepare(**vars(parser.parse_args()))
    except (OSError, ValueError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    if not any(info.rows for info in manifest.splits.values()):
        print("error: no row could be used, see rejected.jsonl in the output folder", file=sys.stderr)
        return 2
    return 0


if __name__ == "__main__":
    sys.exit(main())
