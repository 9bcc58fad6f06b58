"""What ``usreg.apply`` does: transforms, and images or points that go through them."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from pathlib import Path
from typing import TypeAlias

import numpy as np
import torch
from numpy.typing import ArrayLike

from ..errors import DataError
from ..io.images import read_header, read_stored
from ..io.writing import VOLUME_SUFFIXES, check_output, series_of, write_volume
from ..registration.pair import Volume
from ..spatial import Grid
from ..spatial.grid import Points
from .chains import Course, Link, TransformLike, check_reach, links_of, mapped
from .images import Interpolation, pull

logger = logging.getLogger(__name__)

ImageLike: TypeAlias = "Volume | Path | str"


def apply(
    transform: TransformLike | Sequence[TransformLike],
    moving: ImageLike,
    fixed: ImageLike | Grid,
    *,
    out: Path | str | None = None,
    interpolation: Interpolation = "linear",
    inverse: bool = False,
    outside: float = 0.0,
) -> Volume:
    """Resample the moving image on the grid of the fixed one, through a chain of transforms, with one interpolation.

    A transform takes points of the fixed image's world to the moving image's world. An image is pulled back through it:
    each voxel of the result shows what the moving image holds at the mapped point. Fields are 0 outside their grid.

    Args:
        transform: one or several, as objects or as files of ITK and ANTs (see
            :func:`usreg.io.transforms.read_transform`). The first is the first that a point of the fixed image meets,
            as on the command line of ANTs: a field, then an affine. ``"[FILE,1]"`` is the inverse of a file's.
        moving: a file, or voxels (C, X, Y, Z) with their grid; several channels are resampled alike.
        fixed: a file, a volume or a grid: where the voxels of the result are.
        out: a file to write: ``.nii``, ``.nii.gz``; with SimpleITK also ``.mha``, ``.mhd``, ``.nrrd``, ``.nhdr``. The
            channels of a NIfTI file stay along their axis.
        interpolation: ``"linear"``; ``"nearest"``; or ``"label"``: the label whose voxels have the largest weight.
        inverse: undo the chain. Its points then go from the moving image's world to the fixed one's, so that here
            ``moving`` is the image that was fixed in the registration, and ``fixed`` the one that was moving.
        outside: the value where the mapped point lies outside the moving image's box.

    Returns:
        Voxels (C, X, Y, Z) on the grid of ``fixed``. Their type is that of ``moving``; for ``"linear"`` float32, or
        float64 for float64 and integers of 32 bits or more.

    Raises:
        UsageError: a file is missing, unreadable, no transform or not writable; the transforms take nothing of the
            fixed image into the moving one; a field folds so much that it has no inverse; values do not fit.
    """
    if out is not None:
        check_output(Path(out), VOLUME_SUFFIXES, [Path(one) for one in (moving, fixed) if isinstance(one, str | Path)])
    links = links_of(transform, inverse)
    target, source = grid_of_image(fixed), grid_of_image(moving)
    check_reach(links, target, source)
    voxels = read_stored(Path(moving))[0] if isinstance(moving, str | Path) else moving.voxels.numpy()
    result, course = pull(voxels, source, target, links, interpolation, outside)
    _note(course)
    if out is not None:
        series = series_of(Path(moving)) if isinstance(moving, str | Path) else None
        write_volume(Path(out), result, target, series)
    return Volume(torch.from_numpy(result), target)


def apply_to_points(
    transform: TransformLike | Sequence[TransformLike], points: ArrayLike, *, inverse: bool = False
) -> Points:
    """Where points go: from the fixed image's world to the moving one's, the opposite way of an image.

    Args:
        transform: as for :func:`apply`.
        points: (N, 3) mm in RAS. Those of ITK and ANTs are LPS: :func:`usreg.spatial.lps_to_ras`.
        inverse: from the moving image's world to the fixed one's.

    Returns:
        (N, 3) mm in RAS.

    Raises:
        UsageError: a file is missing or no transform, or a field folds and has no inverse at a point.
        ValueError: the points have another shape.
    """
    given = np.asarray(points, dtype=np.float64)
    if given.ndim != 2 or given.shape[1] != 3:
        raise ValueError(f"points must be (N, 3), not {given.shape}")
    return map_points(links_of(transform, inverse), given)


def map_points(links: Sequence[Link], points: Points) -> Points:
    """Points (N, 3) in mm after a chain; a warning says what happened to some of them on the way."""
    course = Course()
    found = mapped(links, points, course)
    _note(course)
    return found


def grid_of_image(image: ImageLike | Grid) -> Grid:
    """The grid of a file, a volume or a grid.

    Raises:
        DataError: the file cannot be read, or has a single slice.
    """
    if isinstance(image, Grid):
        return image
    if not isinstance(image, str | Path):
        return image.grid
    header = read_header(Path(image))
    if not header.oriented:
        logger.warning("%s: %s", image, header.doubts[0])
    if 0 in header.shape:
        raise DataError(f"{image} has no voxels")
    return Grid(header.shape, header.affine)


def _note(course: Course) -> None:
    for remark in course.remarks():
        logger.warning("%s", remark)
