"""Resampling: an image on another grid, through a transform, with one interpolation."""

from __future__ import annotations

import numpy as np
import torch
from scipy.ndimage import gaussian_filter

from usreg_kernels import warp
from usreg_kernels.fields import Interpolation, PaddingMode

from .grid import Grid
from .transforms import Affine, Transform

_ROUNDING = 1e-8


def resample(
    volume: torch.Tensor,
    source: Grid,
    target: Grid,
    transform: Transform | None = None,
    *,
    mode: Interpolation = "bilinear",
    padding_mode: PaddingMode = "border",
    antialias: bool = False,
) -> torch.Tensor:
    """What lies at each voxel of ``target``, or at the point that ``transform`` maps it to.

    Args:
        volume: (C, spatial...) on ``source``.
        source: the grid of the volume.
        target: the grid of the result.
        transform: from the target's world to the source's; None: both are one world.
        mode: ``"bilinear"`` or ``"nearest"``.
        padding_mode: what lies outside the source.
        antialias: smooth the axes first that the target samples more coarsely than one voxel, with a Gaussian of the
            usual sigma, (voxels per sample - 1) / 2.

    Returns:
        (C, spatial...) on ``target``, float32, or float64 where the volume is. The same voxels, perhaps turned and
        exchanged, come back exactly.
    """
    if transform is None:
        transform = Affine(np.eye(4))
    if isinstance(transform, Affine):
        matrix = _whole(np.linalg.inv(source.affine) @ transform.matrix @ target.affine)
        smoothed = _smoothed(volume, matrix) if antialias else volume
        affine = torch.from_numpy(matrix[:3]).to(smoothed.dtype)
        return warp(smoothed[None], affine=affine, size=target.size, mode=mode, padding_mode=padding_mode)[0]
    if antialias:
        volume = _smoothed(volume, np.linalg.inv(source.affine) @ target.affine)
    centres = target.to_world(np.indices(target.size).reshape(3, -1).T)
    places = torch.from_numpy(source.to_voxels(transform(centres)).T.reshape(1, 3, *target.size)).to(volume.dtype)
    nowhere = torch.zeros(3, 4, dtype=volume.dtype)  # the places are coordinates, not displacements
    return warp(volume[None], places, affine=nowhere, mode=mode, padding_mode=padding_mode)[0]


def _whole(matrix: np.ndarray) -> np.ndarray:
    """The matrix with numbers that are whole but for rounding made whole, so that turned voxels come back exactly."""
    rounded = matrix.round()
    return np.where(np.abs(matrix - rounded) < _ROUNDING, rounded, matrix)


def _smoothed(volume: torch.Tensor, matrix: np.ndarray) -> torch.Tensor:
    """The volume, smoothed along its axes as far as a step of the target is longer than a voxel."""
    steps = np.linalg.norm(matrix[:3, :3], axis=1)
    sigma = np.maximum(0.0, (steps - 1) / 2)
    if sigma.max() < 1e-6:
        return volume
    return torch.from_numpy(gaussian_filter(volume.numpy(), sigma=(0, *sigma), mode="nearest"))
