"""Tables that name volumes."""

from pathlib import Path

import numpy as np
import pytest

from m3ae.data.prepare import prepare
from m3ae.data.prepared import array_shape, load_split
from tests.images.test_volumes import series


def test_volumes_are_resampled_to_a_grid_and_unusable_ones_are_listed(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    series(tmp_path / "ct")
    np.save(tmp_path / "cube.npy", np.pad(np.full((2, 2, 2), 255, np.uint8), 1))
    np.save(tmp_path / "nan.npy", np.full((4, 4, 4), np.nan))
    table = "id,scan,text\na,cube.npy,a small bright cube\nb,ct,a ramp of values\nc,nan.npy,nothing to see here\n"
    (tmp_path / "table.csv").write_text(table)
    options = {"array_column": "scan", "split": "none", "volume_size": 8, "num_workers": 1}
    manifest = prepare("folder", tmp_path / "out", source=tmp_path, **options)
    assert manifest is not None and manifest.dropped == {"array: array cannot be used": 1}
    assert "not used" not in capsys.readouterr().err, "the slices are used"
    rows = load_split(tmp_path / "out", "test")
    assert array_shape(rows.features["array"]) == (1, 8, 8, 8)
    scans = {row["id"]: row["array"] for row in rows}
    assert scans["c"] is None
    inside = np.array(scans["a"][0]) > 127
    assert inside[2:6, 2:6, 2:6].sum() == inside.sum() == 56, "twice the side; trilinear values round the corners"
    ramp = np.array(scans["b"][0])
    assert ramp.max() > 250 and (np.diff(ramp[:, 4, 4]) >= 0).all(), "from foot to head"


def test_arrays_of_four_dimensions_are_refused(tmp_path: Path) -> None:
    np.save(tmp_path / "time.npy", np.zeros((2, 4, 4, 4)))
    (tmp_path / "table.csv").write_text("scan,text\ntime.npy,a series over time\n")
    with pytest.raises(ValueError, match=r"arrays of column array have the shape \(2, 4, 4, 4\), .* \(D, H, W\)"):
        prepare("folder", tmp_path / "out", source=tmp_path, split="none", num_workers=1)
