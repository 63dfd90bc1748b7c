"""The benchmark of slices: its geometry, its scenes, and that it runs."""

import json
import sys
from pathlib import Path

import numpy as np
import pytest
import slices
import torch


def test_planes_are_turned_and_shifted_along_their_normal() -> None:
    flat, shifted, turned = slices.planes(torch.tensor([[0.0, 0, 0], [0.0, 0, 1], [1.0, 0, 1]]), 5)
    torch.testing.assert_close(flat[2], torch.stack([torch.linspace(-1, 1, 5), torch.zeros(5), torch.zeros(5)], -1))
    torch.testing.assert_close(shifted - flat, torch.tensor([0, 0, 0.6]).expand(5, 5, 3))
    torch.testing.assert_close(torch.pdist(turned.flatten(0, 1)), torch.pdist(flat.flatten(0, 1)))
    normal = torch.linalg.cross(turned[0, 1] - turned[0, 0], turned[1, 0] - turned[0, 0])
    normal = normal / normal.norm()
    assert float(normal[2]) == pytest.approx(np.cos(np.pi / 6)) and float(turned[2, 2] @ normal) == pytest.approx(0.6)


def test_a_brain_is_its_volume_where_nothing_is_drawn() -> None:
    volume = torch.rand(1, 1, 6, 6, 6)
    constant = slices.brain(torch.full_like(volume, 0.5), torch.zeros(2, 3, 3), torch.Generator().manual_seed(0))
    assert constant.shape == (2, 3) and constant.unique().numel() == 1 and 0.4 < float(constant[0, 0]) < 0.6
    points = slices.planes(torch.zeros(1, 3), 4)
    one, same, other = (slices.brain(volume, points, torch.Generator().manual_seed(seed)) for seed in (1, 1, 2))
    assert torch.equal(one, same) and not torch.allclose(one, other)


def test_a_run_is_measured_again_with_the_same_figures(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    file = tmp_path / "figures.json"
    counts = ["--train", "4", "--test", "3", "--side", "12", "--steps", "1", "--batch-size", "2", "--size", "4"]
    monkeypatch.setattr(
        sys, "argv", ["slices", "ellipsoids", "--output", str(tmp_path / "run"), "--json", str(file), *counts]
    )
    made = []
    for _ in range(2):
        slices.main()
        made.append(json.loads(file.read_text(encoding="utf-8"))["rows"])
    assert made[0] == made[1] and (tmp_path / "run" / "slices.png").is_file()
    assert {row["given"] for row in made[0] if row["slices"] == "model"} == {0, *slices.COUNTS}
