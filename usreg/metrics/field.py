"""Metrics of a displacement field: smoothness, folding, and the distance to the true field where that is known.

Fields are (B, 3, D, H, W) in voxels, channels z, y, x, pull-back: the point x of the fixed image is found at
``x + ddf(x)`` in the moving one. Determinants are those of :func:`usreg_kernels.jacobian_determinant`.
"""

from __future__ import annotations

import torch

from usreg_kernels import gradient_smoothness_loss, jacobian_determinant

from ..spatial import vector_lengths
from .utils import register_metric


@register_metric("grad_l2")
def gradient_l2(ddf: torch.Tensor) -> torch.Tensor:
    """Sum over the axes of the mean squared forward difference of the field, voxels^2 per voxel^2, 0 or more: (B,)."""
    return torch.stack([gradient_smoothness_loss(field[None], penalty="l2", scheme="forward") for field in ddf])


@register_metric("neg_jac_ratio")
def folding_ratio(ddf: torch.Tensor) -> torch.Tensor:
    """Fraction of the voxels whose Jacobian determinant is 0 or less, where the field folds, 0 to 1: (B,)."""
    return (jacobian_determinant(ddf) <= 0).float().flatten(1).mean(1)


@register_metric("jac_det_min")
def smallest_jacobian(ddf: torch.Tensor) -> torch.Tensor:
    """Smallest Jacobian determinant of the volume, above 0 for a field that does not fold: (B,)."""
    return jacobian_determinant(ddf).flatten(1).amin(1)


@register_metric("jac_det_mean")
def mean_jacobian(ddf: torch.Tensor) -> torch.Tensor:
    """Mean Jacobian determinant of the volume, 1 for a field that moves nothing: (B,)."""
    return jacobian_determinant(ddf).flatten(1).mean(1)


@register_metric("log_jac_std")
def log_jacobian_std(ddf: torch.Tensor) -> torch.Tensor:
    """Standard deviation of the logarithm of the Jacobian determinant (SDlogJ), 0 for an affine field: (B,).

    Over the voxels that do not fold; NaN where all of them do.
    """
    determinants = jacobian_determinant(ddf).flatten(1)
    logarithms = determinants.masked_fill(determinants <= 0, torch.nan).log()
    return (logarithms - logarithms.nanmean(1, keepdim=True)).square().nanmean(1).sqrt()


@register_metric("epe")
def end_point_error(ddf: torch.Tensor, dvf: torch.Tensor) -> torch.Tensor:
    """Mean over the voxels of the Euclidean distance between predicted and true displacement, in voxels: (B,)."""
    return vector_lengths(ddf - dvf).flatten(1).mean(1)
