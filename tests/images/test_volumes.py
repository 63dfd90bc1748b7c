"""Volumes from files, and on grids."""

from pathlib import Path
from typing import Any

import nibabel
import numpy as np
import pytest
from pydicom.dataset import FileDataset, FileMetaDataset
from pydicom.uid import CTImageStorage, ExplicitVRLittleEndian, generate_uid

from m3ae.images.volumes import Volume, load_volume

RAMP = np.arange(4 * 5 * 6, dtype=np.int16).reshape(4, 5, 6)  # to head, back, left
AXIAL = [1.0, 0, 0, 0, 1, 0]
SERIES = generate_uid()


def write_slice(path: Path, pixels: np.ndarray, position: list[float], **changes: Any) -> None:
    meta = FileMetaDataset()
    meta.TransferSyntaxUID, meta.MediaStorageSOPClassUID = ExplicitVRLittleEndian, CTImageStorage
    meta.MediaStorageSOPInstanceUID = generate_uid()
    dataset = FileDataset(path, {}, file_meta=meta, preamble=b"\0" * 128)
    values = {
        "SOPClassUID": CTImageStorage,
        "SOPInstanceUID": meta.MediaStorageSOPInstanceUID,
        "SeriesInstanceUID": SERIES,
        "Rows": pixels.shape[0],
        "Columns": pixels.shape[1],
        "SamplesPerPixel": 1,
        "PhotometricInterpretation": "MONOCHROME2",
        "BitsAllocated": 16,
        "BitsStored": 16,
        "HighBit": 15,
        "PixelRepresentation": 1,
        "ImageOrientationPatient": AXIAL,
        "ImagePositionPatient": position,
        "PixelSpacing": [2.0, 3.0],
        "RescaleSlope": 2,
        "RescaleIntercept": -10,
        **changes,
    }
    for keyword, value in values.items():
        if value is not None:
            setattr(dataset, keyword, value)
    dataset.PixelData = pixels.astype(np.int16).tobytes()
    dataset.save_as(path)


def series(folder: Path, **changes: Any) -> Path:
    """Write the ramp from head to foot by file names, 5 mm apart; `changes` are of the third slice."""
    folder.mkdir()
    for number, pixels in enumerate(RAMP[::-1]):
        position = [0.0, 0.0, -5.0 * number]
        write_slice(folder / f"{number}.dcm", pixels, **{"position": position, **(changes if number == 2 else {})})
    return folder


def test_a_series_is_stacked_along_its_normal_and_rescaled(tmp_path: Path) -> None:
    volume = load_volume(series(tmp_path / "scan"))
    np.testing.assert_array_equal(volume.values, 2.0 * RAMP - 10)
    assert volume.spacing == (5, 2, 3)


def test_padding_is_the_lowest_value(tmp_path: Path) -> None:
    folder = tmp_path / "scan"
    folder.mkdir()
    for number in range(2):
        write_slice(folder / f"{number}.dcm", np.array([[-2000, 7], [9, 11]]), [0, 0, number], PixelPaddingValue=-2000)
    assert load_volume(folder).values[0].tolist() == [[4, 4], [8, 12]]


@pytest.mark.parametrize("order", [(0, 1, 2), (2, 0, 1), (1, 2, 0)])
def test_nifti_is_turned_to_head_back_left(order: tuple[int, int, int], tmp_path: Path) -> None:
    # RAMP's axes lead to head, back, left: from right, anterior, superior they are +z, -y, -x.
    steps = np.array([[0, 0, 5.0], [0, -2.0, 0], [-3.0, 0, 0]])
    affine = np.eye(4)
    affine[:3, :3] = steps[list(order)].T
    nibabel.save(nibabel.Nifti1Image(RAMP.transpose(order), affine), tmp_path / "scan.nii.gz")
    volume = load_volume(tmp_path / "scan.nii.gz")
    np.testing.assert_array_equal(volume.values, RAMP)
    assert volume.spacing == (5, 2, 3)


def test_a_grid_of_the_same_voxels_changes_nothing() -> None:
    grey = np.random.default_rng(0).integers(0, 256, (4, 5, 6), dtype=np.uint8)
    np.testing.assert_array_equal(Volume(grey, (1, 1, 1)).on_grid((4, 5, 6), 1.0), grey)


def test_the_grid_keeps_sizes_in_millimetres() -> None:
    """A cube of 8 mm, of slices of 4 mm and pixels of 1 mm, is a cube of 8 voxels of 1 mm or 4 of 2 mm."""
    cube = np.zeros((4, 16, 16), np.uint8)
    cube[1:3, 4:12, 4:12] = 255
    volume = Volume(cube, (4, 1, 1))
    for shape, spacing, side in (((16, 16, 16), None, 8), ((16, 16, 16), 1.0, 8), ((8, 8, 8), 2.0, 4)):
        inside = volume.on_grid(shape, spacing) > 127
        assert [np.ptp(positions) + 1 for positions in np.nonzero(inside)] == [side] * 3
        assert inside.sum() == side**3
    assert not volume.on_grid((32, 16, 16), 1.0)[:8].any(), "what lies outside is black"


def test_values_are_stretched_to_eight_bits() -> None:
    hounsfield = np.array([[[-1000, 0, 1000]]], np.float32)
    assert Volume(hounsfield, (1, 1, 1)).on_grid((1, 1, 3), 1.0).ravel().tolist() == [0, 128, 255]


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"ImageOrientationPatient": [1.0, 0, 0, 0, 0, -1]}, "scan: .*slices of mixed orientation"),
        ({"SeriesInstanceUID": generate_uid()}, "2 series and 1 sizes of slices, expected one"),
        ({"PixelSpacing": [2.0, 2.0]}, "1 series and 2 sizes"),
        ({"position": [0.0, 0.0, -12.0]}, "slices 3 to 7 mm apart, expected even distances"),
        ({"position": [0.0, 0.0, -5.0]}, "slices 0 to 10 mm apart"),
        ({"ImageOrientationPatient": None}, "a slice without ImageOrientationPatient"),
    ],
)
def test_slices_that_make_no_volume(changes: dict[str, Any], message: str, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=message):
        load_volume(series(tmp_path / "scan", **changes))


def test_files_that_are_no_volume(tmp_path: Path) -> None:
    (tmp_path / "empty").mkdir()
    np.save(tmp_path / "time.npy", np.zeros((2, 3, 3, 3)))
    np.save(tmp_path / "nan.npy", np.full((2, 2, 2), np.nan))
    np.save(tmp_path / "objects.npy", np.array([{}]), allow_pickle=True)
    nibabel.save(nibabel.Nifti1Image(np.zeros((3, 3, 3, 2)), np.eye(4)), tmp_path / "time.nii")
    (tmp_path / "broken.nii.gz").write_bytes(b"no gzip")
    (tmp_path / "scan.txt").write_text("?")
    for name, message in {
        "empty": "empty: no volume could be read .0 DICOM slices, expected a series of at least two",
        "time.npy": r"time.npy: got float64 of shape \(2, 3, 3, 3\), .* save each time or channel",
        "time.nii": r"time.nii: got float64 of shape \(3, 3, 3, 2\), expected numbers \(D, H, W\); save each time",
        "nan.npy": "nan.npy: some voxels are NaN or infinite",
        "objects.npy": "objects.npy: no volume could be read",
        "broken.nii.gz": "broken.nii.gz: no volume could be read",
        "missing.nii.gz": "missing.nii.gz: no volume could be read",
        "scan.txt": "scan.txt: no volume could be read .got this name, expected .npy, .nii, .nii.gz or a folder",
    }.items():
        with pytest.raises(ValueError, match=message):
            load_volume(tmp_path / name)
