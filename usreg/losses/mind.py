"""``mind``: the squared difference of the MIND-SSC descriptors of the warped and the fixed image."""

from __future__ import annotations

import torch
from torch import nn

from usreg_kernels import MINDLoss, mind_ssc

from .mse import MSEImageLoss
from .utils import check_weights, register_loss, to_common_dtype, weighted_sum


class DescriptorLoss(nn.Module):
    """``mind_weight`` times the mean squared difference of descriptors that are ready; see :class:`MINDImageLoss`."""

    def __init__(self, mind_weight: float) -> None:
        super().__init__()
        self.difference = MSEImageLoss()
        self.mind_weight = mind_weight

    def forward(self, warped: torch.Tensor, fixed: torch.Tensor, *, mask: torch.Tensor | None = None) -> torch.Tensor:
        """The loss of the descriptors ``warped`` and ``fixed``, each (B, K, D, H, W), with a mask (B, 1, D, H, W)."""
        return weighted_sum(warped, (self.mind_weight, lambda: self.difference(warped, fixed, mask=mask)))


class MINDImageLoss(nn.Module):
    """``mind_weight`` times the mean squared difference of the descriptors; 0 is a perfect match.

    For images of different modalities, such as MR and ultrasound. The formula is that of
    :func:`usreg_kernels.mind_loss`.

    Args:
        radius: of the window in voxels, 0 to 32.
        dilation: how far the neighbours lie that are compared, in voxels, 1 to 32.
        mind_weight: weight of the loss.

    Raises:
        TypeError: a radius or dilation that is no integer.
        ValueError: one out of its range; a negative weight.
    """

    def __init__(self, radius: int = 2, dilation: int = 2, mind_weight: float = 1.0) -> None:
        super().__init__()
        check_weights(mind_weight=mind_weight)
        self.mind = MINDLoss(radius, dilation)
        self.mind_weight = mind_weight

    def forward(self, warped: torch.Tensor, fixed: torch.Tensor, *, mask: torch.Tensor | None = None) -> torch.Tensor:
        """The loss of ``warped`` and ``fixed``, each (B, C, D, H, W) or (B, C, H, W), as a float32 scalar.

        Args:
            warped, fixed: the images.
            mask: (B, 1, D, H, W), weighs the difference at each voxel; the descriptors see all voxels.
        """
        return weighted_sum(warped, (self.mind_weight, lambda: self.mind(*to_common_dtype(warped, fixed), mask)))

    @property
    def reach(self) -> int:
        """How many voxels away along an axis a value of the image still counts."""
        return self.mind.radius + self.mind.dilation

    def descriptor(self, image: torch.Tensor) -> torch.Tensor:
        """The descriptor of an image (B, C, D, H, W), (B, 12 C, D, H, W); in 2-D of 4 C channels."""
        return mind_ssc(image, radius=self.mind.radius, dilation=self.mind.dilation)

    def of_descriptors(self) -> DescriptorLoss:
        """The same loss for descriptors in place of images: a registration computes them once, and warps them."""
        return DescriptorLoss(self.mind_weight)


@register_loss("mind")
def create_mind(radius: int = 2, dilation: int = 2, mind_weight: float = 1.0, **_: object) -> nn.Module:
    """The squared difference of MIND-SSC descriptors."""
    return MINDImageLoss(radius, dilation, mind_weight)
