"""Bending energy of a displacement field in plain PyTorch: the oracle of every other backend.

The sum over pairs of axes of squared second derivatives at interior voxels, MONAI 1.6's ``BendingEnergyLoss``: the
stencil [1, -2, 1] along one axis, the four diagonal neighbours / 4 for two axes, whose term counts twice.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from itertools import combinations_with_replacement
from typing import Any

import torch
import torch.nn.functional as F

from usreg_kernels.ops.fields import per_component, size_ratios
from usreg_kernels.ops.operator import compute_dtype, loss_dtype
from usreg_kernels.ops.reduction import reduce_map

Axes = tuple[int, int]


def axis_pairs(ndim: int) -> Iterator[tuple[Axes, float]]:
    """Each unordered pair of a field's spatial axes, and how often its squared derivative counts."""
    for first, second in combinations_with_replacement(range(2, ndim), 2):
        yield (first, second), 1.0 if first == second else 2.0


def _shift(u: torch.Tensor, offsets: dict[int, int]) -> torch.Tensor:
    """The interior voxels' neighbours at the given offset (-1, 0, 1) per axis."""
    for axis in range(2, u.ndim):
        u = u.narrow(axis, 1 + offsets.get(axis, 0), u.shape[axis] - 2)
    return u


def second_derivative(u: torch.Tensor, axes: Axes) -> torch.Tensor:
    """Second derivatives of u (B, n, spatial...) at interior voxels, in units of displacement per voxel^2."""
    first, second = axes
    if first == second:
        return _shift(u, {first: 1}) - 2.0 * _shift(u, {}) + _shift(u, {first: -1})
    return (
        _shift(u, {first: 1, second: 1})
        - _shift(u, {first: 1, second: -1})
        - _shift(u, {first: -1, second: 1})
        + _shift(u, {first: -1, second: -1})
    ) / 4.0


def second_derivative_adjoint(d: torch.Tensor, axes: Axes) -> torch.Tensor:
    """The transpose of :func:`second_derivative`: both stencils are symmetric, so the same on a padded volume."""
    return second_derivative(F.pad(d, [2, 2] * (d.ndim - 2)), axes)


def pair_scale(shape: Sequence[int], axes: Axes, normalize: bool) -> list[float]:
    """What multiplies a second derivative, for each component of a field (B, n, spatial...).

    size(axis) size(axis') / size(component's own axis) to normalise, else 1.
    """
    return size_ratios(shape, shape[axes[0]] * shape[axes[1]]) if normalize else [1.0] * shape[1]


def loss_shape(dvf: torch.Tensor, *, reduction: str, **params: object) -> tuple[int, ...]:
    """Shape of the loss: for ``none`` that of the field's interior."""
    return (*dvf.shape[:2], *[size - 2 for size in dvf.shape[2:]]) if reduction == "none" else ()


def loss_like(dvf: torch.Tensor, **params: Any) -> torch.Tensor:
    """An uninitialised loss of a field."""
    return dvf.new_empty(loss_shape(dvf, **params), dtype=loss_dtype(dvf.dtype))


def forward(dvf: torch.Tensor, *, normalize: bool, reduction: str) -> torch.Tensor:
    """The energy at interior voxels, reduced."""
    u = dvf.to(compute_dtype(dvf))
    energy = u.new_zeros(())
    for axes, count in axis_pairs(u.ndim):
        energy = (
            energy + count * (second_derivative(u, axes) * per_component(pair_scale(u.shape, axes, normalize), u)) ** 2
        )
    return reduce_map(energy, None, reduction).to(loss_dtype(dvf.dtype))


def backward(
    grad_output: torch.Tensor, dvf: torch.Tensor, *, needs_grad: list[bool], normalize: bool, reduction: str
) -> list[torch.Tensor]:
    """The adjoint stencils of twice the second derivatives, times the incoming gradient."""
    if not needs_grad[0]:
        return []
    u = dvf.to(compute_dtype(dvf))
    weight = grad_output.to(u.dtype)
    if reduction == "mean":
        weight = weight / max(_shift(u, {}).numel(), 1)
    gradient = torch.zeros_like(u)
    for axes, count in axis_pairs(u.ndim):
        scale = per_component(pair_scale(u.shape, axes, normalize), u)
        derivative = 2.0 * count * second_derivative(u, axes) * scale**2
        gradient = gradient + second_derivative_adjoint(derivative * weight, axes)
    return [gradient.to(dvf.dtype)]
