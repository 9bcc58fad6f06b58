"""The levels of a registration: the same box, cut into fewer voxels."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
import torch

from usreg_kernels import gaussian_smooth, warp

from ...spatial import Grid

if TYPE_CHECKING:
    from .overlap import Overlap

SMOOTHING = 0.5
"""Standard deviation of the smoothing before a level's voxels are taken, in voxels of the level."""

FEWEST_VOXELS = 24
"""Along each axis of a level, unless the image itself has fewer: windows of 9 voxels must see more than one place."""


@dataclass(frozen=True)
class Level:
    """An image on one level.

    Attributes:
        image: (1, C, D, H, W).
        grid: of the image; its axes are those of the tensor.
        overlap: of a moving level: the term of the labels beside the loss.
    """

    image: torch.Tensor
    grid: Grid
    overlap: Overlap | None = None


def make_levels(image: torch.Tensor, grid: Grid, factors: Sequence[float]) -> list[Level]:
    """An image on levels with voxels that many times as long, coarse or fine as they come.

    Args:
        image: (1, C, D, H, W).
        grid: of the image.
        factors: 1 is the image as it is.
    """
    return [_make_level(image, grid, factor) for factor in factors]


def _make_level(image: torch.Tensor, grid: Grid, factor: float) -> Level:
    size = [max(min(FEWEST_VOXELS, length), round(length / factor)) for length in grid.size]
    if size == list(grid.size):
        return Level(image, grid)
    steps = [old / new for old, new in zip(grid.size, size, strict=True)]
    smoothed = gaussian_smooth(image, [SMOOTHING * step if step > 1 else 0.0 for step in steps])
    coarse = grid.resized(size)
    return Level(warp(smoothed, affine=between(coarse, grid, image), size=size), coarse)


def between(source: Grid, target: Grid, like: torch.Tensor) -> torch.Tensor:
    """(3, 4): from voxels of one grid to those of another in the same world; dtype and device are those of ``like``."""
    matrix = np.linalg.inv(target.affine) @ source.affine
    return torch.from_numpy(matrix[:3]).to(like)


def move_field(ddf: torch.Tensor, source: Grid, target: Grid) -> torch.Tensor:
    """A displacement field on another grid over the same box.

    Args:
        ddf: (1, 3, D, H, W) in voxels of ``source``.

    Returns:
        (1, 3, D', H', W') in voxels of ``target``.
    """
    if source == target:
        return ddf
    moved = warp(ddf, affine=between(target, source, ddf), size=target.size)
    scale = torch.tensor([new / old for new, old in zip(target.size, source.size, strict=True)])
    return moved.mul_(scale.to(moved).view(1, 3, 1, 1, 1))
