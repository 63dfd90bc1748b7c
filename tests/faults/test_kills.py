"""A short selection of `tests/faults/kill.py`, whose header says how the long one is run."""

import json
import os
import subprocess
import sys
from pathlib import Path


def test_a_run_that_is_killed_again_and_again_ends_as_if_it_had_not_been(tmp_path):
    command = [sys.executable, "-m", "tests.faults.kill", str(tmp_path), "--run", "toy", "--kills", "5"]
    variables = {"OMP_NUM_THREADS": "1", "OPENBLAS_NUM_THREADS": "1"}
    done = subprocess.run(
        command, cwd=Path(__file__).parents[2], env=os.environ | variables, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
    assert json.loads(done.stdout.splitlines()[-1])["kills"] >= 5
