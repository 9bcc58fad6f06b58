"""A volume from the DICOM files of a folder: one series, its slices in the order and at the places that they state."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ..errors import DataError
from .formats import DICOM, VALID, WAY_OUT
from .header import VolumeFile, make_header
from .itk_files import (
    check_real,
    import_simpleitk,
    no_directions,
    open_file,
    read_voxels,
    reason,
    states_directions,
    world_affine,
)

_UNEVEN = 0.1  # part of a slice's distance by which a distance may differ from it


@dataclass(frozen=True)
class _Slice:
    """What one file says of its slice, in ITK's terms."""

    size: tuple[int, ...]
    channels: int
    origin: tuple[float, ...]
    spacing: tuple[float, ...]
    direction: tuple[float, ...]
    pixel_type: str
    oriented: bool


def open_folder(folder: Path) -> VolumeFile:
    """Read the headers of the DICOM files of a folder.

    The third axis of the affine goes from the first slice's place to the last one's, so that a tilted gantry is kept.

    Raises:
        DataError: SimpleITK is not installed, no DICOM files, several series, slices of different sizes, or slices
            whose places are missing or not evenly apart, as where a file is lost.
    """
    sitk = import_simpleitk(folder, DICOM.name)
    series = sitk.ImageSeriesReader.GetGDCMSeriesIDs(str(folder))
    if not series:
        raise DataError(f"{folder}: is a folder without DICOM files; {VALID}")
    names = [sitk.ImageSeriesReader.GetGDCMSeriesFileNames(str(folder), uid) for uid in series]
    if len(series) > 1:
        listed = "; ".join(f"{len(files)} files such as {Path(files[0]).name}" for files in names)
        raise DataError(f"{folder}: holds {len(series)} DICOM series ({listed}); put each into a folder of its own")
    files = [Path(name) for name in names[0]]
    if len(files) == 1:
        return open_file(files[0], DICOM)  # all slices in one file, or a single slice
    slices = [_read(file, sitk) for file in files]
    first = slices[0]
    check_real(folder, first.pixel_type)
    for file, other in zip(files, slices, strict=True):
        if (other.size[:2], other.channels) != (first.size[:2], first.channels) or not np.allclose(
            other.direction, first.direction, atol=1e-3
        ):
            raise DataError(
                f"{folder}: {file.name} differs from {files[0].name} in size, channels or direction; a volume is one "
                f"series of equal slices"
            )
    affine = world_affine(first.origin, first.spacing, first.direction)
    step = _step(folder, files, np.array([s.origin for s in slices]))
    affine[:3, 2] = step * (-1, -1, 1)
    shape = (first.size[0], first.size[1], len(files), first.channels)
    header = make_header(folder, shape, affine, first.oriented, () if first.oriented else (no_directions(DICOM),))
    reader = sitk.ImageSeriesReader()
    reader.SetFileNames(list(names[0]))
    if first.channels == 1:
        reader.SetOutputPixelType(sitk.sitkFloat32)  # the scale of the values may differ from slice to slice
    return VolumeFile(header, lambda dtype: read_voxels(folder, reader, sitk, header, dtype))


def _read(file: Path, sitk: Any) -> _Slice:
    reader = sitk.ImageFileReader()
    reader.SetFileName(str(file))
    reader.SetImageIO(DICOM.itk)
    try:
        reader.ReadImageInformation()
    except RuntimeError as error:
        raise DataError(
            f"{file}: cannot be read as DICOM, its header is cut short or corrupt ({reason(error)}); {WAY_OUT}"
        ) from error
    return _Slice(
        tuple(reader.GetSize()),
        reader.GetNumberOfComponents(),
        tuple(reader.GetOrigin()),
        tuple(reader.GetSpacing()),
        tuple(reader.GetDirection()),
        sitk.GetPixelIDValueAsString(reader.GetPixelID()),
        states_directions(reader),
    )


def _step(folder: Path, files: Sequence[Path], origins: NDArray[np.float64]) -> NDArray[np.float64]:
    """(3,) mm, LPS, from one slice to the next."""
    steps = np.diff(origins, axis=0)
    usual = np.median(steps, axis=0)
    length = float(np.linalg.norm(usual))
    if length == 0:
        raise DataError(
            f"{folder}: its {len(files)} DICOM files state no places of slices, or all the same one; "
            "a time series needs a folder per time, and a sweep without positions must be reconstructed first"
        )
    off = np.linalg.norm(steps - usual, axis=1)
    if off.max() > _UNEVEN * length:
        at = int(off.argmax())
        raise DataError(
            f"{folder}: from {files[at].name} to {files[at + 1].name} it is {np.linalg.norm(steps[at]):g} mm, between "
            f"other slices {length:g} mm; a slice is missing or doubled; or resample the slices to one distance"
        )
    return (origins[-1] - origins[0]) / (len(origins) - 1)
