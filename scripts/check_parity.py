"""Compare a converted checkpoint with the published code's numbers; the same as `m3ae check-parity`."""

import sys

from m3ae_command import main

if __name__ == "__main__":
    main(["check-parity", *sys.argv[1:]])
