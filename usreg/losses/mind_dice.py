"""``mind_dice``: the MIND loss of the images plus the overlap of the warped moving label and the fixed label."""

from __future__ import annotations

from torch import nn

from .lncc_dice import DiceTerm, ImageLossWithDice, check_label_warp
from .mind import MINDImageLoss
from .utils import register_loss


class MINDWithDice(ImageLossWithDice):
    """The MIND loss and the overlap of labels; ``image_weight`` comes on top of the MIND loss' own weight.

    Args:
        image_loss: the MIND loss; the other arguments are those of :class:`.ImageLossWithDice`.
    """

    image_loss: MINDImageLoss

    def of_descriptors(self) -> ImageLossWithDice:
        """The same loss for descriptors in place of images, see :meth:`.MINDImageLoss.of_descriptors`."""
        return ImageLossWithDice(
            self.image_loss.of_descriptors(),
            self.dice_weight,
            self.image_weight,
            self.smooth_weight,
            self.dice,
            self.label_warp_padding_mode,
        )


@register_loss("mind_dice")
def create_mind_dice(
    radius: int = 2,
    dilation: int = 2,
    mind_weight: float = 1.0,
    dice_weight: float = 1.0,
    smooth_weight: float = 0.0,
    include_background: bool = True,
    dice_smooth_nr: float = 1e-5,
    dice_smooth_dr: float = 1e-5,
    label_warp_mode: str = "bilinear",
    label_warp_padding_mode: str = "border",
    **_: object,
) -> nn.Module:
    """The MIND loss with the keys of ``mind``, plus the overlap of the labels with those of ``lncc_dice``."""
    check_label_warp("mind_dice", label_warp_mode, label_warp_padding_mode)
    dice = DiceTerm(include_background, dice_smooth_nr, dice_smooth_dr)
    return MINDWithDice(
        MINDImageLoss(radius, dilation, mind_weight),
        dice_weight,
        smooth_weight=smooth_weight,
        dice=dice,
        label_warp_padding_mode=label_warp_padding_mode,
    )
