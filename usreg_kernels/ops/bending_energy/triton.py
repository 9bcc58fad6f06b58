"""Bending energy in Triton: one pass over the field for the loss, and one for the gradient. It saves nothing.

The gradient gathers: each second derivative around a voxel is computed again from values that the caches hold.
"""

from __future__ import annotations

from typing import Any

import torch
import triton
import triton.language as tl

from usreg_kernels.ops.bending_energy.reference import loss_shape
from usreg_kernels.ops.field_weights import bending_weights
from usreg_kernels.ops.triton_fields import (
    Weights,
    grad_at,
    gradient_of_one_field,
    kernel_weights,
    lies_within,
    load_real,
    locate,
    loss_of_one_field,
    map_index,
    of_component,
)

BLOCK = 128  # voxels per program: one per thread, or the gradient would not fit the registers


@triton.jit
def _straight(voxel, stride, exists):
    """The second difference along one axis, as a difference of differences, which lose nothing to rounding."""
    value = load_real(voxel, exists)
    return (load_real(voxel + stride, exists) - value) - (value - load_real(voxel - stride, exists))


@triton.jit
def _mixed(voxel, stride, other, exists):
    """Four times the second derivative along two axes."""
    ahead = load_real(voxel + stride + other, exists) - load_real(voxel + stride - other, exists)
    behind = load_real(voxel - stride + other, exists) - load_real(voxel - stride - other, exists)
    return ahead - behind


@triton.jit
def sum_energies(
    dvf, loss_map, partials, pieces, D, H: tl.constexpr, W: tl.constexpr,
    zz, zy, zx, yy, yx, xx, own_z, own_y, own_x,
    DIMS: tl.constexpr, KEEP_MAP: tl.constexpr, WIDE: tl.constexpr, BLOCK: tl.constexpr,
):  # fmt: skip
    """The energy map of this program's voxels, or its sum. zz to xx, own_*: weights of axes, components."""
    component, first, index, inside, z, y, x = locate(pieces, D, H, W, WIDE, BLOCK)
    voxel = dvf + first + index
    exists = inside & lies_within(x, W, 1)
    if DIMS >= 2:
        exists = exists & lies_within(y, H, 1)
    if DIMS >= 3:
        exists = exists & lies_within(z, D, 1)
    difference = _straight(voxel, 1, exists)
    value = xx * difference * difference
    if DIMS >= 2:
        difference = _straight(voxel, W, exists)
        value += yy * difference * difference
        difference = _mixed(voxel, W, 1, exists)
        value += yx * difference * difference
    if DIMS >= 3:
        difference = _straight(voxel, H * W, exists)
        value += zz * difference * difference
        difference = _mixed(voxel, H * W, W, exists)
        value += zy * difference * difference
        difference = _mixed(voxel, H * W, 1, exists)
        value += zx * difference * difference
    value *= of_component(component, DIMS, own_z, own_y, own_x)
    if KEEP_MAP:
        tl.store(loss_map + map_index(component, z, y, x, D, H, W, DIMS, 1), value, mask=exists)
    else:
        tl.store(partials + tl.program_id(0), tl.sum(tl.where(exists, value, 0.0)))


@triton.jit
def _has(position, size, OFFSET: tl.constexpr):
    """Whether the voxel at an offset along an axis is no border voxel."""
    return (position + OFFSET >= 1) & (position + OFFSET < size - 1)


@triton.jit
def _straight_pull(
    voxel, grad_map, component, z, y, x, D, H, W, position, size, stride, others,
    AXIS: tl.constexpr, DIMS: tl.constexpr, HAS_MAP: tl.constexpr,
):  # fmt: skip
    """What the second differences along an axis, of a voxel and of those beside it, pass on to it (half of it)."""
    DZ: tl.constexpr = 1 if AXIS == 0 else 0
    DY: tl.constexpr = 1 if AXIS == 1 else 0
    DX: tl.constexpr = 1 if AXIS == 2 else 0
    pull = tl.zeros_like(x).to(tl.float32)
    for offset in tl.static_range(-1, 2):
        exists = others & _has(position, size, offset)
        grad = grad_at(
            grad_map, component, z + offset * DZ, y + offset * DY, x + offset * DX, D, H, W, exists, DIMS, 1, HAS_MAP
        )
        factor = -2.0 if offset == 0 else 1.0
        pull += factor * grad * _straight(voxel + offset * stride, stride, exists)
    return pull


@triton.jit
def _mixed_pull(
    voxel, grad_map, component, z, y, x, D, H, W, position, size, stride, other_position, other_size, other, third,
    AXIS: tl.constexpr, OTHER: tl.constexpr, DIMS: tl.constexpr, HAS_MAP: tl.constexpr,
):  # fmt: skip
    """The same for the differences along two axes, of the four diagonal neighbours."""
    DZ: tl.constexpr = 1 if AXIS == 0 else 0
    DY: tl.constexpr = 1 if AXIS == 1 else 0
    EY: tl.constexpr = 1 if OTHER == 1 else 0
    EX: tl.constexpr = 1 if OTHER == 2 else 0
    pull = tl.zeros_like(x).to(tl.float32)
    for a in tl.static_range(-1, 2, 2):
        for b in tl.static_range(-1, 2, 2):
            exists = third & _has(position, size, a) & _has(other_position, other_size, b)
            grad = grad_at(
                grad_map, component, z + a * DZ, y + a * DY + b * EY, x + b * EX, D, H, W, exists, DIMS, 1, HAS_MAP
            )
            pull += (a * b) * grad * _mixed(voxel + a * stride + b * other, stride, other, exists)
    return pull


@triton.jit
def write_gradient(
    grad_output, dvf, gradient, pieces, D, H: tl.constexpr, W: tl.constexpr,
    zz, zy, zx, yy, yx, xx, own_z, own_y, own_x,
    DIMS: tl.constexpr, HAS_MAP: tl.constexpr, WIDE: tl.constexpr, BLOCK: tl.constexpr,
):  # fmt: skip
    """The gradient of this program's voxels; grad_output is multiplied in before rounding."""
    component, first, index, inside, z, y, x = locate(pieces, D, H, W, WIDE, BLOCK)
    voxel = dvf + first + index
    in_x = inside & lies_within(x, W, 1)
    in_y = inside & lies_within(y, H, 1) if DIMS >= 2 else inside
    in_z = inside & lies_within(z, D, 1) if DIMS >= 3 else inside
    pull = xx * _straight_pull(voxel, grad_output, component, z, y, x, D, H, W, x, W, 1, in_y & in_z, 2, DIMS, HAS_MAP)
    if DIMS >= 2:
        pull += yy * _straight_pull(
            voxel, grad_output, component, z, y, x, D, H, W, y, H, W, in_x & in_z, 1, DIMS, HAS_MAP
        )
        pull += yx * _mixed_pull(
            voxel, grad_output, component, z, y, x, D, H, W, y, H, W, x, W, 1, in_z, 1, 2, DIMS, HAS_MAP
        )
    if DIMS >= 3:
        pull += zz * _straight_pull(
            voxel, grad_output, component, z, y, x, D, H, W, z, D, H * W, in_x & in_y, 0, DIMS, HAS_MAP
        )
        pull += zy * _mixed_pull(
            voxel, grad_output, component, z, y, x, D, H, W, z, D, H * W, y, H, W, in_x, 0, 1, DIMS, HAS_MAP
        )
        pull += zx * _mixed_pull(
            voxel, grad_output, component, z, y, x, D, H, W, z, D, H * W, x, W, 1, in_y, 0, 2, DIMS, HAS_MAP
        )
    pull *= 2.0 * of_component(component, DIMS, own_z, own_y, own_x)
    if not HAS_MAP:
        pull *= tl.load(grad_output)
    tl.store(gradient + first + index, pull.to(gradient.dtype.element_ty), mask=inside)


def _weights(dvf: torch.Tensor, normalize: bool, reduction: str) -> Weights:
    """The kernels' weights, of the pairs of axes and of the components."""
    return kernel_weights(bending_weights(dvf.shape, normalize, reduction), differences=6)


def forward(dvf: torch.Tensor, *, needs_grad: list[bool], **params: Any) -> tuple[torch.Tensor, list[torch.Tensor]]:
    """The loss."""
    return loss_of_one_field(sum_energies, dvf, loss_shape(dvf, **params), _weights(dvf, **params), BLOCK=BLOCK), []


def backward(
    grad_output: torch.Tensor, saved: list[torch.Tensor], dvf: torch.Tensor, *, needs_grad: list[bool], **params: Any
) -> list[torch.Tensor]:
    """The gradient, from the field once more."""
    if not needs_grad[0]:
        return []
    return [gradient_of_one_field(write_gradient, grad_output, dvf, _weights(dvf, **params), BLOCK=BLOCK)]
