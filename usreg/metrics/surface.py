"""Metrics of the distance between the surfaces of the warped moving label and the fixed one, per sample and structure.

Labels are (B, L, D, H, W) in [0, 1]; a voxel is inside where the value exceeds 0.5. The surface of a structure is its
outermost voxels. A structure that is empty in one of the two has no distance: its value is NaN.
"""

from __future__ import annotations

import warnings
from collections.abc import Callable

import numpy as np
import torch
from monai.metrics.utils import get_edge_surface_distance
from numpy.typing import NDArray
from scipy.ndimage import binary_erosion
from scipy.spatial import cKDTree

from .utils import register_metric

_INSIDE = 0.5
_RIGHT_ANGLE = 1e-4
"""The cosine up to which axes count as perpendicular: it changes distances by less than a ten-thousandth."""

Distances = tuple[torch.Tensor, torch.Tensor]
"""From each voxel of one surface to the other surface, (M,), and the other way, (N,)."""


@register_metric("hd95")
def hausdorff_95(
    warped_label: torch.Tensor,
    fixed_label: torch.Tensor,
    spacing: torch.Tensor | None = None,
    affine: torch.Tensor | None = None,
) -> torch.Tensor:
    """95th percentile of the symmetric Hausdorff distance of the surfaces: (B, L), NaN where one of them is empty.

    The larger of the two directed percentiles, as MONAI computes it.

    Args:
        warped_label: (B, L, D, H, W), the moving label on the fixed grid.
        fixed_label: (B, L, D, H, W).
        spacing: (B, 3) mm per voxel z, y, x, used where there is no affine.
        affine: (B, 4, 4) from voxels z, y, x of the fixed image to mm; its axes may be oblique or sheared.

    Returns:
        mm, or voxels where neither affine nor spacing is known.
    """
    return _of_structures(percentile_95, warped_label, fixed_label, spacing, affine)


@register_metric("asd")
def average_surface_distance(
    warped_label: torch.Tensor,
    fixed_label: torch.Tensor,
    spacing: torch.Tensor | None = None,
    affine: torch.Tensor | None = None,
) -> torch.Tensor:
    """Average symmetric surface distance: (B, L), NaN where one of the surfaces is empty.

    The mean over the voxels of both surfaces of the distance to the other one, as MONAI computes it. Arguments and unit
    are those of :func:`hausdorff_95`.
    """
    return _of_structures(mean_distance, warped_label, fixed_label, spacing, affine)


def percentile_95(distances: Distances) -> torch.Tensor:
    """HD95, a scalar: the larger of the two directed percentiles."""
    return torch.stack([torch.quantile(directed, 0.95) for directed in distances]).max()


def mean_distance(distances: Distances) -> torch.Tensor:
    """ASD, a scalar: the mean over both surfaces."""
    return torch.cat(distances).mean()


def _of_structures(
    summary: Callable[[Distances], torch.Tensor],
    warped_label: torch.Tensor,
    fixed_label: torch.Tensor,
    spacing: torch.Tensor | None,
    affine: torch.Tensor | None,
) -> torch.Tensor:
    """(B, L): the summary of the distances of each structure."""
    warped, fixed = warped_label > _INSIDE, fixed_label > _INSIDE
    values = torch.full(warped.shape[:2], torch.nan, device=warped.device)
    steps = affine[:, :3, :3] if affine is not None else None if spacing is None else torch.diag_embed(spacing)
    for b, channel in (warped.flatten(2).any(2) & fixed.flatten(2).any(2)).nonzero().tolist():
        axes = np.eye(warped.dim() - 2) if steps is None else steps[b].double().cpu().numpy()
        values[b, channel] = summary(_distances(warped[b, channel], fixed[b, channel], axes))
    return values


def _distances(mask: torch.Tensor, reference: torch.Tensor, axes: NDArray[np.float64]) -> Distances:
    """The distances of two masks (D, H, W) of which none is empty.

    Args:
        axes: (3, 3), or (2, 2) for masks (H, W): its columns are the steps in mm from voxel to voxel along each axis.
    """
    lengths = np.linalg.norm(axes, axis=0)
    if np.abs((axes / lengths).T @ (axes / lengths) - np.eye(len(lengths))).max() > _RIGHT_ANGLE:
        return surface_distances(mask, reference, axes)
    with warnings.catch_warnings():  # MONAI 1.6 calls a function of its own with an argument that it deprecates
        warnings.filterwarnings("ignore", message=".*always_return_as_numpy", category=FutureWarning)
        found = get_edge_surface_distance(mask, reference, spacing=lengths.tolist(), symmetric=True)
    return found[1][0], found[1][-1]


def surface_distances(mask: torch.Tensor, reference: torch.Tensor, axes: NDArray[np.float64]) -> Distances:
    """The distances by the places of the surface voxels in mm: MONAI's distance transform needs right angles.

    Args:
        mask, reference: (D, H, W) or (H, W), of which none is empty.
        axes: see :func:`_distances`.
    """
    surfaces = []
    for one in (mask.cpu().numpy(), reference.cpu().numpy()):
        surfaces.append(np.argwhere(one & ~binary_erosion(one)) @ axes.T)
    trees = [cKDTree(surface) for surface in surfaces]
    there, back = trees[1].query(surfaces[0])[0], trees[0].query(surfaces[1])[0]
    return torch.from_numpy(there).to(mask.device), torch.from_numpy(back).to(mask.device)
