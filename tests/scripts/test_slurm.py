"""The Slurm script, with stand-ins for what only a cluster has."""

import os
import subprocess
from pathlib import Path

import pytest

SCRIPT = Path(__file__).parents[2] / "scripts" / "slurm.sh"
STAND_INS = {
    # two tasks on each of two nodes; the status is the highest of any task, as srun's is
    "srun": """
        shift
        status=0
        for task in 0 1 2 3; do
          SLURM_PROCID=$task SLURM_LOCALID=$((task % 2)) "$@" || status=$?
        done
        exit $status
    """,
    "scontrol": 'if [ "$1" = show ]; then echo node-3; echo node-4; else echo "$@" >> "$CALLS"; fi',
    "python": """
        echo "$RANK $LOCAL_RANK $WORLD_SIZE $LOCAL_WORLD_SIZE $MASTER_ADDR $MASTER_PORT $*" >> "$CALLS"
        exit $STATUS
    """,
}


@pytest.mark.parametrize(("status", "requeued"), [(0, []), (2, []), (75, ["requeue 12345"])])
def test_a_job_starts_all_processes_and_is_requeued_when_it_can_be_resumed(tmp_path, status, requeued):
    for name, body in STAND_INS.items():
        (tmp_path / name).write_text(f"#!/bin/bash\n{body}\n")
        (tmp_path / name).chmod(0o755)
    calls = tmp_path / "calls"
    job = {"SLURM_JOB_ID": "12345", "SLURM_JOB_NODELIST": "node-[3-4]", "SLURM_NTASKS": "4", "SLURM_NNODES": "2"}
    variables = {"PATH": f"{tmp_path}:{os.environ['PATH']}", "CALLS": str(calls), "STATUS": str(status)}
    command = ["bash", str(SCRIPT), "a config.yaml", "training.seed=1"]
    done = subprocess.run(command, env=os.environ | job | variables, check=False)
    assert done.returncode == status
    arguments = "scripts/train.py a config.yaml training.seed=1 --resume"
    started = [f"{rank} {rank % 2} 4 2 node-3 32345 {arguments}" for rank in range(4)]
    assert calls.read_text().splitlines() == started + requeued
