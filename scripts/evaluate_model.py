"""Measure a model: `accelerate launch scripts/evaluate_model.py CONFIG model=FOLDER`; the same as `m3ae evaluate`.

A file called `evaluate.py` would hide the package of that name from every script beside it.
"""

import sys

from m3ae_command import main

if __name__ == "__main__":
    main(["evaluate", *sys.argv[1:]])
