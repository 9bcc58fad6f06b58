"""Reading volumes of any format, with errors that say what is wrong with which file."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import torch
from monai.data.meta_tensor import MetaTensor
from numpy.typing import NDArray

from ..errors import DataError
from ..spatial import Grid
from . import dicom, dicom_frames, itk_files, nibabel_files
from .formats import DICOM, kind_of
from .header import VolumeFile, VolumeHeader
from .nifti_world import HeaderChoice

__all__ = ["VolumeHeader", "read_header", "read_stored", "read_volume"]


def read_header(path: Path, choice: HeaderChoice | None = None) -> VolumeHeader:
    """Read shape and affine without the voxels.

    NIfTI, Analyze, MGH and MINC 1 are read by nibabel; MetaImage, NRRD, MINC 2, DICOM files and folders of them by
    SimpleITK (the extra ``formats``). All come back in one world: mm, x to the right, y to anterior, z to superior.

    Args:
        path: the file, or a folder that holds the DICOM files of one series.
        choice: which of the two forms of a NIfTI header to take where both are set and differ, or where neither is set;
            ``"sform"`` or ``"qform"``. Without it, the sform if it is set, else the qform, and a doubt is noted.

    Raises:
        DataError: no such file, not a readable volume, a library is missing, not 3-D or 4-D, no real numbers, or an
            affine that cannot be inverted.
    """
    return _open(path, choice).header


def read_volume(path: Path, choice: HeaderChoice | None = None, *, allow_nan: bool = False) -> MetaTensor:
    """Read a whole volume.

    Args:
        path: as in :func:`read_header`.
        choice: as in :func:`read_header`.
        allow_nan: return voxels that are NaN as they are.

    Returns:
        (C, X, Y, Z) float32 on the file's own axes, C being the fourth axis of a 4-D file, with the file's affine.

    Raises:
        DataError: as :func:`read_header`, or the voxels are cut short or corrupt, or some are NaN or infinite.
    """
    file = _open(path, choice)
    voxels = file.voxels(np.float32)
    if bad := int(voxels.size - np.isfinite(voxels).sum()):
        missing = int(np.isnan(voxels).sum())
        if bad > missing:
            what = f"{bad} of {voxels.size} voxels are NaN or infinite" if missing else f"{bad} voxels are infinite"
            raise DataError(f"{path}: {what}; replace them by numbers")
        if not allow_nan:
            raise DataError(
                f"{path}: {missing} of {voxels.size} voxels are NaN; where NaN stands for what the scanner did not "
                f"see, set nan to fill or mask; else replace them by numbers"
            )
    return MetaTensor(torch.from_numpy(voxels), affine=torch.from_numpy(file.header.affine))


def read_stored(path: Path, choice: HeaderChoice | None = None) -> tuple[NDArray[Any], Grid]:
    """Read a whole volume in the type of its file: labels above 2^24 would lose digits in float32.

    Args:
        path: as in :func:`read_header`.
        choice: as in :func:`read_header`.

    Returns:
        (C, X, Y, Z) of the file's type, or of the type of its scaled numbers; NaN is kept. And its grid.

    Raises:
        DataError: as :func:`read_header`, or the voxels are cut short or corrupt.
    """
    file = _open(path, choice)
    voxels = file.voxels(None)
    native = voxels.dtype.newbyteorder("=")
    return np.require(voxels, native, ["C", "W"]), Grid(file.header.shape, file.header.affine)


def _open(path: Path, choice: HeaderChoice | None) -> VolumeFile:
    kind = kind_of(path)
    if path.is_dir():
        return dicom.open_folder(path)
    if kind is DICOM:
        return dicom_frames.open_frames(path)
    if kind.itk is not None:
        return itk_files.open_file(path, kind)
    return nibabel_files.open_file(path, kind, choice)
