"""Reading volumes of any format, with errors that say what is wrong with which file."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import torch
from monai.data.meta_tensor import MetaTensor

from ..errors import DataError
from . import dicom, itk_files, nibabel_files
from .formats import kind_of
from .header import VolumeFile, VolumeHeader

__all__ = ["VolumeHeader", "read_header", "read_volume"]


def read_header(path: Path) -> VolumeHeader:
    """Read shape and affine without the voxels.

    NIfTI, Analyze, MGH and MINC 1 are read by nibabel; MetaImage, NRRD, MINC 2, DICOM files and folders of them by
    SimpleITK (the extra ``formats``). All come back in one world: mm, x to the right, y to anterior, z to superior.

    Args:
        path: the file, or a folder that holds the DICOM files of one series.

    Raises:
        DataError: no such file, not a readable volume, a library is missing, not 3-D or 4-D, no real numbers, or an
            affine that cannot be inverted.
    """
    return _open(path).header


def read_volume(path: Path) -> MetaTensor:
    """Read a whole volume.

    Returns:
        (C, X, Y, Z) float32 on the file's own axes, C being the fourth axis of a 4-D file, with the file's affine.

    Raises:
        DataError: as :func:`read_header`, or the voxels are cut short or corrupt, or some are NaN or infinite.
    """
    file = _open(path)
    voxels = file.voxels()
    if bad := int(voxels.size - np.isfinite(voxels).sum()):
        raise DataError(f"{path}: {bad} of {voxels.size} voxels are NaN or infinite; replace them by numbers")
    return MetaTensor(torch.from_numpy(voxels), affine=torch.from_numpy(file.header.affine))


def _open(path: Path) -> VolumeFile:
    kind = kind_of(path)
    if path.is_dir():
        return dicom.open_folder(path)
    return (nibabel_files if kind.itk is None else itk_files).open_file(path, kind)
