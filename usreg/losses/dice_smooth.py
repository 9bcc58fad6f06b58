"""``dice_smooth``: soft Dice of the images' intensities plus the smoothness of the field."""

from __future__ import annotations

import torch
from torch import nn

from usreg_kernels import gradient_smoothness_loss

from .utils import check_weights, register_loss, soft_dice, weighted_sum


class DiceSmoothLoss(nn.Module):
    """``dice_weight * (1 - soft Dice of the intensities) + smooth_weight * smoothness(field)``.

    Args:
        dice_weight: weight of the overlap of the two images, taken as masks in [0, 1].
        smooth_weight: weight of the field's gradient smoothness (forward differences, squared).
        epsilon: keeps the Dice finite where both images are empty.

    Raises:
        ValueError: a negative weight.
    """

    def __init__(self, dice_weight: float = 1.0, smooth_weight: float = 0.01, epsilon: float = 1e-5) -> None:
        super().__init__()
        check_weights(dice_weight=dice_weight, smooth_weight=smooth_weight, epsilon=epsilon)
        self.dice_weight = dice_weight
        self.smooth_weight = smooth_weight
        self.epsilon = epsilon

    def forward(
        self,
        warped: torch.Tensor,
        fixed: torch.Tensor,
        pred_dvf: torch.Tensor | None = None,
        gt_dvf: torch.Tensor | None = None,
    ) -> torch.Tensor:
        """The weighted sum as a scalar.

        Args:
            warped: (B, 1, D, H, W) in [0, 1].
            fixed: (B, 1, D, H, W) in [0, 1].
            pred_dvf: (B, 3, D, H, W), voxels; without it only the Dice term remains.
            gt_dvf: not used.
        """
        everything = tuple(range(fixed.dim()))
        terms = [(self.dice_weight, lambda: 1.0 - soft_dice(warped, fixed, everything, self.epsilon))]
        if pred_dvf is not None:
            terms.append((self.smooth_weight, lambda: gradient_smoothness_loss(pred_dvf)))
        return weighted_sum(warped, *terms)


@register_loss("dice_smooth")
def create_dice_smooth(
    dice_weight: float = 1.0, smooth_weight: float = 0.01, epsilon: float = 1e-5, **_: object
) -> nn.Module:
    """Soft Dice of the intensities plus the smoothness of the field."""
    return DiceSmoothLoss(dice_weight, smooth_weight, epsilon)
