"""``lncc_dice``: LNCC of the images plus the overlap of the warped moving label and the fixed label."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import nn

from usreg_kernels import gradient_smoothness_loss

from ..models.warp import check_modes
from .lncc import LNCCImageLoss, window
from .utils import check_weights, register_loss, soft_dice, weighted_sum

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class DiceTerm:
    """``1 - soft Dice`` of labels, averaged over the structures that a sample has, then over the samples.

    Attributes:
        include_background: false leaves out the first channel, for labels whose first channel is the background; the
            only channel always counts.
        smooth_nr: added to the numerator.
        smooth_dr: added to the denominator.
    """

    include_background: bool = True
    smooth_nr: float = 1e-5
    smooth_dr: float = 1e-5

    def __post_init__(self) -> None:
        check_weights(dice_smooth_nr=self.smooth_nr, dice_smooth_dr=self.smooth_dr)

    def __call__(self, warped_label: torch.Tensor | None, fixed_label: torch.Tensor | None) -> torch.Tensor:
        """1 - soft Dice of (B, L, D, H, W) labels: the mean over the samples of that over the channels present.

        A sample without any counts as 0. So a batch has the mean of what its samples have by themselves.

        Raises:
            ValueError: a label is missing, or their shapes differ.
        """
        if warped_label is None or fixed_label is None:
            raise ValueError(
                "the loss compares labels, but the batch has none: the dataset must give 'moving_label' and "
                "'fixed_label' (custom_dataset: keys of these names in every case of the JSON file); or choose a loss "
                "without labels"
            )
        if warped_label.shape != fixed_label.shape:
            raise ValueError(
                f"warped_label has shape {tuple(warped_label.shape)} and fixed_label {tuple(fixed_label.shape)}: both "
                "need the same (B, L, D, H, W), one channel per structure"
            )
        if not self.include_background and fixed_label.shape[1] > 1:
            warped_label, fixed_label = warped_label[:, 1:], fixed_label[:, 1:]
        space = tuple(range(2, fixed_label.dim()))
        dice = soft_dice(warped_label, fixed_label, space, self.smooth_nr, self.smooth_dr)  # (B, L)
        present = ((warped_label.detach() != 0) | (fixed_label != 0)).flatten(2).any(dim=2).to(dice.dtype)  # (B, L)
        return (((1.0 - dice) * present).sum(dim=1) / present.sum(dim=1).clamp(min=1)).mean()


class ImageLossWithDice(nn.Module):
    """``image_weight * image loss + dice_weight * (1 - soft Dice) + smooth_weight * smoothness(field)``.

    The Dice of a sample is averaged over the label channels that are present: a channel that is empty in both volumes,
    such as the padding of a case with fewer labels than its neighbours in the batch, does not count.

    Args:
        image_loss: called with the warped image, the fixed image and ``mask``.
        dice_weight: weight of the label term.
        image_weight: weight of the image loss.
        smooth_weight: weight of the field's gradient smoothness (forward differences, squared).
        dice: the label term.
        label_warp_padding_mode: how the moving label goes on outside its volume when the loop warps it: ``border``,
            ``zeros`` or ``reflection``.

    Raises:
        ValueError: a negative weight, or an unknown padding mode.
    """

    def __init__(
        self,
        image_loss: nn.Module,
        dice_weight: float = 1.0,
        image_weight: float = 1.0,
        smooth_weight: float = 0.0,
        dice: DiceTerm | None = None,
        label_warp_padding_mode: str = "border",
    ) -> None:
        super().__init__()
        check_weights(dice_weight=dice_weight, image_weight=image_weight, smooth_weight=smooth_weight)
        check_modes("bilinear", label_warp_padding_mode)
        self.image_loss = image_loss
        self.dice_weight = dice_weight
        self.image_weight = image_weight
        self.smooth_weight = smooth_weight
        self.dice = dice or DiceTerm()
        self.label_warp_padding_mode = label_warp_padding_mode

    def forward(
        self,
        warped: torch.Tensor,
        fixed: torch.Tensor,
        pred_dvf: torch.Tensor | None = None,
        gt_dvf: torch.Tensor | None = None,
        *,
        warped_label: torch.Tensor | None = None,
        fixed_label: torch.Tensor | None = None,
        warped_moving_label: torch.Tensor | None = None,
        moving_label: torch.Tensor | None = None,
        mask: torch.Tensor | None = None,
    ) -> torch.Tensor:
        """The weighted sum as a scalar.

        Args:
            warped: (B, 1, D, H, W).
            fixed: (B, 1, D, H, W).
            pred_dvf: (B, 3, D, H, W), voxels; needed where ``smooth_weight`` is above 0.
            gt_dvf: not used.
            warped_label: (B, L, D, H, W) in [0, 1], the moving label warped with the predicted field, bilinear.
            fixed_label: (B, L, D, H, W) in [0, 1].
            warped_moving_label: another name of ``warped_label``.
            moving_label: not used.
            mask: (B, 1, D, H, W), what the image loss makes of it.

        Raises:
            ValueError: a label is missing, or their shapes differ.
        """
        label = warped_moving_label if warped_label is None else warped_label
        terms = [
            (self.image_weight, lambda: self.image_loss(warped, fixed, mask=mask)),
            (self.dice_weight, lambda: self.dice(label, fixed_label)),
        ]
        if pred_dvf is not None:
            terms.append((self.smooth_weight, lambda: gradient_smoothness_loss(pred_dvf)))
        return weighted_sum(warped, *terms)


class LNCCWithDice(ImageLossWithDice):
    """LNCC and the overlap of labels; ``mask`` weighs the correlation, see :class:`LNCCImageLoss`.

    Lower ``image_weight`` where the two modalities do not correlate locally.
    """


def check_label_warp(loss: str, mode: str, padding_mode: str) -> None:
    """Check the keys of a loss that say how the moving label is warped; ``nearest`` is not honoured, which is logged.

    Raises:
        ValueError: an unknown name.
    """
    check_modes(mode, padding_mode)
    if mode == "nearest":
        logger.warning(
            "%s: label_warp_mode nearest has no gradient, so that labels would train nothing; bilinear is taken", loss
        )


@register_loss("lncc_dice")
def create_lncc_dice(
    kernel_size: int | Sequence[int] = 3,
    patch_size: int | Sequence[int] | None = None,
    spatial_dims: int = 3,
    kernel_type: str = "rectangular",
    reduction: str = "mean",
    smooth_nr: float = 0.0,
    smooth_dr: float = 1e-5,
    clamp_smoothing: bool = True,
    dice_weight: float = 1.0,
    image_weight: float = 1.0,
    smooth_weight: float = 0.0,
    lncc_weight: float | None = None,
    include_background: bool = True,
    dice_smooth_nr: float = 1e-5,
    dice_smooth_dr: float = 1e-5,
    label_warp_mode: str = "bilinear",
    label_warp_padding_mode: str = "border",
    **_: object,
) -> nn.Module:
    """LNCC with the keys of ``lncc``, plus the overlap of the labels; ``lncc_weight`` is a name of ``image_weight``."""
    size = window(kernel_size, patch_size)
    image_loss = LNCCImageLoss(size, spatial_dims, kernel_type, reduction, smooth_nr, smooth_dr, clamp_smoothing)
    if lncc_weight is not None:
        if image_weight not in (1.0, lncc_weight):
            raise ValueError(f"lncc_weight {lncc_weight} and image_weight {image_weight} name one weight; give one")
        image_weight = lncc_weight
    check_label_warp("lncc_dice", label_warp_mode, label_warp_padding_mode)
    dice = DiceTerm(include_background, dice_smooth_nr, dice_smooth_dr)
    return LNCCWithDice(image_loss, dice_weight, image_weight, smooth_weight, dice, label_warp_padding_mode)
