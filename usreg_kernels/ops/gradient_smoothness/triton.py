"""Gradient smoothness in Triton: one pass over the field for the loss, and one for the gradient.

It saves nothing: reading the field again moves fewer bytes than a gradient that forward would write and backward scale.
"""

from __future__ import annotations

from typing import Any

import torch
import triton
import triton.language as tl

from usreg_kernels.ops.field_weights import smoothness_weights
from usreg_kernels.ops.gradient_smoothness.reference import loss_shape
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

BLOCK = 512  # voxels per program


@triton.jit
def penalty_along(voxel, position, size, stride, weight, exists, CENTRAL: tl.constexpr, L1: tl.constexpr):
    """The weighted penalty of the difference along an axis that belongs to a voxel."""
    if CENTRAL:
        difference = load_real(voxel + stride, exists) - load_real(voxel - stride, exists)
    else:
        exists = exists & (position < size - 1)
        difference = load_real(voxel + stride, exists) - load_real(voxel, exists)
    return weight * (tl.abs(difference) if L1 else difference * difference)


@triton.jit
def _slope(difference, L1: tl.constexpr):
    """The derivative of the penalty."""
    if L1:
        return tl.where(difference > 0, 1.0, tl.where(difference < 0, -1.0, 0.0))
    else:
        return 2.0 * difference


@triton.jit
def sum_penalties(
    dvf, loss_map, partials, pieces, D, H: tl.constexpr, W: tl.constexpr,
    weight_z, weight_y, weight_x, own_z, own_y, own_x,
    DIMS: tl.constexpr, CENTRAL: tl.constexpr, L1: tl.constexpr, KEEP_MAP: tl.constexpr, WIDE: tl.constexpr,
    BLOCK: tl.constexpr,
):  # fmt: skip
    """The loss map of this program's voxels, or its sum. weight_*: of an axis' penalties; own_*: of a component's."""
    component, first, index, inside, z, y, x = locate(pieces, D, H, W, WIDE, BLOCK)
    voxel = dvf + first + index
    exists = inside
    if CENTRAL:
        exists = exists & lies_within(x, W, 1)
        if DIMS >= 2:
            exists = exists & lies_within(y, H, 1)
        if DIMS >= 3:
            exists = exists & lies_within(z, D, 1)
    value = penalty_along(voxel, x, W, 1, weight_x, exists, CENTRAL, L1)
    if DIMS >= 2:
        value += penalty_along(voxel, y, H, W, weight_y, exists, CENTRAL, L1)
    if DIMS >= 3:
        value += penalty_along(voxel, z, D, H * W, weight_z, exists, CENTRAL, L1)
    value *= of_component(component, DIMS, own_z, own_y, own_x)
    if KEEP_MAP:
        tl.store(loss_map + map_index(component, z, y, x, D, H, W, DIMS, 1 if CENTRAL else 0), value, mask=exists)
    else:
        tl.store(partials + tl.program_id(0), tl.sum(tl.where(exists, value, 0.0)))


@triton.jit
def pull_along(
    voxel, grad_map, component, z, y, x, D, H, W, position, size, stride, weight, others,
    AXIS: tl.constexpr, DIMS: tl.constexpr, CENTRAL: tl.constexpr, L1: tl.constexpr, HAS_MAP: tl.constexpr,
):  # fmt: skip
    """What the two differences along an axis that take a voxel in pass on to it. others: where there are any."""
    STEP: tl.constexpr = 2 if CENTRAL else 1
    MARGIN: tl.constexpr = 1 if CENTRAL else 0
    DZ: tl.constexpr = 1 if AXIS == 0 else 0
    DY: tl.constexpr = 1 if AXIS == 1 else 0
    DX: tl.constexpr = 1 if AXIS == 2 else 0
    # The difference one voxel before; and this voxel's own, or for central differences that of one voxel after.
    before = others & (position >= STEP)
    after = others & (position < size - STEP)
    value = load_real(voxel, others)
    pull = _slope(value - load_real(voxel - STEP * stride, before), L1) * grad_at(
        grad_map, component, z - DZ, y - DY, x - DX, D, H, W, before, DIMS, MARGIN, HAS_MAP
    )
    pull -= _slope(load_real(voxel + STEP * stride, after) - value, L1) * grad_at(
        grad_map, component, z + DZ * MARGIN, y + DY * MARGIN, x + DX * MARGIN, D, H, W, after, DIMS, MARGIN, HAS_MAP
    )
    return weight * pull


@triton.jit
def write_gradient(
    grad_output, dvf, gradient, pieces, D, H: tl.constexpr, W: tl.constexpr,
    weight_z, weight_y, weight_x, own_z, own_y, own_x,
    DIMS: tl.constexpr, CENTRAL: tl.constexpr, L1: tl.constexpr, HAS_MAP: tl.constexpr, WIDE: tl.constexpr,
    BLOCK: tl.constexpr,
):  # fmt: skip
    """The gradient of this program's voxels; grad_output is multiplied in before rounding."""
    component, first, index, inside, z, y, x = locate(pieces, D, H, W, WIDE, BLOCK)
    voxel = dvf + first + index
    # Central differences along an axis exist away from the borders of the other axes.
    within_z = inside
    within_y = inside
    within_x = inside
    if CENTRAL:
        within_x = lies_within(x, W, 1)
        if DIMS >= 2:
            within_y = lies_within(y, H, 1)
        if DIMS >= 3:
            within_z = lies_within(z, D, 1)
    pull = pull_along(
        voxel, grad_output, component, z, y, x, D, H, W, x, W, 1, weight_x, inside & within_y & within_z,
        2, DIMS, CENTRAL, L1, HAS_MAP,
    )  # fmt: skip
    if DIMS >= 2:
        pull += pull_along(
            voxel, grad_output, component, z, y, x, D, H, W, y, H, W, weight_y, inside & within_x & within_z,
            1, DIMS, CENTRAL, L1, HAS_MAP,
        )  # fmt: skip
    if DIMS >= 3:
        pull += pull_along(
            voxel, grad_output, component, z, y, x, D, H, W, z, D, H * W, weight_z, inside & within_x & within_y,
            0, DIMS, CENTRAL, L1, HAS_MAP,
        )  # fmt: skip
    pull *= of_component(component, DIMS, own_z, own_y, own_x)
    if not HAS_MAP:
        pull *= tl.load(grad_output)
    tl.store(gradient + first + index, pull.to(gradient.dtype.element_ty), mask=inside)


def loss_weights(dvf: torch.Tensor, **params: Any) -> Weights:
    """The kernels' weights, of the axes and of the components."""
    return kernel_weights(smoothness_weights(dvf.shape, **params), differences=3)


def _constants(penalty: str, scheme: str, **others: Any) -> dict[str, Any]:
    return {"CENTRAL": scheme == "central", "L1": penalty == "l1", "BLOCK": BLOCK}


def forward(dvf: torch.Tensor, *, needs_grad: list[bool], **params: Any) -> tuple[torch.Tensor, list[torch.Tensor]]:
    """The loss."""
    shape, weights = loss_shape(dvf, **params), loss_weights(dvf, **params)
    return loss_of_one_field(sum_penalties, dvf, shape, weights, **_constants(**params)), []


def backward(
    grad_output: torch.Tensor, saved: list[torch.Tensor], dvf: torch.Tensor, *, needs_grad: list[bool], **params: Any
) -> list[torch.Tensor]:
    """The gradient, from the field once more."""
    if not needs_grad[0]:
        return []
    weights = loss_weights(dvf, **params)
    return [gradient_of_one_field(write_gradient, grad_output, dvf, weights, **_constants(**params))]
