"""Volumes that nibabel reads: NIfTI, Analyze, MGH and MINC 1."""

from __future__ import annotations

import gzip
import io
import zlib
from pathlib import Path
from typing import Any

import nibabel as nib
import numpy as np
from nibabel.filebasedimages import ImageFileError
from nibabel.fileholders import FileHolder
from nibabel.spatialimages import HeaderDataError
from nibabel.wrapstruct import WrapStructError
from numpy.typing import NDArray

from ..errors import DataError
from .formats import ANALYZE, MGH, MINC1, NIFTI, WAY_OUT, Kind, is_gzip, suffix_of
from .header import VolumeFile, VolumeHeader, make_header, one_line
from .nifti_world import HeaderChoice, World, nifti_world

_READ_ERRORS = (
    ImageFileError,
    HeaderDataError,
    WrapStructError,
    OSError,
    EOFError,
    ValueError,
    LookupError,
    zlib.error,
)
"""What nibabel, gzip and zlib raise for a file that is cut short, overwritten or of another kind."""


def open_file(path: Path, kind: Kind, choice: HeaderChoice | None = None) -> VolumeFile:
    """Read the header of a file.

    A NIfTI file is read by its content where its name says compressed and it is not, or the other way round.

    Args:
        path: the file.
        kind: what it is.
        choice: the form of a NIfTI header to take where both are set and differ, or where neither is.

    Raises:
        DataError: the file cannot be read, its voxels are no real numbers, or its shape or affine cannot be used.
    """
    try:
        image = _load(path, kind)
    except _READ_ERRORS as error:
        raise DataError(f"{path}: cannot be read ({one_line(error)}); {WAY_OUT}") from error
    if (dtype := image.get_data_dtype()).kind not in "biuf":
        raise DataError(f"{path}: its voxels are of type {dtype}; real numbers are needed")
    axes = _axes(image, kind)
    try:
        world = _world(path, image, kind, choice)
    except DataError as error:
        raise DataError(f"{path}: {error}") from error
    except _READ_ERRORS as error:
        raise DataError(f"{path}: its header cannot be used ({one_line(error)}); {WAY_OUT}") from error
    shape = tuple(image.shape[axis] for axis in axes)
    if len(shape) == 2:  # a slice; its affine has a third axis all the same
        shape += (1,)
    header = make_header(path, shape, world.affine, world.oriented, world.doubts)
    return VolumeFile(header, lambda dtype: _voxels(path, image, header, axes, dtype))


def _world(path: Path, image: Any, kind: Kind, choice: HeaderChoice | None) -> World:
    """Where the voxels lie, by the header."""
    affine = np.array(image.affine, dtype=np.float64)
    if kind is MINC1:
        affine[:, :3] = affine[:, 2::-1]
    if isinstance(image.header, nib.Nifti1Header):
        return nifti_world(image.header, choice)
    if kind is ANALYZE and not path.with_suffix(".mat").is_file():
        doubt = "the Analyze format does not say which way axes run: left and right are a guess; convert the file"
        return World(affine, False, (doubt,))
    if kind is MGH and not int(image.header["goodRASFlag"]):
        doubt = "its header does not say which way its axes run (goodRASFlag is 0), so that left and right are a guess"
        return World(affine, False, (doubt,))
    return World(affine)


def _load(path: Path, kind: Kind) -> Any:
    """The image, its voxels not read yet."""
    single = kind is NIFTI and suffix_of(path) in (".nii", ".nii.gz")
    if not single or is_gzip(path) == (path.suffix.lower() == ".gz"):
        return nib.load(path)
    return _from_bytes(_content(path))  # the name says compressed and the content does not, or the other way round


def _axes(image: Any, kind: Kind) -> tuple[int, ...]:
    """The array's axes in the order x, y, z, channels: MINC 1 has them the other way round, time first."""
    count = len(image.shape)
    return tuple(range(count - 1, -1, -1)) if kind is MINC1 else tuple(range(count))


def _voxels(
    path: Path, image: Any, header: VolumeHeader, axes: tuple[int, ...], dtype: type[np.generic] | None
) -> NDArray[Any]:
    try:
        # nibabel stops at the last voxel; read to the end, where the checksum of a compressed file is.
        compressed = suffix_of(path) == ".nii.gz"
        whole = _from_bytes(_content(path)) if compressed else image
        voxels = np.asarray(whole.dataobj, dtype=dtype)
    except _READ_ERRORS as error:
        what = f"the voxels cannot be read, the file is cut short or corrupt ({one_line(error)})"
        raise DataError(f"{path}: {what}; {WAY_OUT}") from error
    channels_last = voxels.transpose(axes).reshape(*header.shape, header.channels)
    return np.ascontiguousarray(np.moveaxis(channels_last, -1, 0))


def _content(path: Path) -> bytes:
    content = path.read_bytes()
    return gzip.decompress(content) if content[:2] == b"\x1f\x8b" else content


def _from_bytes(content: bytes) -> Any:
    image_class = nib.Nifti2Image if content[4:7] == b"n+2" else nib.Nifti1Image
    stream = FileHolder(fileobj=io.BytesIO(content))
    return image_class.from_file_map({"header": stream, "image": stream})
