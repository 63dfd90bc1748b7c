"""The GPU script, in the form that runs on a CPU."""

import json
from pathlib import Path

import gpu
import pytest


@pytest.mark.slow
@pytest.mark.timeout(900)
def test_all_parts_run(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert gpu.main(["--small", "--output", str(tmp_path)]) == 0, capsys.readouterr().err
    figures = json.loads((tmp_path / "gpu.json").read_text())
    assert figures["failed"] == {} and 0 <= figures["engines"]["ddp"] < 1e-6
    names = {"package", "baseline", "latent"}
    assert names <= figures["step"].keys() and figures["loop"]["samples_per_second"] > 0
    assert figures["volumes"]["samples_per_second"] > 0
    assert "| baseline | 2 |" in (tmp_path / "gpu.md").read_text()
