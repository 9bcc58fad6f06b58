"""Metrics of the intensities of the warped and the fixed image, each over a whole volume."""

from __future__ import annotations

import torch

from .utils import register_metric


@register_metric("mse")
def mean_squared_error(warped: torch.Tensor, fixed: torch.Tensor) -> torch.Tensor:
    """Mean squared difference of two images (B, C, D, H, W), 0 or more: (B,)."""
    return (warped - fixed).square().flatten(1).mean(1)


@register_metric("mae")
def mean_absolute_error(warped: torch.Tensor, fixed: torch.Tensor) -> torch.Tensor:
    """Mean absolute difference of two images (B, C, D, H, W), 0 or more: (B,)."""
    return (warped - fixed).abs().flatten(1).mean(1)


@register_metric("ncc")
def global_ncc(warped: torch.Tensor, fixed: torch.Tensor) -> torch.Tensor:
    """Pearson correlation of two images (B, C, D, H, W) over all voxels, -1 to 1: (B,).

    The mean over the channels. NaN where a channel of either image is constant.
    """
    a, b = warped.flatten(2), fixed.flatten(2)
    constant = (a == a[..., :1]).all(2) | (b == b[..., :1]).all(2)
    a, b = a - a.mean(2, keepdim=True), b - b.mean(2, keepdim=True)
    correlation = (a * b).sum(2) / (a.norm(dim=2) * b.norm(dim=2))
    return correlation.clamp(-1, 1).masked_fill(constant, torch.nan).mean(1)
