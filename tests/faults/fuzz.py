"""Damaged and strange inputs for everything that reads files: only documented errors may come out.

    python -m tests.faults.fuzz config roco --cases 10000 --seed 0

A target is `config`, `checkpoint`, `released` (checkpoints of the published code), `images`, `manifest`, `prepared`,
`stream`, `processor`, `model`, `index`, `run`, `torchscript`, `fingerprints`, `functions`, `commands`, or a source of
`m3ae prepare`. A line of JSON says how many cases there were and how they
ended. A case that fails is made as small as can be and printed; the code is mended, and what it showed goes to
`tests/faults/test_fuzz.py`.
"""

import argparse
import json
import os
import sys
import tempfile
import time
import traceback
from collections import Counter
from pathlib import Path
from typing import Any

import hypothesis
from hypothesis import HealthCheck, Phase
from hypothesis.configuration import set_hypothesis_home_dir

from tests.faults.fuzz_commands import commands
from tests.faults.fuzz_sources import SOURCES
from tests.faults.fuzz_targets import TARGETS
from tests.faults.fuzz_uses import USES

ALL = {**TARGETS, **USES, **SOURCES, "commands": commands}


def fuzz(name: str, folder: Path, cases: int, seed: int = 0) -> Counter[str]:
    """Check a target; return how often its cases ended in which way.

    Raises:
        Exception: What an input made the code raise, or the check of what it returned.
    """
    set_hypothesis_home_dir(folder / "hypothesis")
    target = ALL[name](folder)
    endings = Counter[str]()

    @hypothesis.seed(seed)
    @hypothesis.settings(
        max_examples=cases,
        deadline=None,
        database=None,
        phases=[Phase.generate, Phase.shrink],
        suppress_health_check=list(HealthCheck),
        verbosity=hypothesis.Verbosity.quiet,
    )
    @hypothesis.given(target.cases)
    def check(case: Any) -> None:
        try:
            endings[target.check(case)] += 1
        except Exception as error:
            if not error.args or not str(error.args[-1]).startswith("case "):
                error.args = (*error.args, f"case {case!r:.3000}")
            raise

    check()
    return endings


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("targets", choices=ALL, nargs="+")
    parser.add_argument("--cases", type=int, default=1000)
    parser.add_argument("--seed", type=int, default=0)
    options = parser.parse_args()
    os.environ["ACCELERATE_USE_CPU"] = "true"
    failed = False
    for name in options.targets:
        begun = time.process_time()
        with tempfile.TemporaryDirectory() as folder:
            try:
                endings = fuzz(name, Path(folder), options.cases, options.seed)
            except Exception:
                failed = True
                traceback.print_exc()
                continue
        seconds = round(time.process_time() - begun, 1)
        found = {"target": name, "seed": options.seed, "seconds": seconds, "cases": endings.total(), **endings}
        print(json.dumps(found), flush=True)
    sys.exit(failed)


if __name__ == "__main__":
    main()
