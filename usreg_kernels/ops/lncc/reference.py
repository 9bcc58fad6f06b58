r"""Local normalised cross-correlation in plain PyTorch: the oracle of every other backend.

With window weights :math:`w` of volume :math:`N`, zero padding, and :math:`S_x(v) = \sum_u w(u)\, x(v + u)`::

    cross = S_pt - S_p S_t / N      var_p = S_pp - S_p^2 / N      var_t = S_tt - S_t^2 / N
    ncc   = (cross^2 + smooth_nr) / (max(var_p, smooth_dr) max(var_t, smooth_dr))

as in MONAI 1.6's ``LocalNormalizedCrossCorrelationLoss``. Window sums add shifted copies and never subtract: running
sums leave a residue after bright tissue that is as large as ``smooth_dr``.

Every backend has these names and orders. Window sums: ``p, t, pp, tt, pt``. Maps, whose window sums make the gradients
(:func:`backward`): ``by_cross, slope_p, constant_p, slope_t, constant_t``, of which a single gradient needs three.
"""

from __future__ import annotations

from functools import reduce
from operator import add
from typing import NamedTuple

import torch
import torch.nn.functional as F

from usreg_kernels.ops.operator import compute_dtype, loss_dtype
from usreg_kernels.ops.reduction import reduce_map, reduction_gradient
from usreg_kernels.windows import Window, make_window


def window_sum(x: torch.Tensor, window: Window) -> torch.Tensor:
    """Weighted sum over the window around each voxel of x (B, C, spatial...), zeros outside. Its own adjoint."""
    for axis, weights in enumerate(window.weights, start=2):
        size, half = x.shape[axis], len(weights) // 2
        padding = [0, 0] * (x.ndim - 1 - axis) + [half, half]
        padded = F.pad(x, padding)
        shifted = (padded.narrow(axis, i, size) * weight for i, weight in enumerate(weights) if weight != 0)
        x = reduce(add, shifted)
    return x


class Statistics(NamedTuple):
    """Local statistics, each (B, C, spatial...); the variances carry the factor N and are not clamped."""

    mean_p: torch.Tensor
    mean_t: torch.Tensor
    cross: torch.Tensor
    var_p: torch.Tensor
    var_t: torch.Tensor


def statistics(p: torch.Tensor, t: torch.Tensor, window: Window) -> Statistics:
    """Window means, cross-covariance and variances of p and t (B, C, spatial...)."""
    sum_p, sum_t = window_sum(p, window), window_sum(t, window)
    mean_p, mean_t = sum_p / window.volume, sum_t / window.volume
    return Statistics(
        mean_p,
        mean_t,
        cross=window_sum(p * t, window) - mean_p * sum_t,
        var_p=window_sum(p * p, window) - mean_p * sum_p,
        var_t=window_sum(t * t, window) - mean_t * sum_t,
    )


def forward(
    pred: torch.Tensor,
    target: torch.Tensor,
    mask: torch.Tensor | None,
    *,
    kernel_size: list[int],
    kernel_type: str,
    reduction: str,
    smooth_nr: float,
    smooth_dr: float,
) -> torch.Tensor:
    """The negated squared correlation, reduced."""
    dtype = compute_dtype(pred)
    s = statistics(pred.to(dtype), target.to(dtype), make_window(kernel_type, tuple(kernel_size)))
    ncc = (s.cross**2 + smooth_nr) / (s.var_p.clamp(min=smooth_dr) * s.var_t.clamp(min=smooth_dr))
    return reduce_map(-ncc, mask, reduction).to(loss_dtype(pred.dtype))


def backward(
    grad_output: torch.Tensor,
    pred: torch.Tensor,
    target: torch.Tensor,
    mask: torch.Tensor | None,
    *,
    needs_grad: list[bool],
    kernel_size: list[int],
    kernel_type: str,
    reduction: str,
    smooth_nr: float,
    smooth_dr: float,
) -> list[torch.Tensor]:
    """The exact gradients: window sums of maps of the derivatives of ncc with respect to the local statistics.

    With ``by_cross = d ncc / d cross``, ``slope_p = 2 d ncc / d var_p`` (0 where the variance is clamped) and
    ``constant_p = -(by_cross mean_t + slope_p mean_p)``, each times the incoming gradient,
    ``gradient(p) = t S_by_cross + p S_slope_p + S_constant_p``; for t the roles are exchanged.
    """
    dtype = compute_dtype(pred)
    p, t = pred.to(dtype), target.to(dtype)
    window = make_window(kernel_type, tuple(kernel_size))
    s = statistics(p, t, window)
    clamped_p, clamped_t = s.var_p.clamp(min=smooth_dr), s.var_t.clamp(min=smooth_dr)
    inverse = 1.0 / (clamped_p * clamped_t)
    ncc = (s.cross**2 + smooth_nr) * inverse
    weight = -reduction_gradient(grad_output.to(dtype), p.shape, mask, reduction)
    by_cross = weight * 2.0 * s.cross * inverse
    sum_by_cross = window_sum(by_cross, window)

    def gradient(
        x: torch.Tensor,
        other: torch.Tensor,
        var: torch.Tensor,
        clamped: torch.Tensor,
        mean: torch.Tensor,
        mean_other: torch.Tensor,
    ) -> torch.Tensor:
        slope = torch.where(var > smooth_dr, -2.0 * weight * ncc / clamped, 0.0)
        constant = -(by_cross * mean_other + slope * mean)
        return other * sum_by_cross + x * window_sum(slope, window) + window_sum(constant, window)

    gradients = []
    if needs_grad[0]:
        gradients.append(gradient(p, t, s.var_p, clamped_p, s.mean_p, s.mean_t).to(pred.dtype))
    if needs_grad[1]:
        gradients.append(gradient(t, p, s.var_t, clamped_t, s.mean_t, s.mean_p).to(target.dtype))
    return gradients
