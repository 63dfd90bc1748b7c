import os
import subprocess
import sys
from pathlib import Path


def test_processes_stop_resume_and_hang_together(tmp_path):
    variables = {"OMP_NUM_THREADS": "1", "OPENBLAS_NUM_THREADS": "1"}
    done = subprocess.run(
        [sys.executable, "-m", "tests.faults.processes", str(tmp_path)],
        cwd=Path(__file__).parents[2],
        env=os.environ | variables,
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    assert done.stdout.split() == ["stopped_and_resumed", "other_numbers_of_processes", "hung", "killed"]
