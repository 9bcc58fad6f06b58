"""A volume from one DICOM file of several frames: where the frames lie, which ITK finds only for the simplest ones."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ..errors import DataError
from .formats import DICOM, VALID, WAY_OUT
from .header import VolumeFile, make_header, one_line
from .itk_files import import_simpleitk, no_directions, open_file, read_voxels, world_affine
from .slices import even_step

_PATIENT = ("PlanePositionSequence.ImagePositionPatient", "PlaneOrientationSequence.ImageOrientationPatient")
_VOLUME = ("PlanePositionVolumeSequence.ImagePositionVolume", "PlaneOrientationVolumeSequence.ImageOrientationVolume")
_SCALE = ("PixelValueTransformationSequence.RescaleSlope", "PixelValueTransformationSequence.RescaleIntercept")
_SPACING = "PixelMeasuresSequence.PixelSpacing"


@dataclass(frozen=True)
class _Frames:
    """What a file says of its frames, in the order of the file.

    Attributes:
        places: (N, 3) mm, LPS, of the first voxel of each frame.
        rows: (3,), the direction of a row of voxels; ``columns`` that of a column.
        spacing: mm from voxel to voxel of a row, and of a column.
        scale: (N, 2), slope and intercept of the values.
        oriented: whether the places are those of the patient, and not of the probe.
    """

    places: NDArray[np.float64]
    rows: NDArray[np.float64]
    columns: NDArray[np.float64]
    spacing: tuple[float, float]
    scale: NDArray[np.float64]
    oriented: bool


def open_frames(path: Path) -> VolumeFile:
    """Read the header of a DICOM file.

    The frames of an enhanced file are sorted by the places that they state; their values are scaled frame by frame.
    Other files are read as ITK does.

    Raises:
        DataError: SimpleITK or pydicom is not installed, the file cannot be read, or its frames are not evenly apart.
    """
    sitk = import_simpleitk(path, DICOM.name)
    reader = sitk.ImageFileReader()
    reader.SetFileName(str(path))
    reader.SetImageIO(DICOM.itk)
    try:
        reader.ReadImageInformation()
    except RuntimeError:
        _check_image(path)
        return open_file(path, DICOM)  # says what is wrong
    if len(reader.GetSize()) < 3 or reader.GetSize()[2] == 1:
        return open_file(path, DICOM)
    dataset = _dataset(path)
    frames = _frames(path, dataset)
    if frames is None:
        return _simple(path, dataset)
    shape = (*reader.GetSize()[:3], reader.GetNumberOfComponents())
    normal = np.cross(frames.rows, frames.columns)
    order = np.argsort(frames.places @ normal, kind="stable")
    names = [f"frame {number + 1}" for number in order]
    places = frames.places[order]
    steps = (frames.rows * frames.spacing[0], frames.columns * frames.spacing[1], even_step(path, names, places))
    affine = world_affine(places[0].tolist(), (1.0, 1.0, 1.0), np.stack(steps, axis=1).ravel().tolist())
    header = make_header(path, shape, affine, frames.oriented, () if frames.oriented else (no_directions(DICOM),))

    def voxels(dtype: type[np.generic] | None) -> NDArray[Any]:
        read = read_voxels(path, reader, sitk, header, dtype)
        slope, intercept = frames.scale.T
        if np.ptp(slope) or np.ptp(intercept):  # ITK scales all frames as it does the first
            raw = (read.astype(np.float64) - intercept[0]) / slope[0]
            read = (raw * slope + intercept).astype(dtype or np.float32)
        return np.ascontiguousarray(read[..., order])

    return VolumeFile(header, voxels)


def _check_image(path: Path) -> None:
    """Raises where a file that ITK refuses is sound, and of a kind that holds no voxels."""
    try:
        import pydicom

        dataset = pydicom.dcmread(path, stop_before_pixels=True)
    except Exception:  # not installed, or whatever a damaged file makes it raise: the reader says what is wrong
        return
    uid, modality = dataset.get("SOPClassUID"), dataset.get("Modality")
    if uid is None or modality is None or dataset.get("Rows") is not None:
        return
    contours = " Its contours become a label map in 3D Slicer: save that as NIfTI" if modality == "RTSTRUCT" else ""
    raise DataError(f"{path}: is a DICOM file without an image ({modality}, {uid.name}); {VALID}.{contours}")


def _simple(path: Path, dataset: Any) -> VolumeFile:
    """A file that says once for all frames where they are, or not at all."""
    offsets = dataset.get("GridFrameOffsetVector")
    if offsets is not None and len(offsets) > 1:
        names = [f"frame {number + 1}" for number in range(len(offsets))]
        even_step(path, names, np.outer(np.asarray(offsets, np.float64), (0.0, 0.0, 1.0)))
    file = open_file(path, DICOM)
    if dataset.get("PixelSpacing") is not None:
        return file
    doubt = "its DICOM header does not say how large its voxels are: 1 mm is taken"
    return replace(file, header=replace(file.header, doubts=(*file.header.doubts, doubt)))


def _dataset(path: Path) -> Any:
    """The elements of a file, without its voxels."""
    try:
        import pydicom
    except ImportError as error:
        raise DataError(
            f"{path}: holds several frames, whose places are read by pydicom, which is not installed; install it with: "
            f'pip install "usreg[formats]", or convert the file to NIfTI'
        ) from error
    try:
        return pydicom.dcmread(path, stop_before_pixels=True)
    except Exception as error:  # whatever a damaged file makes it raise
        raise DataError(
            f"{path}: cannot be read as DICOM, its header is cut short or corrupt ({one_line(error)}); {WAY_OUT}"
        ) from error


def _frames(path: Path, dataset: Any) -> _Frames | None:
    """What an enhanced file says of its frames; None of another one."""
    groups = dataset.get("PerFrameFunctionalGroupsSequence")
    if not groups:
        return None
    shared = dataset.get("SharedFunctionalGroupsSequence")
    both = [(group, *(shared or ())) for group in groups]
    oriented = _value(both[0], _PATIENT[0]) is not None
    where, direction = _PATIENT if oriented else _VOLUME
    read = {name: [_value(group, name) for group in both] for name in (where, direction, _SPACING, *_SCALE)}
    for name in (where, direction, _SPACING):
        if any(value is None for value in read[name]):
            raise DataError(
                f"{path}: {name.partition('.')[2]} is missing for some of its {len(groups)} frames, so that they have "
                "no place in the world; convert the file to NIfTI with a program that knows its maker"
            )
    directions, spacings = (np.asarray(read[name], np.float64) for name in (direction, _SPACING))
    if np.abs(directions - directions[0]).max() > 1e-3 or np.ptp(spacings, axis=0).max() > 1e-3 * spacings.max():
        raise DataError(
            f"{path}: its {len(groups)} frames differ in direction or in the size of their voxels; a volume is one "
            "stack of equal frames: split the file"
        )
    slopes, intercepts = (
        [neutral if v is None else v for v in read[name]] for name, neutral in zip(_SCALE, (1, 0), strict=True)
    )
    return _Frames(
        np.asarray(read[where], np.float64),
        directions[0, :3],
        directions[0, 3:],
        (spacings[0, 1], spacings[0, 0]),
        np.stack([np.asarray(slopes, np.float64), np.asarray(intercepts, np.float64)], axis=1),
        oriented,
    )


def _value(groups: Sequence[Any], name: str) -> Any:
    """An element of the first of a frame's groups, its own or the shared one, that has it; None where none does."""
    sequence, _, element = name.partition(".")
    for group in groups:
        items = group.get(sequence)
        if items and items[0].get(element) is not None:
            return items[0].get(element)
    return None
