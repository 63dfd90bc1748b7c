"""Convert a released M3AE checkpoint into our format, or back; the same as `m3ae convert`."""

import sys

from m3ae_command import main

if __name__ == "__main__":
    main(["convert", *sys.argv[1:]])
