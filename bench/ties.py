"""Where the gradient of MIND is that of one distance or of another, as rounding has it.

Of the distances of a voxel the lowest is taken from all. Where two are lowest but for rounding, each is a gradient, and
no backend is wrong (docs/losses.md). A brain has some million voxels, so that a few such places are in any in float32.
"""

from __future__ import annotations

import torch

import usreg_kernels as uk

ROUNDING = 1e-6
"""Of a distance in float32, beside the mean of the voxel's distances: as far apart two may be and count as equal."""

RADIUS, DILATION = 2, 2
"""Of ``mind_loss``, by default: as far a voxel's distances see, all in all."""


def has_one_gradient(image: torch.Tensor) -> torch.Tensor:
    """For each voxel of an image (B, C, spatial...), whether no distances that it takes part in are lowest together."""
    result = torch.ones(image.shape, dtype=torch.bool)
    reach = RADIUS + DILATION
    for sample, channel, *place in _ties(image.detach().double().cpu()).nonzero().tolist():
        around = tuple(slice(max(0, at - reach), at + reach + 1) for at in place)
        result[(sample, channel, *around)] = False
    return result


def _ties(image: torch.Tensor) -> torch.Tensor:
    """Where a second channel of the descriptor is as near to 1 as the lowest distance's, which is 1 exactly."""
    descriptor = uk.mind_ssc(image, radius=RADIUS, dilation=DILATION)
    second = descriptor.unflatten(1, (image.shape[1], -1)).topk(2, dim=2).values[:, :, 1]
    return second >= 1 - ROUNDING
