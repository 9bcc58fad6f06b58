"""The losses in plain PyTorch, as a skilled user would write them: what kernels must beat to be worth having.

All three LNCC take (B, C, spatial...) with two or three spatial axes and give the negated mean of
``cross^2 / (var_p var_t)``, variances with the factor N as MONAI has them. They differ in how they sum windows.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
import torch.nn.functional as F

from bench.plain_fields import jacobian_determinant

WindowMean = Callable[[torch.Tensor], torch.Tensor]
Pair = Callable[[torch.Tensor, torch.Tensor], torch.Tensor]

VARIANCE_FLOOR = 1e-5
"""MONAI's ``smooth_dr``, and the ``eps`` of VoxelMorph."""


def pooled_lncc(window: int) -> Pair:
    """Window means by average pooling, one axis after the other, of all five maps at once."""

    def mean(maps: torch.Tensor) -> torch.Tensor:
        pool = F.avg_pool3d if maps.ndim == 5 else F.avg_pool2d
        for size in _lines(window, maps.ndim - 2):
            maps = pool(maps, size, stride=1, padding=[s // 2 for s in size])
        return maps

    return _lncc(mean, window, clamp=True)


def conv_lncc(window: int) -> Pair:
    """VoxelMorph's formula (Balakrishnan et al., IEEE TMI 2019): window sums by one dense convolution with ones."""

    def mean(maps: torch.Tensor) -> torch.Tensor:
        dims = maps.ndim - 2
        weights = maps.new_full((1, 1, *[window] * dims), 1.0 / window**dims)
        return _convolve(maps, weights)

    return _lncc(mean, window, clamp=False)


def separable_conv_lncc(window: int) -> Pair:
    """FireANTs' formula (Jena et al., 2024): window means by one convolution per axis."""

    def mean(maps: torch.Tensor) -> torch.Tensor:
        for size in _lines(window, maps.ndim - 2):
            maps = _convolve(maps, maps.new_full((1, 1, *size), 1.0 / window))
        return maps

    return _lncc(mean, window, clamp=True)


def finite_differences(central: bool) -> Callable[[torch.Tensor], torch.Tensor]:
    """Squared differences along each axis, forward or central (of the interior), and the sum of their means."""

    def forward(dvf: torch.Tensor) -> torch.Tensor:
        terms = [torch.diff(dvf, dim=axis).square().mean() for axis in range(2, dvf.ndim)]
        return torch.stack(terms).sum()

    def interior(dvf: torch.Tensor) -> torch.Tensor:
        terms = []
        for axis in range(2, dvf.ndim):
            inner = dvf
            for other in range(2, dvf.ndim):
                if other != axis:
                    inner = inner.narrow(other, 1, dvf.shape[other] - 2)
            size = dvf.shape[axis] - 2
            terms.append(((inner.narrow(axis, 2, size) - inner.narrow(axis, 0, size)) / 2).square().mean())
        return torch.stack(terms).sum()

    return interior if central else forward


def supervision(smooth_weight: float = 0.01) -> Pair:
    """``F.mse_loss`` of two fields, and the weighted forward differences of the first; the weight is our default."""
    smoothness = finite_differences(central=False)

    def loss(pred_dvf: torch.Tensor, gt_dvf: torch.Tensor) -> torch.Tensor:
        return F.mse_loss(pred_dvf, gt_dvf) + smooth_weight * smoothness(pred_dvf)

    return loss


def mind(pooled: bool, radius: int = 2, dilation: int = 2) -> Pair:
    """The MIND loss of volumes, by ``avg_pool3d`` or by sums along one axis after the other."""
    pairs = [(a + p, b + q) for a, b in ((0, 2), (0, 4), (2, 4)) for p in (0, 1) for q in (0, 1)]
    window = 2 * radius + 1

    def along(x: torch.Tensor, axis: int) -> torch.Tensor:
        size = x.shape[axis] - 2 * radius
        return sum((x.narrow(axis, start, size) for start in range(1, window)), start=x.narrow(axis, 0, size)) / window

    def describe(image: torch.Tensor) -> torch.Tensor:
        padded = F.pad(image, [dilation] * 6, mode="replicate")
        near = []
        for axis in (2, 3, 4):
            for start in (0, 2 * dilation):
                shifted = padded
                for other in (2, 3, 4):
                    shifted = shifted.narrow(other, start if other == axis else dilation, image.shape[other])
                near.append(shifted)
        squares = torch.cat([(near[p] - near[q]).square() for p, q in pairs], dim=1)
        squares = F.pad(squares, [radius] * 6, mode="replicate")
        distances = F.avg_pool3d(squares, window, stride=1) if pooled else along(along(along(squares, 2), 3), 4)
        excess = distances - distances.amin(dim=1, keepdim=True)
        variance = excess.mean(dim=1, keepdim=True)
        mean = variance.detach().mean(dim=(1, 2, 3, 4), keepdim=True)
        return torch.exp(-excess / torch.minimum(torch.maximum(variance, 1e-3 * mean), 1e3 * mean))

    return lambda pred, target: (describe(pred) - describe(target)).square().mean()


def folding(ddf: torch.Tensor) -> torch.Tensor:
    """The mean of how far the Jacobian determinants of a volume's field fall below 0."""
    return F.relu(-jacobian_determinant(ddf)).mean()


def _lines(window: int, dims: int) -> list[list[int]]:
    """The window as one line along each axis."""
    return [[window if axis == other else 1 for other in range(dims)] for axis in range(dims)]


def _convolve(maps: torch.Tensor, weights: torch.Tensor) -> torch.Tensor:
    """Each map of maps (B, C, spatial...) by itself, zeros outside, with weights (1, 1, window...)."""
    convolve = F.conv3d if maps.ndim == 5 else F.conv2d
    padding = [size // 2 for size in weights.shape[2:]]
    return convolve(maps.flatten(0, 1).unsqueeze(1), weights, padding=padding).view(maps.shape)


def _lncc(window_mean: WindowMean, window: int, clamp: bool) -> Pair:
    """LNCC by a way to average windows; variances bounded from below, or the floor added to their product."""

    def loss(pred: torch.Tensor, target: torch.Tensor) -> torch.Tensor:
        volume = float(window ** (pred.ndim - 2))
        maps = torch.stack([pred, target, pred * pred, target * target, pred * target], dim=2).flatten(1, 2)
        p, t, pp, tt, pt = window_mean(maps).unflatten(1, (-1, 5)).unbind(2)
        cross = (pt - p * t) * volume
        var_p, var_t = (pp - p * p) * volume, (tt - t * t) * volume
        if clamp:
            product = var_p.clamp(min=VARIANCE_FLOOR) * var_t.clamp(min=VARIANCE_FLOOR)
        else:
            product = var_p * var_t + VARIANCE_FLOOR
        return -(cross * cross / product).mean()

    return loss
