"""``lncc_smooth``: LNCC of the images plus the smoothness of the field, and what it folds."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import nn

from usreg_kernels import FoldingLoss, GradientSmoothnessLoss

from .lncc import LNCCImageLoss, window
from .utils import check_weights, register_loss, weighted_sum


class LNCCWithSmoothness(nn.Module):
    """``LNCC + smooth_weight * smoothness(field) + folding_weight * folding(field)``.

    Args:
        image_loss: the LNCC.
        smooth_weight: weight of the smoothness.
        penalty: ``l2`` (squared) or ``l1`` (absolute) forward differences of the field.
        spacing: voxel size (z, y, x) in mm, one positive number per axis; differences are then per mm, not per voxel.
        folding_weight: weight of the mean of ``max(0, folding_margin - determinant)``, of the Jacobian determinant.
        folding_margin: determinants below it count; 0 counts folded voxels.

    Raises:
        ValueError: a negative weight, an unknown penalty, a spacing that is not positive, a margin that is not finite.
    """

    def __init__(
        self,
        image_loss: LNCCImageLoss,
        smooth_weight: float = 0.01,
        penalty: str = "l2",
        spacing: Sequence[float] | None = None,
        folding_weight: float = 0.0,
        folding_margin: float = 0.0,
    ) -> None:
        super().__init__()
        check_weights(smooth_weight=smooth_weight, folding_weight=folding_weight)
        self.image_loss = image_loss
        self.smooth_weight = smooth_weight
        self.folding_weight = folding_weight
        self.folding = FoldingLoss(margin=folding_margin)  # the field is in voxels, whatever their size
        per_axis = None if spacing is None else tuple(spacing)
        self.smoothness = GradientSmoothnessLoss(penalty=penalty, spacing=per_axis)  # type: ignore[arg-type]  # checked there

    def forward(
        self,
        warped: torch.Tensor,
        fixed: torch.Tensor,
        pred_dvf: torch.Tensor | None = None,
        gt_dvf: torch.Tensor | None = None,
        *,
        mask: torch.Tensor | None = None,
    ) -> torch.Tensor:
        """The weighted sum as a scalar.

        Args:
            warped: (B, 1, D, H, W).
            fixed: (B, 1, D, H, W).
            pred_dvf: (B, 3, D, H, W), voxels; without it only the image term remains.
            gt_dvf: not used.
            mask: (B, 1, D, H, W), weighs the correlation, see :class:`LNCCImageLoss`.
        """
        terms = [(1.0, lambda: self.image_loss(warped, fixed, mask=mask))]
        if pred_dvf is not None:
            terms.append((self.smooth_weight, lambda: self.smoothness(pred_dvf)))
            terms.append((self.folding_weight, lambda: self.folding(pred_dvf)))
        return weighted_sum(warped, *terms)


@register_loss("lncc_smooth")
def create_lncc_smooth(
    kernel_size: int | Sequence[int] = 3,
    patch_size: int | Sequence[int] | None = None,
    spatial_dims: int = 3,
    kernel_type: str = "rectangular",
    reduction: str = "mean",
    smooth_nr: float = 0.0,
    smooth_dr: float = 1e-5,
    clamp_smoothing: bool = True,
    smooth_weight: float = 0.01,
    penalty: str = "l2",
    spacing: Sequence[float] | None = None,
    folding_weight: float = 0.0,
    folding_margin: float = 0.0,
    **_: object,
) -> nn.Module:
    """LNCC with the keys of ``lncc``, plus the smoothness of the field, and what it folds."""
    size = window(kernel_size, patch_size)
    image_loss = LNCCImageLoss(size, spatial_dims, kernel_type, reduction, smooth_nr, smooth_dr, clamp_smoothing)
    return LNCCWithSmoothness(image_loss, smooth_weight, penalty, spacing, folding_weight, folding_margin)
