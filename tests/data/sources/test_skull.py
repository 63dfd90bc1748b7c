"""Phantoms of skulls: their volumes, their planes, their rows."""

from pathlib import Path

import numpy as np
import pytest

from m3ae.data.prepare import prepare
from m3ae.data.prepared import array_shape, load_split
from m3ae.data.samples import Columns, SampleDataset, Visit
from m3ae.data.sources.skull import FIELD, PLANES, Skull, _rotation, render_plane, render_volume, rows
from m3ae.models.configuration import M3AEConfig
from m3ae.models.modalities import KINDS, configure

SPHERE = Skull(
    radii=np.full(3, 30, np.float32),
    square=np.float32(0),
    taper=np.float32(0),
    thickness=4.0,
    rotation=_rotation(np.zeros(3)),
    shift=np.zeros(3, np.float32),
    base=-20.0,
    sutures=(-10.0, 20.0),
    gap=2.0,
    fontanelle=5.0,
)


def within(*point: float) -> float:
    distance, _ = SPHERE.inside(*(np.array([value], np.float32) for value in point))
    return round(float(distance[0]), 3)


def test_bone_is_a_layer_with_sutures_a_fontanelle_and_no_base() -> None:
    assert within(30, 0, 0) == pytest.approx(2) and within(31.5, 0, 0) == pytest.approx(0.5)
    assert within(33, 0, 0) == pytest.approx(-1) and within(0, 0, 0) < -15
    assert within(0, 0, 30) == pytest.approx(-1), "half of the gap from the edge of the sagittal suture"
    assert within(3, 0, np.sqrt(891)) == pytest.approx(2)
    assert within(0, -10, np.sqrt(800)) == pytest.approx(-5), "the fontanelle"
    assert within(np.sqrt(800), -10, 1) < 0 < within(np.sqrt(800), -10, -3), "the coronal suture ends"
    assert within(0, np.sqrt(275), -25) == pytest.approx(-5), "below the base"


def test_rotations_keep_lengths_and_turn_one_way() -> None:
    turn = _rotation(np.array([0.1, -0.2, 0.3]))
    np.testing.assert_allclose(turn @ turn.T, np.eye(3), atol=1e-6)
    assert np.linalg.det(turn) == pytest.approx(1)
    np.testing.assert_allclose(_rotation(np.array([0, 0, np.pi / 2])) @ [1, 0, 0], [0, 1, 0], atol=1e-6)


def test_a_volume_depends_on_seed_and_index_and_hardly_on_the_grid() -> None:
    volume = render_volume(0, 3, 24)
    assert volume.shape == (1, 24, 24, 24) and volume.dtype == np.uint8 and set(np.unique(volume)) == {0, 255}
    np.testing.assert_array_equal(volume, render_volume(0, 3, 24))
    assert (volume != render_volume(0, 4, 24)).any() and (volume != render_volume(1, 3, 24)).any()
    share, fine = (np.mean(render_volume(0, 3, size)) / 255 for size in (32, 64))
    assert share == pytest.approx(fine, rel=0.1)
    assert not volume[:, [0, -1]].any() and not volume[..., [0, -1]].any(), "a skull lies within the grid"


@pytest.mark.parametrize("plane", PLANES)
def test_planes_are_bright_where_they_cut_bone(plane: str) -> None:
    inside, outside = [], []
    for index in range(6):
        picture = np.asarray(render_plane(0, index, plane, 48), np.float32)
        volume = render_volume(0, index, 48)[0] > 0
        cut = {"axial": volume[24].T, "coronal": volume[::-1, 24], "sagittal": volume[::-1, :, 24]}[plane]
        inside.append(picture[cut].mean())
        outside.append(picture[~cut].mean())
    assert np.mean(inside) > 1.5 * np.mean(outside)


def test_planes_differ_in_noise_and_jitter_alone_and_wrong_names_are_refused() -> None:
    assert render_plane(0, 0, "axial", 32).tobytes() == render_plane(0, 0, "axial", 32).tobytes()
    assert len({render_plane(0, 0, plane, 32).tobytes() for plane in PLANES}) == 3
    with pytest.raises(ValueError, match="unknown plane 'lateral': expected one of axial, coronal, sagittal"):
        render_plane(0, 0, "lateral", 32)
    with pytest.raises(ValueError, match="size is 8, expected at least 16"):
        next(rows(size=8))


def test_the_prepared_set_holds_bytes_that_the_kind_reads(tmp_path: Path) -> None:
    manifest = prepare("skull", tmp_path, count=20, size=16, image_size=16, num_workers=1)
    assert manifest is not None and {name: info.rows for name, info in manifest.splits.items()} == {
        "train": 16,
        "validation": 2,
        "test": 2,
    }
    table = load_split(tmp_path, "test")
    assert array_shape(table.features["skull"]) == (1, 16, 16, 16)
    options = configure("skull", {"kind": "volume", "shape": [1, 16, 16, 16]})
    columns = Columns({"skull": KINDS["volume"]("skull", options, M3AEConfig.named("tiny"))})
    dataset = SampleDataset(tmp_path, "test", columns)
    np.testing.assert_array_equal(dataset[Visit(1)].cells["skull"], render_volume(0, 19, 16) / np.float32(255))
    assert dataset._arrays["skull"][0].dtype == np.uint8, "a quarter of the memory of float32"
    assert FIELD / 16 == 6
