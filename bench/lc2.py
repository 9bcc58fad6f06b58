"""LC2, the local linear correlation of two regressors, in plain PyTorch.

In each window a line ``a image + b gradient + c`` is fitted to the ultrasound, where ``gradient`` is the length of the
image's gradient; LC2 is the share of the ultrasound's variance that it explains. :mod:`bench.lc2_plugin` brings it into
:mod:`bench.displaced`. Source: W. Wein, A. Ladikos, B. Fuerst, A. Shah, K. Sharma, N. Navab, "Global registration of
ultrasound to MRI using the LC2 metric for enabling neurosurgical guidance", MICCAI (2013) 34-41.
"""

from __future__ import annotations

import torch
from torch import nn
from torch.nn import functional

RIDGE = 1e-3
"""Added to the diagonal of the two regressors' covariance, as a part of its trace."""

FLAT = 1e-6
"""A variance below it, of images from 0 to 1, is none."""


class LC2Loss(nn.Module):
    """``-sum(w LC2) / sum(w)``, with the local standard deviation of the fixed image times the mask as weight ``w``.

    Args:
        radius: of the window in voxels.
    """

    def __init__(self, radius: int = 4) -> None:
        super().__init__()
        self.radius = radius
        self.reach = radius + 1

    def forward(self, warped: torch.Tensor, fixed: torch.Tensor, *, mask: torch.Tensor | None = None) -> torch.Tensor:
        """From -1 (all explained) to 0, of images (B, 1, D, H, W): ``fixed`` is the ultrasound."""
        steps = torch.gradient(warped, dim=(2, 3, 4))
        edges = (sum(step.square() for step in steps) + FLAT).sqrt()
        covered = self._sum(torch.ones_like(fixed[:1]))

        def mean(values: torch.Tensor) -> torch.Tensor:
            return self._sum(values) / covered

        m, g, t = mean(warped), mean(edges), mean(fixed)
        mm, gg, mg = mean(warped * warped) - m * m, mean(edges * edges) - g * g, mean(warped * edges) - m * g
        mt, gt, tt = mean(warped * fixed) - m * t, mean(edges * fixed) - g * t, (mean(fixed * fixed) - t * t)
        ridge = RIDGE * (mm + gg) + FLAT
        mm, gg, tt = mm + ridge, gg + ridge, tt.clamp_min(0)
        explained = (gg * mt * mt - 2 * mg * mt * gt + mm * gt * gt) / (mm * gg - mg * mg)
        weights = tt.sqrt() if mask is None else tt.sqrt() * mask
        return -(weights * explained / (tt + FLAT)).sum() / (weights.sum() + FLAT)

    def _sum(self, values: torch.Tensor) -> torch.Tensor:
        """Over the window, one axis after another; zeros outside."""
        size = 2 * self.radius + 1
        for axis in range(3):
            kernel = [size if other == axis else 1 for other in range(3)]
            pad = [self.radius if other == axis else 0 for other in range(3)]
            values = functional.avg_pool3d(values, kernel, stride=1, padding=pad)
        return values
