"""The inverse of a displacement field, by damped fixed-point iteration, coarse to fine.

The iteration of Chen et al., Med. Phys. 35, 2008, takes the whole of what a point misses back. It only converges where
the field stretches lengths by less than two, and registrations stretch more than that. Half of it converges up to four.
"""

from __future__ import annotations

import math

import numpy as np
import torch

from usreg_kernels import compose_ddf, warp

from ..spatial import Grid, vector_lengths
from .levels import move_field

DAMPING = 0.5
"""How much of a miss an iteration takes back."""

SLOWEST = 0.9
"""What of the mean miss an iteration may leave; where a field folds, or points leave the grid, more would not help."""

SMALLEST = 32
"""Voxels along the shortest axis of a field that is inverted on half as many voxels first."""


def invert_field(ddf: torch.Tensor, tolerance: float = 0.01, iterations: int = 40) -> tuple[torch.Tensor, float]:
    """The field that undoes ``x + ddf(x)``.

    Args:
        ddf: (1, 3, D, H, W) in voxels.
        tolerance: voxels by which a point may miss its way back, on average.
        iterations: the most that are made.

    Returns:
        (1, 3, D, H, W) in voxels, and the mean distance by which points miss.
    """
    inverse = _first_guess(ddf, tolerance, iterations)
    missed, before = compose_ddf(ddf, inverse), math.inf
    for _ in range(iterations):
        distance = vector_lengths(missed).mean().item()
        if distance <= tolerance or distance > SLOWEST * before:
            break
        inverse.sub_(missed, alpha=DAMPING)
        missed, before = compose_ddf(ddf, inverse), distance
    return inverse, _mean_inside(missed, inverse)


def _first_guess(ddf: torch.Tensor, tolerance: float, iterations: int) -> torch.Tensor:
    """The inverse on half as many voxels along each axis, on the voxels of the field; its negative for a small one."""
    size = tuple(ddf.shape[2:])
    if min(size) < 2 * SMALLEST:
        return -ddf
    grid = Grid((int(size[0]), int(size[1]), int(size[2])), np.eye(4))
    half = grid.resized([length // 2 for length in size])
    coarse, _ = invert_field(move_field(ddf, grid, half), tolerance, iterations)
    return move_field(coarse, half, grid)


def miss_of(first: torch.Tensor, second: torch.Tensor) -> float:
    """Mean distance, voxels, from each voxel to where the two fields in a row take it, beginning with ``second``.

    Points that leave the grid on the way do not count: nothing is known there.
    """
    return _mean_inside(compose_ddf(first, second), second)


def _mean_inside(missed: torch.Tensor, field: torch.Tensor) -> float:
    """Mean length, voxels, over the voxels that the field does not take out of the grid."""
    inside = warp(torch.ones_like(field[:, :1]), field, padding_mode="zeros")[:, 0] >= 1
    distances = vector_lengths(missed)[inside]
    return distances.mean().item() if distances.numel() else 0.0
