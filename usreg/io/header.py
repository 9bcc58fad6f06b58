"""What the header of a volume's file says, whatever its format."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ..errors import DataError
from ..spatial.grid import is_singular

_SMALLEST, _LARGEST = 1e-3, 50.0  # mm: voxels beyond are worth a question


@dataclass(frozen=True)
class VolumeHeader:
    """What the header of a file says.

    Attributes:
        shape: voxels along the file's array axes (x, y, z).
        channels: size of the fourth array axis, 1 for a 3-D file.
        affine: (4, 4), from array indices to mm, in RAS directions.
        oriented: whether the file says which way its axes run; otherwise the affine's directions are a guess.
        doubts: what may be wrong with the header, as texts for a warning.
    """

    shape: tuple[int, int, int]
    channels: int
    affine: NDArray[np.float64]
    oriented: bool = True
    doubts: tuple[str, ...] = ()


@dataclass(frozen=True)
class VolumeFile:
    """A file whose header is read and whose voxels can be.

    Attributes:
        header: the header.
        voxels: reads the voxels (C, X, Y, Z) as numbers of a type; None: of the type that the file holds. May raise a
            DataError.
    """

    header: VolumeHeader
    voxels: Callable[[type[np.generic] | None], NDArray[Any]]


def make_header(
    path: Path,
    shape: tuple[int, ...],
    affine: NDArray[np.float64],
    oriented: bool = True,
    doubts: tuple[str, ...] = (),
) -> VolumeHeader:
    """The header of an array of some shape, checked.

    Raises:
        DataError: the shape or the affine cannot be used.
    """
    space, channels = checked_shape(path, shape)
    affine = checked_affine(path, affine)
    spacing = np.linalg.norm(affine[:3, :3], axis=0)
    if spacing.max() > _LARGEST or spacing.min() < _SMALLEST:
        sizes = " x ".join(f"{mm:.4g}" for mm in spacing)
        doubts += (f"its voxels are {sizes} mm large; is the unit of length in the header right?",)
    return VolumeHeader(space, channels, affine, oriented, doubts)


def one_line(error: Exception) -> str:
    """The text of an error of a library, without line breaks."""
    return " ".join(str(error).split())


def checked_shape(path: Path, shape: tuple[int, ...]) -> tuple[tuple[int, int, int], int]:
    """(X, Y, Z) and the channels of an array (X, Y, Z), (X, Y, Z, C) or, as vectors in NIfTI, (X, Y, Z, 1, C).

    Raises:
        DataError: another number of axes, an empty one, or a single slice.
    """
    sizes = tuple(int(n) for n in shape)
    if len(sizes) == 5 and sizes[3] == 1:
        sizes = (*sizes[:3], sizes[4])
    if len(sizes) not in (3, 4) or 0 in sizes:
        raise DataError(f"{path}: its shape is {shape}; a volume (x, y, z) or one with channels (x, y, z, c) is needed")
    return (sizes[0], sizes[1], sizes[2]), sizes[3] if len(sizes) == 4 else 1


def checked_affine(path: Path, affine: NDArray[np.float64]) -> NDArray[np.float64]:
    """The affine in float64.

    Raises:
        DataError: it cannot be inverted.
    """
    affine = np.asarray(affine, dtype=np.float64)
    if not np.isfinite(affine).all() or is_singular(affine):
        raise DataError(
            f"{path}: its affine cannot be inverted, {affine.tolist()}; write the voxel sizes into the header"
        )
    return affine
