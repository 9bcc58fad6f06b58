"""``mutual_information``: of the intensities of the warped and the fixed image, for images of different modalities."""

from __future__ import annotations

import torch
from torch import nn

from usreg_kernels import GradientSmoothnessLoss, MutualInformationLoss

from .utils import check_weights, register_loss, to_common_dtype, weighted_sum


class MutualInformationImageLoss(nn.Module):
    """Negated mutual information, in nats: lower is more alike, whatever the relation; 0 is none.

    The arithmetic and the arguments are those of :func:`usreg_kernels.mutual_information_loss`, which follows MONAI.
    With ``kernel_type`` ``b-spline``, the warped image gets the gradient, and values may have any range; with
    ``gaussian``, they must lie in [0, 1].

    Args:
        num_bins: bins per image.
        kernel_type: ``b-spline`` or ``gaussian``.
        normalized: the sum of both entropies over the joint one instead, from -1 (no relation) to -2.
        sigma_ratio: standard deviation of the gaussian in bins.
        reduction: ``mean`` or ``sum`` over the batch.
        smooth_nr: added to the numerator.
        smooth_dr: added to the denominator.
        smooth_weight: weight of the smoothness of the field, squared forward differences.

    Raises:
        ValueError: too few bins, an unknown kernel type or reduction, a number out of its range, a negative weight.
    """

    def __init__(
        self,
        num_bins: int = 32,
        kernel_type: str = "b-spline",
        normalized: bool = False,
        sigma_ratio: float = 0.5,
        reduction: str = "mean",
        smooth_nr: float = 1e-7,
        smooth_dr: float = 1e-7,
        smooth_weight: float = 0.0,
    ) -> None:
        super().__init__()
        if reduction not in ("mean", "sum"):
            raise ValueError(
                f"reduction is {reduction!r}; it must be 'mean' or 'sum', because training minimises one number"
            )
        check_weights(smooth_weight=smooth_weight)
        self.smooth_weight = smooth_weight
        self.smoothness = GradientSmoothnessLoss()
        self.mutual_information = MutualInformationLoss(
            kernel_type=kernel_type,  # type: ignore[arg-type]  # checked there
            num_bins=num_bins,
            sigma_ratio=sigma_ratio,
            reduction=reduction,  # type: ignore[arg-type]
            smooth_nr=smooth_nr,
            smooth_dr=smooth_dr,
            normalized=normalized,
        )

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
            warped, fixed: (B, 1, D, H, W), the images; two or one spatial axes too.
            pred_dvf: (B, 3, D, H, W), voxels; without it only the image term remains.
            gt_dvf: not used.
            mask: (B, 1, D, H, W), weighs the voxels; where it is 0, they are left out.
        """
        terms = [(1.0, lambda: self.mutual_information(*to_common_dtype(warped, fixed), mask))]
        if pred_dvf is not None:
            terms.append((self.smooth_weight, lambda: self.smoothness(pred_dvf)))
        return weighted_sum(warped, *terms)


@register_loss("mutual_information")
def create_mutual_information(
    num_bins: int = 32,
    kernel_type: str = "b-spline",
    normalized: bool = False,
    sigma_ratio: float = 0.5,
    reduction: str = "mean",
    smooth_nr: float = 1e-7,
    smooth_dr: float = 1e-7,
    smooth_weight: float = 0.0,
    **_: object,
) -> nn.Module:
    """Mutual information of the intensities, plus the smoothness of the field."""
    return MutualInformationImageLoss(
        num_bins, kernel_type, normalized, sigma_ratio, reduction, smooth_nr, smooth_dr, smooth_weight
    )
