"""``lncc_dvf``: LNCC of the images plus the squared error of the predicted field where the true one is known."""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial

import torch
from torch import nn

from usreg_kernels import dvf_mse_loss, dvf_supervision_loss, gradient_smoothness_loss

from .lncc import LNCCImageLoss
from .utils import Term, check_weights, register_loss, to_common_dtype, weighted_sum


class LNCCWithDVFSupervision(nn.Module):
    """``image_weight * LNCC + dvf_weight * MSE(field) + smooth_weight * smoothness(field)``.

    Fields are in voxels, so the second term is in voxels squared. A dataset without true fields leaves it out.

    Args:
        kernel_size, smooth_nr, smooth_dr, clamp_smoothing: of the LNCC, see :class:`LNCCImageLoss`.
        image_weight: weight of the LNCC.
        dvf_weight: weight of the mean squared error between predicted and true field.
        smooth_weight: weight of the field's gradient smoothness (forward differences, squared).

    Raises:
        ValueError: an even window, or a negative weight.
    """

    def __init__(
        self,
        kernel_size: int | Sequence[int] = 9,
        smooth_nr: float = 1e-4,
        smooth_dr: float = 1e-2,
        image_weight: float = 1.0,
        dvf_weight: float = 1.0,
        smooth_weight: float = 0.0,
        clamp_smoothing: bool = True,
    ) -> None:
        super().__init__()
        check_weights(image_weight=image_weight, dvf_weight=dvf_weight, smooth_weight=smooth_weight)
        self.image_loss = LNCCImageLoss(
            kernel_size, smooth_nr=smooth_nr, smooth_dr=smooth_dr, clamp_smoothing=clamp_smoothing
        )
        self.image_weight = image_weight
        self.dvf_weight = dvf_weight
        self.smooth_weight = smooth_weight

    def forward(
        self,
        warped: torch.Tensor,
        fixed: torch.Tensor,
        pred_dvf: torch.Tensor | None = None,
        gt_dvf: torch.Tensor | None = None,
    ) -> torch.Tensor:
        """The weighted sum as a scalar.

        Args:
            warped: (B, 1, D, H, W).
            fixed: (B, 1, D, H, W).
            pred_dvf: (B, 3, D, H, W), voxels; without it only the image term remains.
            gt_dvf: (B, 3, D, H, W), voxels, or None where the true field is unknown.
        """
        image_term = (self.image_weight, lambda: self.image_loss(warped, fixed))
        return weighted_sum(warped, image_term, *self._field_terms(pred_dvf, gt_dvf))

    def _field_terms(self, pred_dvf: torch.Tensor | None, gt_dvf: torch.Tensor | None) -> list[Term]:
        """The terms of the fields that are there; one for both where both have a weight: they share its reads."""
        if pred_dvf is None:
            return []
        smooth_term = (self.smooth_weight, lambda: gradient_smoothness_loss(pred_dvf))
        if gt_dvf is None:
            return [smooth_term]
        fields = to_common_dtype(pred_dvf, gt_dvf)
        if self.dvf_weight and self.smooth_weight:
            fused = partial(dvf_supervision_loss, mse_weight=self.dvf_weight, smooth_weight=self.smooth_weight)
            return [(1.0, lambda: fused(*fields))]
        return [(self.dvf_weight, lambda: dvf_mse_loss(*fields)), smooth_term]


@register_loss("lncc_dvf")
def create_lncc_dvf(
    kernel_size: int | Sequence[int] = 9,
    smooth_nr: float = 1e-4,
    smooth_dr: float = 1e-2,
    image_weight: float = 1.0,
    dvf_weight: float = 1.0,
    smooth_weight: float = 0.0,
    clamp_smoothing: bool = True,
    **_: object,
) -> nn.Module:
    """LNCC plus supervision by the true displacement field."""
    return LNCCWithDVFSupervision(
        kernel_size, smooth_nr, smooth_dr, image_weight, dvf_weight, smooth_weight, clamp_smoothing
    )
