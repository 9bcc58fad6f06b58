"""Metrics of how well the warped moving label covers the fixed one, per sample and label channel.

Labels are (B, L, D, H, W) in [0, 1]; a voxel is inside where the value exceeds 0.5. A channel that is empty in the
fixed or in the moving label is absent there: its value is NaN.
"""

from __future__ import annotations

import warnings

import numpy as np
import torch
from monai.metrics.hausdorff_distance import compute_hausdorff_distance
from monai.metrics.surface_distance import compute_average_surface_distance
from numpy.typing import NDArray
from scipy.ndimage import binary_erosion
from scipy.spatial import cKDTree

from .utils import register_metric

_INSIDE = 0.5
_RIGHT_ANGLE = 1e-4
"""The cosine up to which axes count as perpendicular: it changes distances by less than a ten-thousandth."""


def present_labels(moving_label: torch.Tensor, fixed_label: torch.Tensor) -> torch.Tensor:
    """Whether both images have the structure, (B, L) bool: no field can match what one of them lacks."""
    inside = [(label > _INSIDE).flatten(2).any(2) for label in (moving_label, fixed_label)]
    return inside[0] & inside[1]


@register_metric("dice")
def dice_overlap(warped_label: torch.Tensor, moving_label: torch.Tensor, fixed_label: torch.Tensor) -> torch.Tensor:
    """Dice coefficient ``2 |W and F| / (|W| + |F|)``, 0 to 1: (B, L); NaN for an absent label.

    A structure that both images have and that the field moves out of the volume has Dice 0.
    """
    warped, fixed = warped_label > _INSIDE, fixed_label > _INSIDE
    common = (warped & fixed).flatten(2).sum(2)
    total = warped.flatten(2).sum(2) + fixed.flatten(2).sum(2)
    dice = 2 * common / total
    return dice.masked_fill(~present_labels(moving_label, fixed_label), torch.nan)


@register_metric("hd95")
def hausdorff_95(
    warped_label: torch.Tensor,
    fixed_label: torch.Tensor,
    spacing: torch.Tensor | None = None,
    affine: torch.Tensor | None = None,
) -> torch.Tensor:
    """95th percentile of the symmetric Hausdorff distance of the surfaces: (B, L).

    The larger of the two directed percentiles, as MONAI computes it. NaN where one of the masks is empty.

    Args:
        warped_label: (B, L, D, H, W), the moving label on the fixed grid.
        fixed_label: (B, L, D, H, W).
        spacing: (B, 3) mm per voxel z, y, x, used where there is no affine.
        affine: (B, 4, 4) from voxels z, y, x of the fixed image to mm; its axes may be oblique or sheared.

    Returns:
        mm, or voxels where neither affine nor spacing is known.
    """
    warped, fixed = warped_label > _INSIDE, fixed_label > _INSIDE
    distances = torch.full(warped.shape[:2], torch.nan, device=warped.device)
    for b, channel in (warped.flatten(2).any(2) & fixed.flatten(2).any(2)).nonzero().tolist():
        masks = warped[b, channel], fixed[b, channel]
        if affine is not None and _is_sheared(axes := affine[b, :3, :3].double().cpu().numpy()):
            distances[b, channel] = _hd95_sheared(*masks, axes)
        else:
            voxel = affine[b, :3, :3].norm(dim=0) if affine is not None else None if spacing is None else spacing[b]
            distances[b, channel] = _hd95(*masks, None if voxel is None else voxel.tolist())
    return distances


def _hd95(mask: torch.Tensor, reference: torch.Tensor, spacing: list[float] | None) -> torch.Tensor:
    """HD95 of two masks (D, H, W) of which none is empty: a scalar tensor."""
    with warnings.catch_warnings():  # MONAI 1.6 calls a function of its own with an argument that it deprecates
        warnings.filterwarnings("ignore", message=".*always_return_as_numpy", category=FutureWarning)
        distance: torch.Tensor = compute_hausdorff_distance(
            mask[None, None], reference[None, None], include_background=True, percentile=95, spacing=spacing
        )
    return distance.squeeze()


def average_surface_distance(
    warped_label: torch.Tensor,
    fixed_label: torch.Tensor,
    spacing: torch.Tensor | None = None,
    affine: torch.Tensor | None = None,
) -> torch.Tensor:
    """Mean distance from the voxels of each surface to the other surface, both ways together: (B, L).

    As MONAI computes it. NaN where one of the masks is empty.

    Args:
        warped_label, fixed_label, spacing, affine: as in :func:`hausdorff_95`.

    Returns:
        mm, or voxels where neither affine nor spacing is known.
    """
    warped, fixed = warped_label > _INSIDE, fixed_label > _INSIDE
    distances = torch.full(warped.shape[:2], torch.nan, device=warped.device)
    for b, channel in (warped.flatten(2).any(2) & fixed.flatten(2).any(2)).nonzero().tolist():
        masks = warped[b, channel], fixed[b, channel]
        if affine is not None and _is_sheared(axes := affine[b, :3, :3].double().cpu().numpy()):
            distances[b, channel] = float(np.concatenate(_directed_distances(*masks, axes)).mean())
        else:
            voxel = affine[b, :3, :3].norm(dim=0) if affine is not None else None if spacing is None else spacing[b]
            distances[b, channel] = _asd(*masks, None if voxel is None else voxel.tolist())
    return distances


def _asd(mask: torch.Tensor, reference: torch.Tensor, spacing: list[float] | None) -> torch.Tensor:
    """Of two masks of which none is empty: a scalar tensor."""
    with warnings.catch_warnings():  # see _hd95
        warnings.filterwarnings("ignore", message=".*always_return_as_numpy", category=FutureWarning)
        distance: torch.Tensor = compute_average_surface_distance(
            mask[None, None], reference[None, None], include_background=True, symmetric=True, spacing=spacing
        )
    return distance.squeeze()


def _is_sheared(axes: NDArray[np.float64]) -> bool:
    """Whether the columns of a matrix (3, 3), the steps from voxel to voxel, are not at right angles."""
    steps = axes / np.linalg.norm(axes, axis=0)
    return bool(np.abs(steps.T @ steps - np.eye(3)).max() > _RIGHT_ANGLE)


def _hd95_sheared(mask: torch.Tensor, reference: torch.Tensor, axes: NDArray[np.float64]) -> float:
    """HD95 of two masks by the distances of their surface voxels in mm: a distance transform needs right angles."""
    return max(float(np.percentile(distances, 95)) for distances in _directed_distances(mask, reference, axes))


def _directed_distances(
    mask: torch.Tensor, reference: torch.Tensor, axes: NDArray[np.float64]
) -> list[NDArray[np.float64]]:
    """From each surface voxel of one mask to the nearest one of the other, mm: there, and back."""
    surfaces = []
    for one in (mask.cpu().numpy(), reference.cpu().numpy()):
        surfaces.append(np.argwhere(one & ~binary_erosion(one)) @ axes.T)
    trees = [cKDTree(surface) for surface in surfaces]
    return [trees[1].query(surfaces[0])[0], trees[0].query(surfaces[1])[0]]
