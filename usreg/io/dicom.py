"""A volume from the DICOM files of a folder: one series, its slices in the order and at the places that they state."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from ..errors import DataError
from .dicom_frames import open_frames
from .formats import DICOM, VALID, WAY_OUT
from .header import VolumeFile, make_header
from .itk_files import (
    check_real,
    import_simpleitk,
    no_directions,
    read_voxels,
    reason,
    states_directions,
    world_affine,
)
from .slices import even_step

_LISTED = 5
_TITLE = ("0008|0060", "0008|103e", "0020|0011")  # modality, description and number of a series


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
    files = _files_of_series(folder, sitk)
    if len(files) == 1:
        return open_frames(files[0])  # all slices in one file, or a single slice
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
    step = even_step(folder, [file.name for file in files], np.array([s.origin for s in slices]))
    affine[:3, 2] = step * (-1, -1, 1)
    shape = (first.size[0], first.size[1], len(files), first.channels)
    header = make_header(folder, shape, affine, first.oriented, () if first.oriented else (no_directions(DICOM),))
    reader = sitk.ImageSeriesReader()
    reader.SetFileNames([str(file) for file in files])
    if first.channels == 1:
        reader.SetOutputPixelType(sitk.sitkFloat32)  # the scale of the values may differ from slice to slice
    return VolumeFile(header, lambda dtype: read_voxels(folder, reader, sitk, header, dtype))


def _files_of_series(folder: Path, sitk: Any) -> list[Path]:
    """The files of the one series of a folder, sorted by the places of their slices."""
    found = {path for path in folder.iterdir() if path.is_file() and _is_dicom(path)}
    series = sitk.ImageSeriesReader.GetGDCMSeriesIDs(str(folder)) if any(folder.iterdir()) else ()
    names = [sitk.ImageSeriesReader.GetGDCMSeriesFileNames(str(folder), uid) for uid in series]
    files = [[Path(name) for name in names_of_one] for names_of_one in names]
    inner = sorted(path.name for path in folder.iterdir() if path.is_dir())
    if not series and found and not inner:
        open_frames(min(found))  # says what is wrong with it
        raise DataError(f"{folder}: its {len(found)} DICOM file(s), such as {min(found).name}, are no slices; {VALID}")
    if not series:
        hint = f"it holds the folder(s) {', '.join(inner[:_LISTED])}: name one of them" if inner else VALID
        raise DataError(f"{folder}: is a folder without DICOM files; {hint}")
    if len(series) > 1:
        listed = "; ".join(f"{_title(sitk, some[0])}: {len(some)} file(s) such as {some[0].name}" for some in files)
        raise DataError(f"{folder}: holds {len(series)} DICOM series ({listed}); put each into a folder of its own")
    if left := sorted(path.name for path in found - set(files[0])):
        raise DataError(
            f"{folder}: {left[0]} and {len(left) - 1} more of its DICOM files cannot be read as a slice: cut short, or "
            f"no image; {WAY_OUT}, or take out of the folder what is no slice"
        )
    return files[0]


def _is_dicom(path: Path) -> bool:
    """Whether a file has DICOM's signature and holds more than a list of others."""
    with path.open("rb") as file:
        return file.read(132)[128:] == b"DICM" and path.name != "DICOMDIR"


def _title(sitk: Any, file: Path) -> str:
    """What a series calls itself: modality, description, and its number in the study."""
    reader = sitk.ImageFileReader()
    reader.SetFileName(str(file))
    reader.SetImageIO(DICOM.itk)
    try:
        reader.ReadImageInformation()
    except RuntimeError:
        return "unreadable"
    words = [reader.GetMetaData(tag).strip() for tag in _TITLE if reader.HasMetaDataKey(tag)]
    return " ".join(word for word in words if word) or "without a description"


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
