"""Target registration error: how far from its true place the field sends each landmark."""

from __future__ import annotations

from collections.abc import Sequence

import torch

import usreg_kernels as uk

from .utils import register_metric


def sample_at_points(field: torch.Tensor, points: torch.Tensor) -> torch.Tensor:
    """Trilinear values of a field (C, D, H, W) at points (N, 3) in voxels z, y, x: (N, C).

    Points outside the volume get the value of its nearest face.
    """
    coordinates = points.to(field).T.reshape(1, 3, 1, 1, -1)
    nowhere = field.new_zeros(3, 4)  # instead of each output voxel's own index
    return uk.warp(field[None], coordinates, affine=nowhere)[0, :, 0, 0].T


@register_metric("tre")
def target_registration_error(
    ddf: torch.Tensor,
    fixed_points: Sequence[torch.Tensor],
    moving_points: Sequence[torch.Tensor],
    spacing: torch.Tensor | None = None,
    moving_spacing: torch.Tensor | None = None,
    affine: torch.Tensor | None = None,
    moving_affine: torch.Tensor | None = None,
) -> torch.Tensor:
    """Mean distance of ``p + ddf(p)`` to the corresponding moving point, over the fixed points p of each sample.

    Both ends lie in the moving image, so its affine turns voxels into mm; on a shared grid that is the fixed image's.

    Args:
        ddf: (B, 3, D, H, W) in voxels, channels z, y, x; sampled trilinearly between voxels.
        fixed_points: per sample (N, 3) in voxels z, y, x.
        moving_points: per sample the corresponding (N, 3).
        spacing: (B, 3) mm per voxel z, y, x, used where there is no affine and no ``moving_spacing``.
        moving_spacing: (B, 3) mm per voxel z, y, x of the moving image, used where there is no affine.
        affine: (B, 4, 4) from voxels z, y, x of the fixed image to mm, used where ``moving_affine`` is absent.
        moving_affine: (B, 4, 4) of the moving image.

    Returns:
        (B,) in mm, or in voxels where neither affine nor spacing is known; NaN for a sample without points.
    """
    to_mm = _to_mm(
        affine if moving_affine is None else moving_affine, spacing if moving_spacing is None else moving_spacing
    )
    errors = []
    for number, (field, fixed, moving) in enumerate(zip(ddf, fixed_points, moving_points, strict=True)):
        fixed, moving = fixed.to(field), moving.to(field)
        offset = fixed + sample_at_points(field, fixed) - moving
        if to_mm is not None:
            offset = offset @ to_mm[number].to(field).T
        errors.append(offset.norm(dim=1).mean())
    return torch.stack(errors)


def _to_mm(affine: torch.Tensor | None, spacing: torch.Tensor | None) -> torch.Tensor | None:
    """(B, 3, 3): what turns a distance in voxels z, y, x into one in mm."""
    if affine is not None:
        return affine[:, :3, :3]
    return None if spacing is None else torch.diag_embed(spacing)
