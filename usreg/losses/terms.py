"""``smoothness``, ``folding`` and ``dice``: losses of the field and of labels, made to be terms of a ``sum``."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import nn

from usreg_kernels import FoldingLoss, GradientSmoothnessLoss

from ..models.warp import check_modes
from .lncc_dice import DiceTerm
from .utils import register_loss


class FieldLoss(nn.Module):
    """A loss of the predicted field.

    Args:
        of_field: maps a field (B, 3, D, H, W) in voxels to a scalar.
    """

    def __init__(self, of_field: nn.Module) -> None:
        super().__init__()
        self.of_field = of_field

    def forward(
        self,
        warped: torch.Tensor,
        fixed: torch.Tensor,
        pred_dvf: torch.Tensor | None = None,
        gt_dvf: torch.Tensor | None = None,
    ) -> torch.Tensor:
        """The loss of ``pred_dvf`` (B, 3, D, H, W), voxels, a scalar; the other arguments are not used.

        Raises:
            ValueError: there is no field.
        """
        if pred_dvf is None:
            raise ValueError("this loss is one of the predicted field, and pred_dvf is None")
        loss: torch.Tensor = self.of_field(pred_dvf)
        return loss


class LabelDiceLoss(nn.Module):
    """``1 - soft Dice`` of the warped moving label and the fixed one; see :class:`usreg.losses.lncc_dice.DiceTerm`.

    Args:
        dice: the term.
        label_warp_padding_mode: how the moving label goes on outside its volume: ``border``, ``zeros``, ``reflection``.

    Raises:
        ValueError: an unknown padding mode.
    """

    def __init__(self, dice: DiceTerm | None = None, label_warp_padding_mode: str = "border") -> None:
        super().__init__()
        check_modes("bilinear", label_warp_padding_mode)
        self.dice = dice or DiceTerm()
        self.label_warp_padding_mode = label_warp_padding_mode

    def forward(
        self,
        warped: torch.Tensor,
        fixed: torch.Tensor,
        *,
        warped_label: torch.Tensor | None = None,
        fixed_label: torch.Tensor | None = None,
    ) -> torch.Tensor:
        """The loss of two labels (B, L, D, H, W) in [0, 1], a scalar from 0 to 1; the images are not used.

        Raises:
            ValueError: a label is missing, or their shapes differ.
        """
        return self.dice(warped_label, fixed_label)


@register_loss("smoothness")
def create_smoothness(penalty: str = "l2", spacing: Sequence[float] | None = None, **_: object) -> nn.Module:
    """Squared (``l2``) or absolute (``l1``) forward differences of the field, per voxel or per mm of ``spacing``."""
    per_axis = None if spacing is None else tuple(spacing)
    return FieldLoss(GradientSmoothnessLoss(penalty=penalty, spacing=per_axis))  # type: ignore[arg-type]  # checked there


@register_loss("folding")
def create_folding(margin: float = 0.0, **_: object) -> nn.Module:
    """Mean of ``max(0, margin - determinant)`` of the Jacobian of the field."""
    return FieldLoss(FoldingLoss(margin=margin))


@register_loss("dice")
def create_dice(
    include_background: bool = True,
    dice_smooth_nr: float = 1e-5,
    dice_smooth_dr: float = 1e-5,
    label_warp_padding_mode: str = "border",
    **_: object,
) -> nn.Module:
    """Soft Dice of the warped moving label and the fixed one."""
    return LabelDiceLoss(DiceTerm(include_background, dice_smooth_nr, dice_smooth_dr), label_warp_padding_mode)
