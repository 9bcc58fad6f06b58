"""``mse``: mean squared difference of the warped and the fixed image."""

from __future__ import annotations

import torch
from torch import nn
from torch.nn import functional as F

from .utils import register_loss, to_float32


class MSEImageLoss(nn.Module):
    """Mean squared intensity difference, in float32; 0 is a perfect match."""

    def forward(self, warped: torch.Tensor, fixed: torch.Tensor) -> torch.Tensor:
        """The loss of ``warped`` and ``fixed``, each (B, 1, D, H, W), as a scalar.

        Raises:
            ValueError: the shapes differ.
        """
        if warped.shape != fixed.shape:
            raise ValueError(f"warped has shape {tuple(warped.shape)} and fixed {tuple(fixed.shape)}: they must agree")
        warped, fixed = to_float32(warped, fixed)
        return F.mse_loss(warped, fixed)


@register_loss("mse")
def create_mse(**_: object) -> nn.Module:
    """Mean squared error; it has no keys."""
    return MSEImageLoss()
