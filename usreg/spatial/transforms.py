"""Transforms from points of the fixed image's world to points of the moving image's world, RAS, in mm."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol

import numpy as np
import torch
from numpy.typing import ArrayLike, NDArray

from usreg_kernels import warp
from usreg_kernels.fields import PaddingMode

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
    """``points + displacement(points)``, linear between the voxels of a grid. Outside the grid points stay.

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
        return points + self._at(self.grid.to_voxels(points)).T

    def inverse(self, tolerance: float = 1e-3, iterations: int = 100) -> DisplacementField:
        """The inverse on the same grid, by fixed-point iteration (Chen et al., Med. Phys. 35, 2008).

        For points that come from outside, the field goes on as it is at the grid's edge.

        Args:
            tolerance: mm, by which a point may miss its way back.
            iterations: the most that are made.

        Raises:
            ValueError: points still miss by more than the tolerance: the field folds, or is too steep.
        """
        centres = self.grid.to_world(_voxels(self.grid))
        found = np.zeros_like(centres)
        for _ in range(iterations):
            back = -self._at(self.grid.to_voxels(centres + found), "border").T
            missed = np.abs(back - found).max()
            found = back
            if missed <= tolerance:
                return DisplacementField(self.grid, torch.from_numpy(found.T.reshape(3, *self.grid.size).copy()))
        raise ValueError(
            f"this field has no inverse to {tolerance:g} mm: after {iterations} iterations points miss their way back "
            f"by up to {missed:.3g} mm; it folds or is too steep"
        )

    def _at(self, voxels: Points, padding_mode: PaddingMode = "zeros") -> Points:
        """(3, N) mm at voxel indices (N, 3)."""
        places = torch.from_numpy(np.ascontiguousarray(voxels.T)).reshape(1, 3, -1, 1, 1)
        nowhere = torch.zeros(3, 4, dtype=torch.float64)  # the places are coordinates, not displacements
        values = warp(self.displacement[None].double(), places, affine=nowhere, padding_mode=padding_mode)
        return values.reshape(3, -1).numpy()


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
