"""Bending energy of a displacement field in plain PyTorch: the oracle of every other backend.

The sum over pairs of axes of squared second derivatives at interior voxels, MONAI 1.6's ``BendingEnergyLoss``: the
stencil [1, -2, 1] along one axis, the four diagonal neighbours / 4 for two axes, whose term counts twice.
"""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F

from usreg_kernels.ops.field_weights import axis_pairs, bending_weights
from usreg_kernels.ops.operator import compute_dtype, loss_dtype
from usreg_kernels.ops.reduction import total


def _shift(u: torch.Tensor, offsets: dict[int, int]) -> torch.Tensor:
    """The interior voxels' neighbours at the given offset (-1, 0, 1) per axis."""
    for axis in range(2, u.ndim):
        u = u.narrow(axis, 1 + offsets.get(axis - 2, 0), u.shape[axis] - 2)
    return u


def second_difference(u: torch.Tensor, axes: tuple[int, int]) -> torch.Tensor:
    """Second differences of u (B, n, spatial...) along two spatial axes at interior voxels.

    That along one axis is the second derivative, in units of displacement per voxel^2; that along two is four times it.
    """
    first, second = axes
    if first == second:
        return _shift(u, {first: 1}) - 2.0 * _shift(u, {}) + _shift(u, {first: -1})
    return (
        _shift(u, {first: 1, second: 1})
        - _shift(u, {first: 1, second: -1})
        - _shift(u, {first: -1, second: 1})
        + _shift(u, {first: -1, second: -1})
    )


def second_difference_adjoint(d: torch.Tensor, axes: tuple[int, int]) -> torch.Tensor:
    """The transpose of :func:`second_difference`: both stencils are symmetric, so the same on a padded volume."""
    return second_difference(F.pad(d, [2, 2] * (d.ndim - 2)), axes)


def loss_shape(dvf: torch.Tensor, *, reduction: str, **params: object) -> tuple[int, ...]:
    """Shape of the loss: for ``none`` that of the field's interior."""
    return (*dvf.shape[:2], *[size - 2 for size in dvf.shape[2:]]) if reduction == "none" else ()


def loss_like(dvf: torch.Tensor, **params: Any) -> torch.Tensor:
    """An uninitialised loss of a field."""
    return dvf.new_empty(loss_shape(dvf, **params), dtype=loss_dtype(dvf.dtype))


def forward(dvf: torch.Tensor, *, normalize: bool, reduction: str) -> torch.Tensor:
    """The energy at interior voxels, reduced."""
    u = dvf.to(compute_dtype(dvf))
    weights = bending_weights(dvf.shape, normalize, reduction)
    energy = u.new_zeros(())
    for index, axes in enumerate(axis_pairs(u.ndim - 2)):
        energy = energy + weights.of_difference(index, u) * second_difference(u, axes) ** 2
    loss = energy if reduction == "none" else total(energy) / weights.divisor
    return loss.to(loss_dtype(dvf.dtype))


def backward(
    grad_output: torch.Tensor, dvf: torch.Tensor, *, needs_grad: list[bool], normalize: bool, reduction: str
) -> list[torch.Tensor]:
    """The adjoint stencils of twice the second differences, times the incoming gradient."""
    if not needs_grad[0]:
        return []
    u = dvf.to(compute_dtype(dvf))
    weights = bending_weights(dvf.shape, normalize, reduction)
    incoming = grad_output.to(u.dtype) / max(weights.divisor, 1)
    gradient = torch.zeros_like(u)
    for index, axes in enumerate(axis_pairs(u.ndim - 2)):
        slope = 2.0 * weights.of_difference(index, u) * second_difference(u, axes)
        gradient = gradient + second_difference_adjoint(slope * incoming, axes)
    return [gradient.to(dvf.dtype)]
