"""The grid of a sample: which box of the world its voxels cut up, and bringing volumes onto it."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch

from ..errors import DataError
from ..io.manifest import Case
from ..spatial import Grid, resample
from .case_files import SIDES, CaseFiles, at

_SAME_BOX = 2.0  # voxels by which the corners of two images may differ before a case is worth a warning
_WHOLE = 1e-6  # of a voxel: rounding of sizes in mm


@dataclass(frozen=True)
class GridRule:
    """How the grids of a case's samples follow from its files. All grids have the axes z, y, x of the sample's array.

    Attributes:
        image_size: (D, H, W) in voxels.
        orientation: directions of the axes x, y, z of the sample.
        spacing: mm per voxel z, y, x, cropped or padded around the centre of the box; None stretches the box.
        reference: the volume whose foreground is the one box for all volumes of a case; None gives each image the box
            of its own file.
        margin: mm around that foreground.
    """

    image_size: tuple[int, int, int]
    orientation: str
    spacing: tuple[float, float, float] | None = None
    reference: str | None = None
    margin: float = 0.0

    def on(self, box: Grid) -> Grid:
        """The sample's grid on a box of voxels, whose axes may run in any direction."""
        turned = box.reoriented(self.orientation[::-1])
        if self.spacing is None:
            return turned.resized(self.image_size)
        return turned.with_spacing(self.spacing, self.image_size)

    def grids(self, files: CaseFiles) -> dict[str, Grid]:
        """The grids of the moving and of the fixed image of a case, in this order; one and the same with a reference.

        Raises:
            DataError: the reference cannot be read, or is empty.
        """
        own = {side: files.grid(side) for side in SIDES}
        if self.reference is None:
            return {side: self.on(grid) for side, grid in own.items()}
        if self.reference not in files.case.files:
            raise DataError(f"{files.case.where}: has no '{self.reference}', which align_reference names")
        voxels, grid = files.volume(self.reference)
        image = own[self.reference.partition("_")[0]]
        foreground = foreground_of(voxels, image=self.reference in own)
        if not foreground.any():
            with at(files.case, self.reference):
                raise DataError(f"{files.case.files[self.reference]}: is empty; align_reference needs a foreground")
        shared = self.on(foreground_box(foreground, grid, self.margin, image))
        return dict.fromkeys(own, shared)


def foreground_of(voxels: torch.Tensor, image: bool) -> np.ndarray:
    """(X, Y, Z) bool of (C, X, Y, Z): where a channel is above 0, or of an image above its lowest value."""
    lowest = voxels.amin((1, 2, 3), keepdim=True) if image else torch.zeros(())
    foreground: np.ndarray = (voxels > lowest).any(dim=0).numpy()
    return foreground


def foreground_box(foreground: np.ndarray, grid: Grid, margin: float, image: Grid) -> Grid:
    """The box of the foreground (X, Y, Z) of a grid, plus a margin in mm as far as ``image`` reaches."""
    ends = []
    for axis in range(3):
        inside = np.flatnonzero(foreground.any(axis=tuple(other for other in range(3) if other != axis)))
        ends.append((inside[0], inside[-1] + 1))
    start, stop = np.array(ends).T
    more = np.ceil(margin / grid.spacing - _WHOLE).astype(int)
    corners = np.rint(grid.to_voxels(image.corners) + 0.5).astype(int)
    start = np.minimum(start, np.maximum(start - more, corners.min(axis=0)))
    stop = np.maximum(stop, np.minimum(stop + more, corners.max(axis=0)))
    return grid.cropped(start, stop)


def inside(source: Grid, target: Grid) -> torch.Tensor | None:
    """(D, H, W) bool: which voxels of ``target`` have their centre in the box of ``source``; None where all have."""
    ends = [(0, length - 1) for length in target.size]
    outermost = target.to_world(np.stack(np.meshgrid(*ends, indexing="ij"), -1).reshape(-1, 3))
    if source.holds(outermost).all():
        return None
    centres = target.to_world(np.indices(target.size).reshape(3, -1).T)
    return torch.from_numpy(source.holds(centres).reshape(target.size))


def image_on(volume: torch.Tensor, source: Grid, target: Grid, pad: bool) -> torch.Tensor:
    """An image (C, X, Y, Z) on the sample's grid, linear, smoothed against aliasing where that is coarser.

    Args:
        pad: outside the file, take each channel's lowest value in place of its edge.
    """
    found = resample(volume, source, target, antialias=True)
    if pad and (there := inside(source, target)) is not None:
        found = torch.where(there, found, volume.amin((1, 2, 3), keepdim=True))
    return found.contiguous()


def overlay_on(volume: torch.Tensor, source: Grid, target: Grid, nearest: bool) -> torch.Tensor:
    """A label or mask (C, X, Y, Z) on the sample's grid, 0 outside its file.

    Args:
        nearest: the value of the nearest voxel; else linear, smoothed against aliasing, for the share of a voxel that
            is inside.
    """
    if nearest:
        found = resample(volume, source, target, mode="nearest")
    else:
        found = resample(volume, source, target, antialias=True)
    there = inside(source, target)
    return (found if there is None else found * there).contiguous()


def boxes_apart(moving: Grid, fixed: Grid, orientation: str) -> str | None:
    """In words, how far the boxes of two files differ in the world; None where they differ by a voxel or two."""
    corners = [grid.reoriented(orientation[::-1]).corners for grid in (moving, fixed)]
    voxel = max(moving.spacing.max(), fixed.spacing.max())
    if np.linalg.norm(corners[0] - corners[1], axis=1).max() <= _SAME_BOX * voxel:
        return None
    distance = np.linalg.norm(moving.centre - fixed.centre)
    share = 100 * fixed.overlap(moving)
    return f"centres {distance:.1f} mm apart, {share:.0f} % of the fixed image is in the moving one"


def describe_boxes(split: str, apart: Sequence[tuple[Case, str]], total: int, spacing: bool, listed: int = 10) -> str:
    """The warning for cases whose images lie in different boxes, where no shared grid is asked for."""
    what = "keeps its own centre" if spacing else "is stretched to image_size by itself"
    lines = [f"{case.where}: {words}" for case, words in apart[:listed]]
    if len(apart) > listed:
        lines.append(f"... and {len(apart) - listed} more cases")
    return "\n".join(
        [
            f"'{split}': the files of moving and fixed cover different boxes in {len(apart)} of {total} cases. Each "
            f"image {what}, so that their places in the world are lost. Where the headers share one world, set "
            "align_shared_grid: true",
            *lines,
        ]
    )
