"""Transforms from points of the fixed image's world to points of the moving image's world, RAS, in mm."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol

import numpy as np
import torch
from numpy.typing import ArrayLike, NDArray

from usreg_kernels import warp

from .grid import Grid, Points


class Transform(Protocol):
    """Maps points; images go the other way: a warped image takes at each point what lies at the mapped point."""

    def __call__(self, points: ArrayLike) -> Points:
        """Points (N, 3) in mm of the fixed image's world, mapped to the moving image's."""

    def inverse(self) -> Transform:
        """The transform that undoes this one."""


@dataclass(frozen=True, eq=False)
class Affine:
    """A linear map and a shift.

    Attributes:
        matrix: (4, 4), of homogeneous points in mm; its last row is (0, 0, 0, 1).

    Raises:
        ValueError: the matrix is no such matrix, or cannot be inverted.
    """

    matrix: NDArray[np.float64]

    def __post_init__(self) -> None:
        matrix = np.array(self.matrix, dtype=np.float64)
        if matrix.shape != (4, 4) or not np.isfinite(matrix).all() or not np.allclose(matrix[3], (0, 0, 0, 1)):
            raise ValueError(f"an affine is a (4, 4) matrix with the last row 0 0 0 1, not {matrix.tolist()}")
        if abs(np.linalg.det(matrix[:3, :3])) < 1e-12:
            raise ValueError(f"this affine cannot be inverted: {matrix.tolist()}")
        object.__setattr__(self, "matrix", matrix)

    def __call__(self, points: ArrayLike) -> Points:
        """See :class:`Transform`."""
        return np.asarray(points, dtype=np.float64) @ self.matrix[:3, :3].T + self.matrix[:3, 3]

    def inverse(self) -> Affine:
        """The inverse matrix."""
        return Affine(np.asarray(np.linalg.inv(self.matrix), dtype=np.float64))


@dataclass(frozen=True, eq=False)
class DisplacementField:
    """``points + displacement(points)``, linear between the voxels of a grid. Outside the grid's box points stay.

    Attributes:
        grid: of the field; its axes are those of the tensor.
        displacement: (3, D, H, W) mm along x (right), y (anterior) and z (superior), whatever the axes of the grid.

    Raises:
        ValueError: the shape is not that of the grid.
    """

    grid: Grid
    displacement: torch.Tensor

    def __post_init__(self) -> None:
        if tuple(self.displacement.shape) != (3, *self.grid.size):
            raise ValueError(
                f"displacement must be (3, D, H, W) = (3, {', '.join(map(str, self.grid.size))}), "
                f"not {tuple(self.displacement.shape)}"
            )

    @classmethod
    def from_voxels(cls, ddf: torch.Tensor, fixed: Grid, moving: Grid) -> DisplacementField:
        """Of a network's or an optimisation's field.

        Args:
            ddf: (3, D, H, W) on the fixed grid: voxel x of it has its counterpart at voxel ``x + ddf(x)`` of the moving
                grid, components in the order of the grids' axes.
            fixed: the grid of the fixed image.
            moving: that of the moving image.
        """
        voxels = _voxels(fixed) + ddf.detach().cpu().double().flatten(1).numpy().T
        displacement = moving.to_world(voxels) - fixed.to_world(_voxels(fixed))
        return cls(fixed, torch.from_numpy(displacement.T.reshape(3, *fixed.size).copy()))

    def __call__(self, points: ArrayLike) -> Points:
        """See :class:`Transform`."""
        points = np.asarray(points, dtype=np.float64)
        return points + self.displacement_at(points)

    def inverse(self) -> InverseField:
        """The transform that undoes this one, exactly and at any point: see :class:`InverseField`."""
        return InverseField(self)

    def displacement_at(self, points: ArrayLike, *, beyond: bool = False) -> Points:
        """(N, 3) mm at points (N, 3) in mm: linear between voxels.

        The grid's box ends half a voxel beyond the outermost centres, as in ITK; the field is constant up to there.

        Args:
            points: in the world.
            beyond: go on outside the box as at its edge; else the displacement is 0 there.
        """
        voxels = self.grid.to_voxels(points)
        places = torch.from_numpy(np.ascontiguousarray(voxels.T)).reshape(1, 3, -1, 1, 1)
        nowhere = torch.zeros(3, 4, dtype=torch.float64)  # the places are coordinates, not displacements
        values = warp(self.displacement[None].double(), places, affine=nowhere).reshape(3, -1).numpy().T
        return values if beyond else np.where(self.grid.holds_voxels(voxels)[:, None], values, 0.0)


@dataclass(frozen=True, eq=False)
class InverseField:
    """The inverse of a displacement field, solved for each point by fixed-point iteration (Chen et al., Med. Phys. 35,
    2008), with shorter steps where that does not come nearer.

    Points whose origin lies outside the field's grid stay, as they do under the field. A point inside the grid whose
    origin would lie outside is solved with the field going on as at its edge.

    Attributes:
        field: what is undone.
        tolerance: of the way back, as a part of the field's smallest voxel.
        iterations: the most that are made.
    """

    field: DisplacementField
    tolerance: float = 1e-3
    iterations: int = 100

    @property
    def tolerance_mm(self) -> float:
        """mm by which a point may miss its way back."""
        return self.tolerance * float(self.field.grid.spacing.min())

    def solve(self, points: ArrayLike) -> tuple[Points, NDArray[np.float64]]:
        """The origins of points (N, 3) in mm, and the distances (N,) in mm by which they miss their way back."""
        points = np.asarray(points, dtype=np.float64)
        found = points - self.field.displacement_at(points, beyond=True)
        offset = found + self.field.displacement_at(found, beyond=True) - points
        missed = np.linalg.norm(offset, axis=1)
        steps = np.ones(len(points))
        for _ in range(self.iterations):
            (open_ones,) = np.nonzero(missed > self.tolerance_mm)
            if not len(open_ones):
                break
            trial = found[open_ones] - steps[open_ones, None] * offset[open_ones]
            off = trial + self.field.displacement_at(trial, beyond=True) - points[open_ones]
            distance = np.linalg.norm(off, axis=1)
            nearer = distance < missed[open_ones]
            steps[open_ones[~nearer]] /= 2
            taken = open_ones[nearer]
            found[taken], offset[taken], missed[taken] = trial[nearer], off[nearer], distance[nearer]
        outside = ~self.field.grid.holds(points) & ~self.field.grid.holds(found)
        return np.where(outside[:, None], points, found), np.where(outside, 0.0, missed)

    def __call__(self, points: ArrayLike) -> Points:
        """See :class:`Transform`.

        Raises:
            ValueError: a point misses its way back by more than the tolerance: the field folds there, or is too steep.
        """
        found, missed = self.solve(points)
        if (off := int((missed > self.tolerance_mm).sum())) > 0:
            raise ValueError(
                f"{off} of {len(missed)} points have no inverse to {self.tolerance_mm:g} mm: they miss their way back "
                f"by up to {missed.max():.3g} mm; the field folds there or is too steep"
            )
        return found

    def inverse(self) -> DisplacementField:
        """The field itself."""
        return self.field


@dataclass(frozen=True, eq=False)
class Chain:
    """Transforms in a row; the first is the first that a point of the fixed image's world meets.

    Attributes:
        transforms: in that order.
    """

    transforms: Sequence[Transform]

    def __call__(self, points: ArrayLike) -> Points:
        """See :class:`Transform`."""
        mapped = np.asarray(points, dtype=np.float64)
        for transform in self.transforms:
            mapped = transform(mapped)
        return mapped

    def inverse(self) -> Chain:
        """The inverses in the opposite order."""
        return Chain([transform.inverse() for transform in reversed(self.transforms)])


def _voxels(grid: Grid) -> Points:
    """(N, 3): the indices of every voxel."""
    return np.indices(grid.size).reshape(3, -1).T.astype(np.float64)
