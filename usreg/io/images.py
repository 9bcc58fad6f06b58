"""Reading NIfTI volumes, with errors that say what is wrong with which file."""

from __future__ import annotations

import gzip
import zlib
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import nibabel as nib
import numpy as np
import torch
from monai.data.meta_tensor import MetaTensor
from nibabel.filebasedimages import ImageFileError, SerializableImage
from nibabel.spatialimages import HeaderDataError
from numpy.typing import NDArray

from ..errors import DataError

_READ_ERRORS = (ImageFileError, HeaderDataError, OSError, EOFError, ValueError, zlib.error)
"""What nibabel, gzip and zlib raise for a file that is cut short, overwritten or of another kind."""

_WAY_OUT = "a NIfTI volume (.nii, .nii.gz) is needed; copy or convert the file again"


@dataclass(frozen=True)
class VolumeHeader:
    """What the header of a file says.

    Attributes:
        shape: voxels along the file's array axes (x, y, z).
        channels: size of the fourth array axis, 1 for a 3-D file.
        affine: (4, 4), from array indices to mm, in RAS directions.
    """

    shape: tuple[int, int, int]
    channels: int
    affine: NDArray[np.float64]


def read_header(path: Path) -> VolumeHeader:
    """Read shape and affine without the voxels.

    Raises:
        DataError: no such file, not a readable NIfTI file, not 3-D or 4-D, no real numbers, or an affine that cannot
            be inverted.
    """
    return _header(path, _open(path))


def read_volume(path: Path) -> MetaTensor:
    """Read a whole volume.

    Returns:
        (C, X, Y, Z) float32 on the file's own axes, C being the fourth axis of a 4-D file, with the file's affine.

    Raises:
        DataError: as :func:`read_header`, or the voxels are cut short or corrupt, or some are NaN or infinite.
    """
    image = _open(path)
    header = _header(path, image)
    try:
        voxels = np.asarray(_decompressed(path, image).dataobj, dtype=np.float32)
    except _READ_ERRORS as error:
        what = f"the voxels cannot be read, the file is cut short or corrupt ({_one_line(error)})"
        raise DataError(f"{path}: {what}; {_WAY_OUT}") from error
    if bad := int(voxels.size - np.isfinite(voxels).sum()):
        raise DataError(f"{path}: {bad} of {voxels.size} voxels are NaN or infinite; replace them by numbers")
    channels_first = np.moveaxis(voxels.reshape(*header.shape, header.channels), -1, 0)
    return MetaTensor(torch.from_numpy(np.ascontiguousarray(channels_first)), affine=torch.from_numpy(header.affine))


def _open(path: Path) -> Any:
    if not path.is_file():
        raise DataError(f"{path}: {'is a folder' if path.is_dir() else 'no such file'}; {_WAY_OUT}")
    try:
        return nib.load(path)
    except _READ_ERRORS as error:
        raise DataError(f"{path}: cannot be read ({_one_line(error)}); {_WAY_OUT}") from error


def _decompressed(path: Path, image: Any) -> Any:
    """The image with its gzip file read to the end, where the checksum is: nibabel stops at the last voxel."""
    if path.suffix.lower() == ".gz" and isinstance(image, SerializableImage):
        return type(image).from_bytes(gzip.decompress(path.read_bytes()))
    return image


def _one_line(error: Exception) -> str:
    return " ".join(str(error).split())


def _header(path: Path, image: Any) -> VolumeHeader:
    shape = tuple(int(n) for n in image.shape)
    if len(shape) not in (3, 4) or 0 in shape:
        raise DataError(f"{path}: its shape is {shape}; a volume (x, y, z) or one with channels (x, y, z, c) is needed")
    if (dtype := image.get_data_dtype()).kind not in "biuf":
        raise DataError(f"{path}: its voxels are of type {dtype}; real numbers are needed")
    affine = np.asarray(image.affine, dtype=np.float64)
    if not np.isfinite(affine).all() or abs(np.linalg.det(affine[:3, :3])) < 1e-12:
        raise DataError(
            f"{path}: its affine cannot be inverted, {affine.tolist()}; write the voxel sizes into the header"
        )
    return VolumeHeader((shape[0], shape[1], shape[2]), shape[3] if len(shape) == 4 else 1, affine)
