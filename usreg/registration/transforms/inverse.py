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

ROUNDS, STEPS = 6, 2
"""The most corrections of the other order, and the steps of conjugate gradients in each."""

WEIGHT, TURN = 2.5, 1.5
"""Of a miss of the other order beside one of its own at first, and the most that it changes by from one correction to
the next."""

ROUNDING = 0.05
"""Voxels: smaller misses do not count more than this one."""

SMALLEST_SIZE = 1e-6
"""Of the diagonal that conditions the conjugate gradients: where the field folds it may be 0."""


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
        inverse = compose_ddf(inverse, missed.mul_((-LONGEST / lengths.clamp_min_(LONGEST))[:, None]))
        missed = compose_ddf(ddf, inverse)
    return inverse, _mean_inside(missed, inverse)


def invert_both_ways(ddf: torch.Tensor) -> tuple[torch.Tensor, float, float]:
    """The field that undoes ``x + ddf(x)``, and that ``ddf`` undoes as well as voxels allow.

    An exact inverse at the voxels is none between them: where the field is rough, points that go through the field
    first miss by more. Where that is more than :data:`MISS` on average, a few corrections share the miss between the
    two orders: they make the sum of all distances small, by least squares that are weighed by one over the distances so
    far, with a few steps of conjugate gradients each.

    Args:
        ddf: (1, 3, D, H, W) in voxels.

    Returns:
        (1, 3, D, H, W) in voxels, and the mean distance by which points miss that go through the inverse first, and
        through the field first.
    """
    inverse, own = invert_field(ddf)
    found = inverse, own, miss_of(inverse, ddf)
    weight = WEIGHT
    for _ in range(ROUNDS):
        if max(found[1:]) <= max(MISS, own):
            break
        inverse = _corrected(ddf, inverse, weight)
        missed = miss_of(ddf, inverse), miss_of(inverse, ddf)
        if max(missed) < max(found[1:]):
            found = inverse, *missed
        weight *= min(max(missed[1] / max(missed[0], 1e-12), 1 / TURN), TURN)
    return found


def _corrected(ddf: torch.Tensor, inverse: torch.Tensor, weight: float) -> torch.Tensor:
    """The inverse after a step towards the lowest sum of its own misses and ``weight`` times those of the other order.

    A change ``c`` of the inverse changes its own misses by ``(1 + gradient of ddf) c`` at each voxel, and those of the
    other order by ``c`` where ``ddf`` leads.
    """
    own, slopes = _with_slopes(ddf, inverse)
    other = compose_ddf(inverse, ddf)
    own_weights = _inside(inverse) / (vector_lengths(own)[:, None] + ROUNDING) + ROUNDING
    other_weights = weight * _inside(ddf) / (vector_lengths(other)[:, None] + ROUNDING)

    def back(misses: torch.Tensor) -> torch.Tensor:
        return sum((slopes[:, row] * misses[:, row : row + 1] for row in range(3)), torch.zeros(()))

    def normal(change: torch.Tensor) -> torch.Tensor:
        moved = torch.stack([(slopes[:, row] * change).sum(dim=1) for row in range(3)], dim=1)
        return back(own_weights * moved) + _spread(other_weights * warp(change, ddf), ddf)

    left = -back(own_weights * own) - _spread(other_weights * other, ddf)
    size = own_weights * slopes.square().sum(dim=1) + _spread(other_weights.expand_as(ddf).contiguous(), ddf)
    size = size.clamp(min=SMALLEST_SIZE)
    change, direction, before = torch.zeros_like(ddf), left / size, (left * left / size).sum()
    for _ in range(STEPS):
        if before == 0:
            break
        moved = normal(direction)
        length = before / (direction * moved).sum()
        change, left = change + length * direction, left - length * moved
        now = (left * left / size).sum()
        direction, before = left / size + now / before * direction, now
    return inverse + change


def _with_slopes(ddf: torch.Tensor, inverse: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """What inverse and field in a row miss by, and how it changes with the inverse, (1, 3, 3, D, H, W)."""
    with torch.enable_grad():
        leaf = inverse.detach().requires_grad_()
        missed = compose_ddf(ddf, leaf)
        rows = [torch.autograd.grad(missed[:, row].sum(), leaf, retain_graph=row < 2)[0] for row in range(3)]
    return missed.detach(), torch.stack(rows, dim=1)


def _spread(values: torch.Tensor, ddf: torch.Tensor) -> torch.Tensor:
    """Each value added to the voxels around the place where the field leads: the adjoint of warping by it."""
    with torch.enable_grad():
        image = torch.zeros_like(values).requires_grad_()
        return torch.autograd.grad((warp(image, ddf) * values).sum(), image)[0]


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
    distances = vector_lengths(missed)[_inside(field)[:, 0] > 0]
    return distances.mean().item() if distances.numel() else 0.0


def _inside(field: torch.Tensor) -> torch.Tensor:
    """(1, 1, D, H, W): 1 for the voxels that the field does not take out of the grid, 0 for the others."""
    return (warp(torch.ones_like(field[:, :1]), field, padding_mode="zeros") >= 1).to(field.dtype)
