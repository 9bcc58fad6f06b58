"""A grid of voxels in the world: the one place that knows voxel, world, RAS, LPS and axis order."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import nibabel as nib
import numpy as np
from numpy.typing import ArrayLike, NDArray

Points = NDArray[np.float64]

DIRECTIONS = (("L", "R"), ("P", "A"), ("I", "S"))
"""Of the axes of the world, from low to high."""

_ROUNDING = 1e-9  # of a voxel
_FLAT = 1e-6  # volume that three axes of length 1 span; headers hold float32


def lps_to_ras(points: ArrayLike) -> Points:
    """Points (N, 3) in mm, from ITK's world (left, posterior, superior) to NIfTI's, or back."""
    return np.asarray(points, dtype=np.float64) * (-1.0, -1.0, 1.0)


def is_singular(affine: ArrayLike) -> bool:
    """Whether the axes of an affine (4, 4) do not span the world: one has no length, or they lie in a plane.

    Judged by their directions, so that voxels of a micrometre are as good as voxels of a metre.
    """
    axes = np.asarray(affine, dtype=np.float64)[:3, :3]
    lengths = np.linalg.norm(axes, axis=0)
    return bool(lengths.min() == 0 or abs(np.linalg.det(axes / lengths)) < _FLAT)


@dataclass(frozen=True, eq=False)
class Grid:
    """A box of voxels in the world.

    Attributes:
        size: number of voxels along each axis of the array: (X, Y, Z) for a NIfTI file, (D, H, W) for a tensor.
        affine: (4, 4), from voxel indices in the order of the array's axes to mm in the world (x right, y anterior, z
            superior). A voxel's centre has whole indices.
    """

    size: tuple[int, int, int]
    affine: NDArray[np.float64]

    def __post_init__(self) -> None:
        affine = np.array(self.affine, dtype=np.float64)
        if affine.shape != (4, 4) or not np.isfinite(affine).all() or is_singular(affine):
            raise ValueError(f"affine must be (4, 4), finite and invertible, not {np.asarray(self.affine).tolist()}")
        affine.setflags(write=False)
        object.__setattr__(self, "affine", affine)
        object.__setattr__(self, "size", tuple(int(length) for length in self.size))

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Grid) and self.size == other.size and np.array_equal(self.affine, other.affine)

    def __hash__(self) -> int:
        return hash((self.size, self.affine.tobytes()))

    @property
    def spacing(self) -> Points:
        """(3,) mm between the centres of neighbours along each axis."""
        return np.linalg.norm(self.affine[:3, :3], axis=0)

    @property
    def centre(self) -> Points:
        """(3,) mm: the middle of the box."""
        return self.to_world((np.array(self.size)[None] - 1) / 2)[0]

    @property
    def corners(self) -> Points:
        """(8, 3) mm: the corners of the box, half a voxel beyond the centres of the outermost voxels."""
        ends = [(-0.5, length - 0.5) for length in self.size]
        return self.to_world(np.array([(i, j, k) for i in ends[0] for j in ends[1] for k in ends[2]]))

    @property
    def orientation(self) -> str:
        """Three letters: the direction of the world that each axis of the array runs in, as far as it runs in one."""
        return "".join(nib.orientations.aff2axcodes(self.affine, DIRECTIONS))

    def to_world(self, voxels: ArrayLike) -> Points:
        """Points (N, 3) in mm of voxel indices in the order of the array's axes."""
        return np.asarray(voxels, dtype=np.float64) @ self.affine[:3, :3].T + self.affine[:3, 3]

    def to_voxels(self, points: ArrayLike) -> Points:
        """Voxel indices (N, 3), in the order of the array's axes, of points in mm."""
        inverse = np.linalg.inv(self.affine)
        return np.asarray(points, dtype=np.float64) @ inverse[:3, :3].T + inverse[:3, 3]

    def holds(self, points: ArrayLike) -> NDArray[np.bool_]:
        """Which points (N, 3) in mm lie in the box."""
        return self.holds_voxels(self.to_voxels(points))

    def holds_voxels(self, voxels: ArrayLike) -> NDArray[np.bool_]:
        """Which voxel indices (N, 3), in the order of the array's axes, lie in the box."""
        voxels = np.asarray(voxels, dtype=np.float64)
        return np.all((voxels >= -0.5 - _ROUNDING) & (voxels <= np.array(self.size) - 0.5 + _ROUNDING), axis=1)

    def reoriented(self, orientation: str) -> Grid:
        """The same voxels, with axes in the order and the directions that three letters name.

        Axes are exchanged and turned round, nothing is interpolated: an oblique grid stays oblique.
        """
        wanted = nib.orientations.axcodes2ornt(tuple(orientation), DIRECTIONS)
        turn = nib.orientations.ornt_transform(nib.orientations.io_orientation(self.affine), wanted)
        size = [0, 0, 0]
        for axis, (target, _) in enumerate(turn):
            size[int(target)] = self.size[axis]
        return self._on(size, self.affine @ nib.orientations.inv_ornt_aff(turn, self.size))

    def resized(self, size: Sequence[int]) -> Grid:
        """The same box, cut into another number of voxels."""
        factors = np.array(self.size) / np.array(size)
        scale = np.diag([*factors, 1.0])
        scale[:3, 3] = (factors - 1) / 2
        return self._on(size, self.affine @ scale)

    def cropped(self, start: Sequence[int], stop: Sequence[int]) -> Grid:
        """The voxels from ``start`` up to, not including, ``stop``; negative or beyond the size: outside this grid."""
        shift = np.eye(4)
        shift[:3, 3] = start
        return self._on([last - first for first, last in zip(start, stop, strict=True)], self.affine @ shift)

    def with_spacing(self, spacing: Sequence[float], size: Sequence[int]) -> Grid:
        """Voxels of a spacing in mm, as many as ``size`` says, around the same centre and along the same axes."""
        affine = self.affine.copy()
        affine[:3, :3] *= np.array(spacing) / self.spacing
        affine[:3, 3] = self.centre - affine[:3, :3] @ ((np.array(size) - 1) / 2)
        return self._on(size, affine)

    def overlap(self, other: Grid) -> float:
        """The share of this box that lies in the other one, from 0 to 1, by a raster of 20 points along each axis."""
        steps = (np.arange(20) + 0.5) / 20
        raster = np.stack(np.meshgrid(steps, steps, steps, indexing="ij"), -1).reshape(-1, 3)
        return float(other.holds(self.to_world(raster * self.size - 0.5)).mean())

    def _on(self, size: Sequence[int], affine: NDArray[np.float64]) -> Grid:
        return Grid((int(size[0]), int(size[1]), int(size[2])), affine)
