"""Resampling: an image on another grid, through a transform, with one interpolation."""

from __future__ import annotations

import numpy as np
import torch

from usreg_kernels import gaussian_smooth, warp
from usreg_kernels.fields import Interpolation, PaddingMode

from .grid import Grid
from .transforms import Affine, Chain, DisplacementField, Transform

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
        padding_mode: what lies outside the source. ``"zeros"`` begins half a voxel beyond the outermost centres, as in
            ITK; the edge is repeated up to there.
        antialias: smooth the axes first that the target samples more coarsely than one voxel, with a Gaussian of the
            usual sigma, (voxels per sample - 1) / 2.

    Returns:
        (C, spatial...) on ``target``, float32, or float64 where the volume is. The same voxels, perhaps turned and
        exchanged, come back exactly.
    """
    if transform is None:
        transform = Affine(np.eye(4))
    if padding_mode == "zeros" and mode == "bilinear":
        found = resample(volume, source, target, transform, antialias=antialias)
        whole = found.new_ones(1, *source.size)
        inside = resample(whole, source, target, transform, mode="nearest", padding_mode="zeros")
        return found.masked_fill(inside < 0.5, 0)
    if isinstance(transform, Affine):
        matrix = _whole(np.linalg.inv(source.affine) @ transform.matrix @ target.affine)
        smoothed = _smoothed(volume, matrix) if antialias else volume
        affine = torch.from_numpy(matrix[:3]).to(smoothed)
        return warp(smoothed[None], affine=affine, size=target.size, mode=mode, padding_mode=padding_mode)[0]
    if antialias:
        volume = _smoothed(volume, np.linalg.inv(source.affine) @ target.affine)
    if (field := _field_on(target, transform)) is not None:
        affine, ddf = _in_voxels(field, _affines_after(transform), source, target)
        return warp(volume[None], ddf.to(volume), affine=affine.to(volume), mode=mode, padding_mode=padding_mode)[0]
    centres = target.to_world(np.indices(target.size).reshape(3, -1).T)
    places = torch.from_numpy(source.to_voxels(transform(centres)).T.reshape(1, 3, *target.size)).to(volume)
    nowhere = volume.new_zeros(3, 4)  # the places are coordinates, not displacements
    return warp(volume[None], places, affine=nowhere, mode=mode, padding_mode=padding_mode)[0]


def _field_on(target: Grid, transform: Transform) -> DisplacementField | None:
    """The field of a transform that begins with one on the target's own voxels and goes on with affines only."""
    first = transform.transforms[0] if isinstance(transform, Chain) and transform.transforms else transform
    if not isinstance(first, DisplacementField) or first.grid != target:
        return None
    rest = transform.transforms[1:] if isinstance(transform, Chain) else ()
    return first if all(isinstance(other, Affine) for other in rest) else None


def _affines_after(transform: Transform) -> np.ndarray:
    """The product of the affines that follow on the first transform of a chain."""
    matrix = np.eye(4)
    for other in transform.transforms[1:] if isinstance(transform, Chain) else ():
        matrix = other.matrix @ matrix  # type: ignore[attr-defined]
    return matrix


def _in_voxels(
    field: DisplacementField, after: np.ndarray, source: Grid, target: Grid
) -> tuple[torch.Tensor, torch.Tensor]:
    """The affine (3, 4) and the field (1, 3, spatial...) of a warp, in voxels of the source: the field as it is."""
    to_source = np.linalg.inv(source.affine) @ after
    matrix = _whole(to_source @ target.affine)
    ddf = torch.from_numpy(to_source[:3, :3]).to(field.displacement) @ field.displacement.flatten(1)
    return torch.from_numpy(matrix[:3]), ddf.reshape(1, 3, *target.size)


def _whole(matrix: np.ndarray) -> np.ndarray:
    """The matrix, with numbers that are whole up to rounding made whole: turned voxels come back exactly."""
    rounded = matrix.round()
    return np.where(np.abs(matrix - rounded) < _ROUNDING, rounded, matrix)


def _smoothed(volume: torch.Tensor, matrix: np.ndarray) -> torch.Tensor:
    """The volume, smoothed along its axes as far as a step of the target is longer than a voxel."""
    steps = np.linalg.norm(matrix[:3, :3], axis=1)
    sigma = np.maximum(0.0, (steps - 1) / 2)
    if sigma.max() < 1e-6:
        return volume
    return gaussian_smooth(volume[None], sigma.tolist(), truncate=4.0)[0]
