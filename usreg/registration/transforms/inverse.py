"""The inverse of a displacement field, coarse to fine, by a Newton iteration that needs no derivative.

Where inverse and field in a row miss by ``e``, ``(id + ddf) o (id + inverse) = id + e``, the inverse that is sought is
``(id + inverse) o (id + e)^-1``, and ``(id + e)^-1`` is ``id - e`` but for what is quadratic in ``e``. So composing the
inverse with ``-e`` is a Newton step. ``e`` is held to half a voxel, within which fields are nearly linear. It
also ends where a field stretches lengths by more than two, where subtracting ``e`` (Chen et al., Med. Phys. 35, 2008)
does not.
"""

from __future__ import annotations

import math

import numpy as np
import torch

from usreg_kernels import compose_ddf, warp

from ...spatial import Grid, vector_lengths
from ..stages.levels import move_field

LONGEST = 0.5
"""Voxels that an iteration takes back of a miss, at most."""

SLOWEST = 0.9
"""What of the mean miss an iteration may leave; where a field folds, or points leave the grid, more would not help."""

SMALLEST = 12
"""Voxels along the shortest axis of a field that is inverted on half as many voxels first."""

MISS = 0.1
"""Voxels by which the two fields in a row may miss the identity on average, whichever comes first."""

ROUNDS = 2
"""The most corrections of the other order."""

OTHER, OWN = 0.7, 0.15
"""How much of a miss of the other and of its own order a correction takes back."""


def invert_field(ddf: torch.Tensor, tolerance: float = 0.01, iterations: int = 40) -> tuple[torch.Tensor, float]:
    """The field that undoes ``x + ddf(x)``.

    Args:
        ddf: (1, 3, D, H, W) in voxels.
        tolerance: voxels by which a point may miss its way back, on average.
        iterations: the most that are made.

    Returns:
        (1, 3, D, H, W) in voxels, and the mean distance by which points miss that go through the inverse first.
    """
    inverse = _first_guess(ddf, tolerance, iterations)
    missed, before = compose_ddf(ddf, inverse), math.inf
    for _ in range(iterations):
        lengths = vector_lengths(missed)
        distance = lengths.mean().item()
        if distance <= tolerance or distance > SLOWEST * before:
            break
        before = distance
        step = missed.mul_((-LONGEST / lengths.clamp_min_(LONGEST))[:, None])
        inverse = compose_ddf(inverse, step)
        missed = compose_ddf(ddf, inverse)
    return inverse, _mean_inside(missed, inverse)


def invert_both_ways(ddf: torch.Tensor) -> tuple[torch.Tensor, float, float]:
    """The field that undoes ``x + ddf(x)``, and that ``ddf`` undoes as well as voxels allow.

    An exact inverse at the voxels is none between them: where the field is rough, points that go through the field
    first miss by more. A few corrections share the miss between the two orders.

    Args:
        ddf: (1, 3, D, H, W) in voxels.

    Returns:
        (1, 3, D, H, W) in voxels, and the mean distance by which points miss that go through the inverse first, and
        through the field first.
    """
    inverse, missed = invert_field(ddf)
    for round_ in range(ROUNDS + 1):
        other = compose_ddf(inverse, ddf)
        other_missed = _mean_inside(other, ddf)
        if round_ == ROUNDS or other_missed <= max(MISS, missed):
            break
        inverse = inverse.sub_(warp(other, inverse), alpha=OTHER)
        inverse = inverse.sub_(compose_ddf(ddf, inverse), alpha=OWN)
        missed = miss_of(ddf, inverse)
    return inverse, missed, other_missed


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
