"""The script of ablations: every axis plans runs that build."""

import os
import subprocess
from pathlib import Path

import pytest

from m3ae.tasks.sweep import plan_sweep
from tests.test_configs import ROOT

RUNS = {"losses": 8, "contrast": 3, "layers": 4, "decoders": 6, "ratios": 6, "schedule": 2, "latent": 2, "missing": 12}


@pytest.mark.parametrize("axis", RUNS)
def test_an_axis_plans_its_runs(axis: str, tmp_path: Path) -> None:
    """Stand-ins for the commands note their arguments."""
    stub = tmp_path / "bin" / "m3ae"
    stub.parent.mkdir()
    stub.write_text('#!/bin/bash\nprintf "%s\\n" "$@" >> "$NOTES"; echo >> "$NOTES"\n')
    stub.chmod(0o755)
    (stub.parent / "python").symlink_to("/bin/true")
    (tmp_path / "runs" / axis / "one" / "model").mkdir(parents=True)
    notes = {
        "PATH": f"{stub.parent}:{os.environ['PATH']}",
        "NOTES": str(tmp_path / "notes"),
        "OUT": str(tmp_path / "runs"),
    }
    script = ["bash", str(ROOT / "benchmarks" / "ablations.sh"), axis]
    subprocess.run(
        script, env=os.environ | notes, capture_output=True, text=True, timeout=120, check=axis != "missing"
    )
    counts = []
    for call in (tmp_path / "notes").read_text().strip().split("\n\n"):
        word, config, *arguments = call.split("\n")
        assert word == "sweep"
        options = [(before, value) for before, value in zip([config, *arguments], arguments, strict=False)]
        axes = [value for before, value in options if before == "--over"]
        overrides = [value for before, value in options if "=" in value and before not in ("--over", "--metric")]
        (path,) = (ROOT / "configs").glob(f"*/{config.rpartition('/')[2]}.yaml")
        counts.append(len(plan_sweep(path, axes, overrides)))
    assert counts == ([12] if axis == "missing" else [RUNS[axis], 3])
