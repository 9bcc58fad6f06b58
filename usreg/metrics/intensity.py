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
    """Pearson correlation of two images (B, C, D, H, W) over all voxels, -1 to 1: (B,); NaN if one is constant."""
    a, b = warped.flatten(1), fixed.flatten(1)
    constant = (a == a[:, :1]).all(1) | (b == b[:, :1]).all(1)
    a, b = a - a.mean(1, keepdim=True), b - b.mean(1, keepdim=True)
    correlation = (a * b).sum(1) / (a.norm(dim=1) * b.norm(dim=1))
    return correlation.clamp(-1, 1).masked_fill(constant, torch.nan)
