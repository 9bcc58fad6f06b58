"""The inverse of a displacement field, by fixed-point iteration (Chen et al., Med. Phys. 35, 2008)."""

from __future__ import annotations

import torch

from usreg_kernels import compose_ddf, warp


def invert_field(ddf: torch.Tensor, tolerance: float = 0.01, iterations: int = 60) -> tuple[torch.Tensor, float]:
    """The field that undoes ``x + ddf(x)``.

    Args:
        ddf: (1, 3, D, H, W) in voxels.
        tolerance: voxels by which a point may miss its way back, on average.
        iterations: the most that are made.

    Returns:
        (1, 3, D, H, W) in voxels, and the mean distance by which points miss.
    """
    inverse = -ddf
    missed = miss_of(ddf, inverse)
    for _ in range(iterations):
        if missed <= tolerance:
            break
        inverse = -warp(ddf, inverse)
        missed = miss_of(ddf, inverse)
    return inverse, missed


def miss_of(first: torch.Tensor, second: torch.Tensor) -> float:
    """Mean distance, voxels, from each voxel to where the two fields in a row take it, beginning with ``second``.

    Points that leave the grid on the way do not count: nothing is known there.
    """
    both = compose_ddf(first, second)
    inside = torch.ones_like(second[:, :1])
    inside = warp(inside, second, padding_mode="zeros")[:, 0] >= 1
    distances = both.norm(dim=1)[inside]
    return distances.mean().item() if distances.numel() else 0.0
