"""``mse``: mean squared difference of the warped and the fixed image."""

from __future__ import annotations

import torch
from torch import nn
from torch.nn import functional as F

from .utils import register_loss, to_float32


class MSEImageLoss(nn.Module):
    """Mean squared intensity difference, in float32; 0 is a perfect match."""

    def forward(self, warped: torch.Tensor, fixed: torch.Tensor, *, mask: torch.Tensor | None = None) -> torch.Tensor:
        """The loss of ``warped`` and ``fixed``, each (B, C, D, H, W), as a scalar.

        Args:
            warped, fixed: the images.
            mask: (B, 1, D, H, W), weighs the squares, ``sum(m (w - f)^2) / sum(m)``; 0 everywhere gives 0.

        Raises:
            ValueError: the shapes differ.
        """
        if warped.shape != fixed.shape:
            raise ValueError(f"warped has shape {tuple(warped.shape)} and fixed {tuple(fixed.shape)}: they must agree")
        warped, fixed = to_float32(warped, fixed)
        if mask is None:
            return F.mse_loss(warped, fixed)
        weights = mask.to(warped.dtype).expand_as(warped)
        total = weights.sum()
        return (weights * (warped - fixed).square()).sum() / torch.where(total == 0, torch.ones_like(total), total)


@register_loss("mse")
def create_mse(**_: object) -> nn.Module:
    """Mean squared error; it has no keys."""
    return MSEImageLoss()
