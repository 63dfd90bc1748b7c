import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from m3ae.metrics import gather, gather_rows
from tests.metrics.run_gather import measure

SCRIPT = Path(__file__).with_name("run_gather.py")


def test_two_processes_measure_what_one_does(tmp_path):
    command = ["-m", "torch.distributed.run", "--nproc_per_node=2", "--standalone", str(SCRIPT), str(tmp_path)]
    variables = {"ACCELERATE_USE_CPU": "true", "OMP_NUM_THREADS": "1", "PYTHONPATH": str(SCRIPT.parents[2])}
    done = subprocess.run(
        [sys.executable, *command],
        env=os.environ | variables,
        capture_output=True,
        text=True,
        timeout=200,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    expected = measure(tmp_path)
    assert expected["answers"]["questions"] == 7
    first, second = (json.loads((tmp_path / f"{process}.json").read_text()) for process in range(2))
    assert first == expected
    assert second == expected | {"exchanged": None}


def test_the_order_of_the_samples_is_restored(monkeypatch):
    assert gather_rows(["a", "b"]) == ["a", "b"]
    assert gather_rows([]) == []
    monkeypatch.setattr(gather, "gather_object", lambda own: [[0, 3, 6], [1, 4], [2, 5]])
    assert gather_rows([]) == [0, 1, 2, 3, 4, 5, 6]


def test_other_shares_are_refused(monkeypatch):
    monkeypatch.setattr(gather, "gather_object", lambda own: [[0, 1, 2], [3]])
    with pytest.raises(ValueError, match=r"hold \[3, 1\] rows, expected \[2, 2\]"):
        gather_rows([])
