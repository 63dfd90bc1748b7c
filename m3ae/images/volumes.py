"""Volumes from files: NumPy, NIfTI, and series of DICOM slices, resampled to a grid whose voxels are cubes.

Shapes: D slices, H rows and W columns of voxels. Spacings are in millimetres, in the order of the axes. Where a file
says how the patient lies, slices go from foot to head, rows from front to back, columns from the patient's right to
the left, as in an axial series of DICOM.
"""

from __future__ import annotations

import math
import warnings
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from m3ae.images.pixels import stretch, value_range

SUFFIXES = (".npy", ".nii", ".nii.gz")
TOLERANCE = 1e-3  # of direction cosines and, in millimetres, of positions within a slice
UNEVEN = 0.1  # of the distance of two slices, beyond which one is missing or doubled


class Volume(NamedTuple):
    """A volume as a file has it.

    Attributes:
        values: (D, H, W) finite numbers.
        spacing: Distance of neighbouring voxels along each axis.
    """

    values: NDArray[Any]
    spacing: tuple[float, float, float]

    def on_grid(self, shape: Sequence[int], spacing: float | None = None) -> NDArray[np.uint8]:
        """Resample to a grid of cubes around the same centre, in 8 bits; what lies outside is black.

        Values between voxels are trilinear; where the grid is coarser, means of the file's voxels are. Black and white
        are the ends of `m3ae.images.pixels.value_range`; 8-bit values stay as they are.

        Args:
            shape: (D, H, W) of the grid.
            spacing: Millimetres between its voxels; such that the whole volume just fits if None.

        Returns:
            (D, H, W) grey values.
        """
        import torch  # slow to import, and needed here alone
        from torch.nn import functional as F

        extent = [side * width for side, width in zip(self.values.shape, self.spacing, strict=True)]
        step = spacing or max(length / side for length, side in zip(extent, shape, strict=True))
        bounds = (0, 255) if self.values.dtype == np.uint8 else value_range(self.values)
        grey = torch.from_numpy(stretch(self.values, *bounds)).float()[None, None]
        sizes = zip(self.spacing, self.values.shape, strict=True)
        window = [min(side, max(1, round(step / width))) for width, side in sizes]  # against aliasing
        grey = F.avg_pool3d(grey, window, ceil_mode=True, count_include_pad=False)
        axes, units = [], []
        for side, length, count, size, width in zip(shape, extent, grey.shape[2:], window, self.spacing, strict=True):
            axes.append((torch.arange(side) + 0.5 - side / 2) * step + length / 2)  # millimetres from the first face
            units.append(2 / (count * size * width))
        positions = torch.stack(torch.meshgrid(*axes, indexing="ij"), -1)  # (D, H, W, 3)
        inside = ((positions >= 0) & (positions <= torch.tensor(extent))).all(-1)
        grid = (positions * torch.tensor(units) - 1).flip(-1).float()[None]
        values = F.grid_sample(grey, grid, padding_mode="border", align_corners=False)[0, 0]
        resampled: NDArray[np.uint8] = (values * inside).round().to(torch.uint8).numpy()
        return resampled


class VolumeFile(NamedTuple):
    """A volume to be read when a set is prepared: a file or folder, and the grid (see `Volume.on_grid`)."""

    path: Path
    side: int
    spacing: float | None = None

    def __call__(self) -> NDArray[np.uint8]:
        """Return the voxels (1, S, S, S)."""
        return load_volume(self.path).on_grid([self.side] * 3, self.spacing)[None]


def stored_shape(path: Path) -> tuple[int, ...] | None:
    """Return the shape of an array in a file, by its header: of any volume (0, 0, 0), of an unreadable file None."""
    if path.is_dir() or path.name.lower().endswith((".nii", ".nii.gz")):
        return 0, 0, 0
    try:
        shape: tuple[int, ...] = np.load(path, mmap_mode="r", allow_pickle=False).shape
    except (OSError, ValueError, EOFError):
        return None
    return (0, 0, 0) if len(shape) == 3 else shape


def load_volume(path: Path) -> Volume:
    """Read a `.npy` file (D, H, W), whose voxels are cubes, a NIfTI file, or a folder with a DICOM series.

    Raises:
        ImportError: The file needs nibabel or pydicom, which is not installed.
        ValueError: The volume is missing, unreadable or empty, holds NaN or infinity, is a series over time, or its
            slices differ in orientation or size, or have no even distance.
    """
    name = path.name
    try:
        if path.is_dir():
            volume = _load_series(path)
        elif name.lower().endswith(".npy"):
            volume = Volume(np.load(path, allow_pickle=False), (1.0, 1.0, 1.0))
        elif name.lower().endswith(SUFFIXES):
            volume = _load_nifti(path)
        else:
            raise ValueError(f"got this name, expected {', '.join(SUFFIXES)} or a folder with a DICOM series")
    except ImportError:
        raise
    except Exception as error:  # of whatever the libraries trip over
        raise ValueError(f"{name}: no volume could be read ({' '.join(str(error).split())})") from error
    values = volume.values
    if values.dtype.kind not in "buif" or values.ndim != 3 or not values.size:
        remark = "; save each time or channel as a volume of its own" if values.ndim == 4 else ""
        raise ValueError(f"{name}: got {values.dtype} of shape {values.shape}, expected numbers (D, H, W){remark}")
    if not np.isfinite(values).all():
        raise ValueError(f"{name}: some voxels are NaN or infinite, expected finite numbers; fill them first")
    return volume


def _load_nifti(path: Path) -> Volume:
    try:
        import nibabel
    except ModuleNotFoundError as error:
        raise ImportError(f"{path.name} needs nibabel: pip install 'm3ae[volumes]'") from error
    image: Any = nibabel.load(path)
    shape = image.shape
    while len(shape) > 3 and shape[-1] == 1:
        shape = shape[:-1]
    values = np.asarray(image.dataobj).reshape(shape)
    if values.ndim != 3:
        return Volume(values, (1.0, 1.0, 1.0))  # refused by its shape
    axes = image.affine[:3, :3].T * (-1, -1, 1)  # of each axis, from right, anterior, superior to left, posterior
    return _upright(values, axes)


def _load_series(folder: Path) -> Volume:
    """Stack the slices of a folder by their positions along the normal, rescaled to the modality's units."""
    try:
        from pydicom import dcmread
        from pydicom.errors import InvalidDicomError
        from pydicom.pixels.processing import apply_rescale
    except ModuleNotFoundError as error:
        raise ImportError(f"{folder.name} needs {error.name}: pip install 'm3ae[dicom]'") from error
    slices: list[Any] = []
    with warnings.catch_warnings(action="ignore"):  # small deviations from the standard are common
        for path in sorted(file for file in folder.iterdir() if file.is_file() and not file.name.startswith(".")):
            try:
                dataset = dcmread(path)
            except InvalidDicomError:
                continue
            if "PixelData" in dataset:
                slices.append(dataset)
        normal = _check_series(slices)
        slices.sort(key=lambda dataset: float(normal @ dataset.ImagePositionPatient))
        values = np.stack([_rescaled(dataset, apply_rescale) for dataset in slices])
    first, last = (np.array(slices[number].ImagePositionPatient, float) for number in (0, -1))
    rows, columns = np.array(slices[0].ImageOrientationPatient, float).reshape(2, 3)[::-1]
    height, width = map(float, slices[0].PixelSpacing)
    return _upright(values, np.stack([(last - first) / (len(slices) - 1), rows * height, columns * width]))


def _check_series(slices: Sequence[Any]) -> NDArray[np.float64]:
    """Return the normal (3,) of slices, or raise ValueError unless they are parallel, alike and evenly spaced."""
    if len(slices) < 2:
        raise ValueError(f"{len(slices)} DICOM slices, expected a series of at least two")
    for what in ("ImagePositionPatient", "ImageOrientationPatient", "PixelSpacing"):
        if any(what not in dataset for dataset in slices):
            raise ValueError(f"a slice without {what}, expected one file a slice of a series")
    shapes = {(dataset.Rows, dataset.Columns, *dataset.PixelSpacing) for dataset in slices}
    series = {dataset.get("SeriesInstanceUID") for dataset in slices}
    if len(shapes) > 1 or len(series) > 1:
        raise ValueError(f"{len(series)} series and {len(shapes)} sizes of slices, expected one; split the folder")
    orientations = np.array([dataset.ImageOrientationPatient for dataset in slices], float)
    if np.abs(orientations - orientations[0]).max() > TOLERANCE:
        raise ValueError("slices of mixed orientation, expected parallel ones; move localisers to another folder")
    normal = np.cross(orientations[0, :3], orientations[0, 3:])
    steps = np.diff(np.sort([float(normal @ dataset.ImagePositionPatient) for dataset in slices]))
    if steps.min() <= TOLERANCE or np.ptp(steps) > UNEVEN * np.median(steps):
        raise ValueError(
            f"slices {steps.min():g} to {steps.max():g} mm apart, expected even distances: one is missing or doubled, "
            "or the series has several times"
        )
    return normal


def _rescaled(dataset: Any, apply_rescale: Any) -> NDArray[Any]:
    stored = dataset.pixel_array
    values = np.asarray(apply_rescale(stored, dataset), np.float32)
    padding = stored == dataset.get("PixelPaddingValue")
    if np.any(padding) and not np.all(padding):
        values[padding] = values[~padding].min()
    return values


def _upright(values: NDArray[Any], axes: NDArray[np.float64]) -> Volume:
    """Turn and flip a volume so that its axes lead to head, back and left, as nearly as they can.

    Args:
        values: (A, B, C).
        axes: (3, 3) the step from voxel to voxel along A, B and C: to the left, to the back, to the head.
    """
    lengths = np.linalg.norm(axes, axis=1)
    order = max(_PERMUTATIONS, key=lambda order: sum(abs(axes[order[n], 2 - n]) / lengths[order[n]] for n in range(3)))
    signs = [axes[order[n], 2 - n] for n in range(3)]
    turned = values.transpose(order)[tuple(slice(None, None, -1 if sign < 0 else 1) for sign in signs)]
    spacing = tuple(float(lengths[axis]) for axis in order)
    if not all(math.isfinite(length) and length > 0 for length in spacing):
        raise ValueError(f"voxels of {spacing} mm, expected positive sizes")
    return Volume(np.ascontiguousarray(turned), (spacing[0], spacing[1], spacing[2]))


_PERMUTATIONS = ((0, 1, 2), (0, 2, 1), (1, 0, 2), (1, 2, 0), (2, 0, 1), (2, 1, 0))
