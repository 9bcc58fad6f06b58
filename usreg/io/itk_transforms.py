"""Transforms through SimpleITK (the extra ``formats``): composites (``.h5``), and linear ones of any kind."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch

from ..errors import UsageError
from ..spatial import Affine, Chain, DisplacementField, Grid, Transform, lps_to_ras
from .itk_files import import_simpleitk, reason, world_affine

FLIP = np.diag([-1.0, -1.0, 1.0, 1.0])
"""From RAS to LPS, and back."""

_NAME = "a transform of this kind"


def read_with_itk(path: Path) -> Transform:
    """A transform file that ITK reads: composites become a :class:`Chain`, in the order in which a point meets them.

    Raises:
        UsageError: SimpleITK is not installed or cannot read the file; it is not in three dimensions; or it holds a
            kind that is neither linear nor a displacement field.
    """
    sitk = import_simpleitk(path, _NAME)
    try:
        transform = sitk.ReadTransform(str(path))
    except RuntimeError as error:
        raise UsageError(f"{path} is no transform that ITK reads: {reason(error)}") from error
    if transform.GetDimension() != 3:
        raise UsageError(f"{path} holds a transform in {transform.GetDimension()} dimensions; 3 are needed")
    parts = list(_parts(path, transform, sitk))
    return parts[0] if len(parts) == 1 else Chain(parts)


def write_with_itk(path: Path, transforms: Sequence[Transform]) -> None:
    """Write affines and fields, in the order in which a point meets them, as one composite of ITK (``.h5``).

    Raises:
        UsageError: SimpleITK is not installed, or a transform is neither an affine nor a field.
    """
    sitk = import_simpleitk(path, _NAME)
    parts = [_as_itk(path, transform, sitk) for transform in reversed(transforms)]
    sitk.WriteTransform(sitk.CompositeTransform(parts), str(path))


def _parts(path: Path, transform: Any, sitk: Any) -> list[Transform]:
    if transform.GetTransformEnum() == sitk.sitkComposite:
        composite = sitk.CompositeTransform(transform)
        numbers = reversed(range(composite.GetNumberOfTransforms()))  # ITK's last transform meets a point first
        return [part for n in numbers for part in _parts(path, composite.GetNthTransform(n), sitk)]
    if transform.IsLinear():
        ends = np.array([transform.TransformPoint(point) for point in [(0.0, 0.0, 0.0), *np.eye(3).tolist()]])
        matrix = np.eye(4)
        matrix[:3, :3], matrix[:3, 3] = (ends[1:] - ends[0]).T, ends[0]
        return [Affine(FLIP @ matrix @ FLIP)]
    if transform.GetTransformEnum() == sitk.sitkDisplacementField:
        return [_field(sitk.DisplacementFieldTransform(transform).GetDisplacementField(), sitk)]
    raise UsageError(
        f"{path} holds a {transform.GetName()}; affines and displacement fields can be read. Turn it into a field "
        "with SimpleITK.TransformToDisplacementField"
    )


def _field(image: Any, sitk: Any) -> DisplacementField:
    vectors = sitk.GetArrayFromImage(image)  # (z, y, x, 3)
    x, y, z = image.GetSize()
    grid = Grid((x, y, z), world_affine(image.GetOrigin(), image.GetSpacing(), image.GetDirection()))
    displacement = lps_to_ras(vectors).transpose(3, 2, 1, 0)
    return DisplacementField(grid, torch.from_numpy(np.ascontiguousarray(displacement)))


def _as_itk(path: Path, transform: Transform, sitk: Any) -> Any:
    if isinstance(transform, Affine):
        matrix = FLIP @ transform.matrix @ FLIP
        return sitk.AffineTransform(matrix[:3, :3].ravel().tolist(), matrix[:3, 3].tolist())
    if not isinstance(transform, DisplacementField):
        raise UsageError(f"{path}: affines and fields can be written, not a {type(transform).__name__}")
    vectors = lps_to_ras(transform.displacement.numpy().transpose(3, 2, 1, 0))
    image = sitk.GetImageFromArray(np.ascontiguousarray(vectors), isVector=True)
    set_itk_grid(image, transform.grid)
    return sitk.DisplacementFieldTransform(image)


def set_itk_grid(image: Any, grid: Grid) -> None:
    """Put an image of ITK where a grid, axes x, y, z, is."""
    image.SetSpacing(grid.spacing.tolist())
    image.SetOrigin(lps_to_ras(grid.affine[:3, 3]).tolist())
    image.SetDirection((FLIP[:3, :3] @ grid.affine[:3, :3] / grid.spacing).ravel().tolist())
