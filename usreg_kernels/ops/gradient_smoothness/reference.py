"""First-order smoothness of a displacement field in plain PyTorch: the oracle of every other backend.

``forward`` differences are u[i+1] - u[i]: they see a checkerboard, which central differences let through.
``central`` differences are (u[i+1] - u[i-1]) / 2 at interior voxels, MONAI 1.6's ``DiffusionLoss``.
"""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F

from usreg_kernels.ops.field_weights import smoothness_weights
from usreg_kernels.ops.operator import compute_dtype, loss_dtype
from usreg_kernels.ops.reduction import total


def _pad(x: torch.Tensor, axis: int, before: int, after: int) -> torch.Tensor:
    return F.pad(x, [0, 0] * (x.ndim - 1 - axis) + [before, after])


def _interior(x: torch.Tensor, skip: int | None = None) -> torch.Tensor:
    """Cut the first and last voxel off every spatial axis but ``skip``."""
    for axis in range(2, x.ndim):
        if axis != skip:
            x = x.narrow(axis, 1, x.shape[axis] - 2)
    return x


def difference(u: torch.Tensor, axis: int, scheme: str) -> torch.Tensor:
    """Differences of u (B, n, spatial...) along one axis; for ``central``, over two voxels and of interior ones."""
    if scheme == "forward":
        return torch.diff(u, dim=axis)
    u = _interior(u, skip=axis)
    size = u.shape[axis]
    return u.narrow(axis, 2, size - 2) - u.narrow(axis, 0, size - 2)


def difference_adjoint(d: torch.Tensor, axis: int, scheme: str) -> torch.Tensor:
    """The transpose of :func:`difference`: from differences back to voxels."""
    if scheme == "forward":
        return -torch.diff(_pad(d, axis, 1, 1), dim=axis)
    for other in range(2, d.ndim):
        if other != axis:
            d = _pad(d, other, 1, 1)
    return _pad(d, axis, 2, 0) - _pad(d, axis, 0, 2)


def _axes(u: torch.Tensor) -> list[int]:
    """The axes that have differences: an axis of size 1 adds nothing."""
    return [axis for axis in range(2, u.ndim) if u.shape[axis] > 1]


def forward(
    dvf: torch.Tensor, *, penalty: str, scheme: str, spacing: list[float] | None, normalize: bool, reduction: str
) -> torch.Tensor:
    """The sum over axes of the reduced penalty of the differences."""
    u = dvf.to(compute_dtype(dvf))
    weights = smoothness_weights(dvf.shape, penalty, scheme, spacing, normalize, reduction)
    loss = u.new_zeros(loss_shape(dvf, scheme=scheme, reduction=reduction))
    for axis in _axes(u):
        d = difference(u, axis, scheme)
        value = weights.of_difference(axis - 2, u) * (d**2 if penalty == "l2" else d.abs())
        if reduction != "none":
            value = total(value)
        elif scheme == "forward":
            value = _pad(value, axis, 0, 1)
        loss = loss + value
    return (loss / weights.divisor).to(loss_dtype(dvf.dtype))


def loss_shape(dvf: torch.Tensor, *, scheme: str, reduction: str, **params: object) -> tuple[int, ...]:
    """Shape of the loss: for ``none`` the field's shape, with ``central`` that of its interior."""
    if reduction != "none":
        return ()
    cut = 2 if scheme == "central" else 0
    return (*dvf.shape[:2], *[size - cut for size in dvf.shape[2:]])


def loss_like(dvf: torch.Tensor, **params: Any) -> torch.Tensor:
    """An uninitialised loss of a field."""
    return dvf.new_empty(loss_shape(dvf, **params), dtype=loss_dtype(dvf.dtype))


def backward(
    grad_output: torch.Tensor,
    dvf: torch.Tensor,
    *,
    needs_grad: list[bool],
    penalty: str,
    scheme: str,
    spacing: list[float] | None,
    normalize: bool,
    reduction: str,
) -> list[torch.Tensor]:
    """The adjoint differences of the penalty's derivative, times the incoming gradient."""
    if not needs_grad[0]:
        return []
    u = dvf.to(compute_dtype(dvf))
    weights = smoothness_weights(dvf.shape, penalty, scheme, spacing, normalize, reduction)
    incoming = grad_output.to(u.dtype) / max(weights.divisor, 1)
    gradient = torch.zeros_like(u)
    for axis in _axes(u):
        d = difference(u, axis, scheme)
        slope = weights.of_difference(axis - 2, u) * (2.0 * d if penalty == "l2" else d.sign())
        own = reduction == "none" and scheme == "forward"  # the map has the field's shape, and no value for the last
        slope = slope * (incoming.narrow(axis, 0, d.shape[axis]) if own else incoming)
        gradient = gradient + difference_adjoint(slope, axis, scheme)
    return [gradient.to(dvf.dtype)]
