"""What a registration gives on the fixed image's grid: images, labels and points before and after."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch

from usreg_kernels import jacobian_determinant

from ...spatial import Grid, InverseField, Transform, resample
from ...spatial.grid import Points
from ..pair import Registration, Volume


@dataclass(frozen=True)
class Inputs:
    """What is registered, and what the result is judged by.

    Attributes:
        fixed, moving: the images.
        start: the transform that the registration starts from; it is what "before" means.
        fixed_label, moving_label: whole numbers, on grids of their own, in the worlds of their images. The fixed one is
            only of use together with the moving one, as with the points.
        fixed_points, moving_points: (N, 3) mm, RAS, of the same places in the two images.
    """

    fixed: Volume
    moving: Volume
    start: Transform
    fixed_label: Volume | None = None
    moving_label: Volume | None = None
    fixed_points: Points | None = None
    moving_points: Points | None = None


@dataclass(frozen=True)
class Results:
    """On the fixed image's grid, or in its world.

    Attributes:
        before, warped: (C, X, Y, Z), the moving image by the start and by the result; 0 outside of it.
        seen_before, seen: (X, Y, Z), which voxels the moving image reaches.
        fixed_label: (X, Y, Z) int32, as the other labels; nearest neighbour.
        label_before, warped_label: the moving label by the start and by the result; 0 outside of it.
        jacobian: (X, Y, Z), the determinant of the displacement field; None without one.
        warped_points: (N, 3) mm, the moving points in the fixed image's world.
    """

    before: torch.Tensor
    warped: torch.Tensor
    seen_before: torch.Tensor
    seen: torch.Tensor
    fixed_label: torch.Tensor | None = None
    label_before: torch.Tensor | None = None
    warped_label: torch.Tensor | None = None
    jacobian: torch.Tensor | None = None
    warped_points: Points | None = None


def make_results(inputs: Inputs, found: Registration) -> Results:
    """Apply what a registration found."""
    grid, moving = inputs.fixed.grid, inputs.moving
    return Results(
        before=_pulled(moving, grid, inputs.start),
        warped=_pulled(moving, grid, found.transform),
        seen_before=_seen(moving.grid, grid, inputs.start),
        seen=_seen(moving.grid, grid, found.transform),
        fixed_label=_label(inputs.fixed_label, grid, None),
        label_before=_label(inputs.moving_label, grid, inputs.start),
        warped_label=_label(inputs.moving_label, grid, found.transform),
        jacobian=None if found.ddf is None else jacobian_determinant(without_flat_axes(found.ddf)).reshape(grid.size),
        warped_points=None if inputs.moving_points is None else to_fixed_world(found, inputs.moving_points),
    )


def to_fixed_world(found: Registration, points: Points) -> Points:
    """Points (N, 3) in mm of the moving image's world, where they are in the fixed one's."""
    points = found.affine.inverse()(points)
    return points if found.field is None else InverseField(found.field).solve(points)[0]


def without_flat_axes(ddf: torch.Tensor) -> torch.Tensor:
    """The field (1, 3, X, Y, Z) of an image of one slice as a field in the plane, (1, 2, X, Y); others as they are."""
    kept = [axis for axis, length in enumerate(ddf.shape[2:]) if length > 1]
    return ddf[:, kept].reshape(1, len(kept), *(ddf.shape[2 + axis] for axis in kept))


def _pulled(moving: Volume, grid: Grid, transform: Transform) -> torch.Tensor:
    return resample(moving.voxels, moving.grid, grid, transform, padding_mode="zeros")


def _seen(moving: Grid, grid: Grid, transform: Transform) -> torch.Tensor:
    """(X, Y, Z): where the moving image's box is."""
    everywhere = torch.ones(1, *moving.size)
    return resample(everywhere, moving, grid, transform, mode="nearest", padding_mode="zeros")[0] > 0


def _label(label: Volume | None, grid: Grid, transform: Transform | None) -> torch.Tensor | None:
    """A label on a grid, int32; as it is where it lies there already."""
    if label is None:
        return None
    if transform is None and label.grid.size == grid.size and np.allclose(label.grid.affine, grid.affine, atol=1e-4):
        return label.voxels[0].round().to(torch.int32)
    moved = resample(label.voxels, label.grid, grid, transform, mode="nearest", padding_mode="zeros")
    return moved[0].round().to(torch.int32)
