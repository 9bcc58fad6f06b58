"""Slices of a volume as radiologists look at them: the patient's right on the left, anterior and superior on top."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import nibabel as nib
import numpy as np
from numpy.typing import NDArray

from ..spatial import Grid
from ..spatial.grid import DIRECTIONS

ORIENTATION = "LPI"
"""Where the axes of a turned volume run to: rows and columns of its slices then begin at the top left."""


@dataclass(frozen=True)
class Plane:
    """A slice of a turned volume.

    Attributes:
        name: ``"axial"``, ``"coronal"`` or ``"sagittal"``.
        axis: of the turned volume, across the plane.
        letters: the directions at the left, right, top and bottom edge.
    """

    name: str
    axis: int
    letters: str

    @property
    def rows(self) -> int:
        """The axis of the turned volume that runs down."""
        return 1 if self.axis == 2 else 2

    @property
    def columns(self) -> int:
        """The axis of the turned volume that runs to the right."""
        return 1 if self.axis == 0 else 0


PLANES = (Plane("axial", 2, "RLAP"), Plane("coronal", 1, "RLSI"), Plane("sagittal", 0, "APSI"))


class Viewer:
    """Cuts slices out of volumes on one grid.

    Args:
        grid: of the volumes; of an oblique one the slices lie along its own axes.
        place: (3,) voxel indices on ``grid`` that the slices go through; the middle without it.

    Attributes:
        grid: turned to :data:`ORIENTATION`.
        planes: of the three those that have an extent.
    """

    def __init__(self, grid: Grid, place: Sequence[float] | None = None) -> None:
        wanted = nib.orientations.axcodes2ornt(tuple(ORIENTATION), DIRECTIONS)
        self._turn = nib.orientations.ornt_transform(nib.orientations.io_orientation(grid.affine), wanted)
        self.grid = grid.reoriented(ORIENTATION)
        world = grid.centre if place is None else grid.to_world([place])[0]
        at = np.round(self.grid.to_voxels([world])[0]).astype(int)
        self.at = np.clip(at, 0, np.array(self.grid.size) - 1)
        self.planes = [p for p in PLANES if min(self.grid.size[p.rows], self.grid.size[p.columns]) > 1]

    def turned(self, volume: NDArray[Any]) -> NDArray[Any]:
        """A volume (X, Y, Z) of the grid, with the axes of :data:`ORIENTATION`."""
        turned: NDArray[Any] = nib.orientations.apply_orientation(volume, self._turn)
        return turned

    def slice(self, volume: NDArray[Any], plane: Plane) -> NDArray[Any]:
        """The slice (rows, columns) of a volume (X, Y, Z) of the grid."""
        taken: NDArray[Any] = np.take(self.turned(volume), self.at[plane.axis], axis=plane.axis)
        return taken.T

    def aspect(self, plane: Plane) -> float:
        """Height over width of a voxel."""
        return float(self.grid.spacing[plane.rows] / self.grid.spacing[plane.columns])

    def extent(self, plane: Plane) -> tuple[float, float]:
        """Height and width of the slice, mm."""
        lengths = np.array(self.grid.size) * self.grid.spacing
        return float(lengths[plane.rows]), float(lengths[plane.columns])

    def title(self, plane: Plane) -> str:
        """The plane and where it is in the world (RAS)."""
        axis = 2 - PLANES.index(plane)
        return f"{plane.name}\n{'xyz'[axis]} = {self.grid.to_world([self.at])[0][axis]:.0f} mm"
