"""Metrics of how well the warped moving label covers the fixed one, per sample and label channel.

Labels are (B, L, D, H, W) in [0, 1]; a voxel is inside where the value exceeds 0.5. A channel that is empty in the
fixed or in the moving label is absent there: its value is NaN. A structure that the moving image has, and that its
label lost when it was resampled, is not absent: ``moving_label_lost`` (B, L) names it, and its Dice is 0.
"""

from __future__ import annotations

import torch

from .utils import register_metric

_INSIDE = 0.5


def present_labels(
    moving_label: torch.Tensor, fixed_label: torch.Tensor, moving_label_lost: torch.Tensor | None = None
) -> torch.Tensor:
    """Whether both images have the structure, (B, L) bool: no field can match what one of them lacks."""
    moving, fixed = ((label > _INSIDE).flatten(2).any(2) for label in (moving_label, fixed_label))
    return (moving if moving_label_lost is None else moving | moving_label_lost) & fixed


@register_metric("dice")
def dice_overlap(
    warped_label: torch.Tensor,
    moving_label: torch.Tensor,
    fixed_label: torch.Tensor,
    moving_label_lost: torch.Tensor | None = None,
) -> torch.Tensor:
    """Dice coefficient ``2 |W and F| / (|W| + |F|)``, 0 to 1: (B, L); NaN for an absent label.

    A structure that both images have has Dice 0 where the field moves it out of the volume, and where the moving label
    lost it by resampling.
    """
    warped, fixed = warped_label > _INSIDE, fixed_label > _INSIDE
    common = (warped & fixed).flatten(2).sum(2)
    total = warped.flatten(2).sum(2) + fixed.flatten(2).sum(2)
    dice = 2 * common / total
    return dice.masked_fill(~present_labels(moving_label, fixed_label, moving_label_lost), torch.nan)
