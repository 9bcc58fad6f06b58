"""Gradient smoothness in Triton: one pass over the field for the loss, and one for the gradient.

It saves nothing: reading the field again moves fewer bytes than a gradient that forward would write and backward scale.
"""

from __future__ import annotations

from typing import Any

import torch
import triton
import triton.language as tl

from usreg_kernels.ops.fields import size_ratios
from usreg_kernels.ops.gradient_smoothness.reference import loss_shape
from usreg_kernels.ops.triton_backend import OPTIONS, device_guard
from usreg_kernels.ops.triton_fields import (
    extents,
    grad_at,
    lies_within,
    load_real,
    locate,
    map_index,
    of_component,
    programs,
)
from usreg_kernels.ops.triton_reduction import finish

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


def kernel_weights(
    dvf: torch.Tensor, penalty: str, scheme: str, spacing: list[float] | None, normalize: bool, reduction: str
) -> tuple[list[float], int]:
    """The kernels' weights, of the axes and of the components; and the divisor of the sum."""
    sizes = list(dvf.shape[2:])
    power = 2 if penalty == "l2" else 1
    central = scheme == "central"
    axes = []
    for axis, size in enumerate(sizes):
        scale = (0.5 if central else 1.0) * (size if normalize else 1.0) / (spacing[axis] if spacing else 1.0)
        # The mean is over an axis' own differences, of which there is one less along it than there are voxels.
        share = size / (size - 1) if reduction == "mean" and not central and size > 1 else 1.0
        axes.append(share * scale**power)
    own = [ratio**power for ratio in size_ratios(dvf.shape, 1)] if normalize else [1.0] * len(sizes)
    divisor = 1
    if reduction == "mean":
        divisor = torch.Size([*dvf.shape[:2], *[size - 2 * central for size in sizes]]).numel()
    return [0.0] * (3 - len(sizes)) + axes + own + [1.0] * (3 - len(sizes)), divisor


def forward(dvf: torch.Tensor, *, needs_grad: list[bool], **params: Any) -> tuple[torch.Tensor, list[torch.Tensor]]:
    """The loss."""
    field, keep_map = dvf.contiguous(), params["reduction"] == "none"
    loss = field.new_empty(loss_shape(dvf, **params), dtype=torch.float32)
    weights, divisor = kernel_weights(dvf, **params)
    if field.numel() == 0:
        differences = params["scheme"] == "central" or max(dvf.shape[2:]) > 1
        return loss.fill_(float("nan") if params["reduction"] == "mean" and differences else 0.0), []
    pieces, count = programs(field, BLOCK)
    partials = field.new_empty(0 if keep_map else count, dtype=torch.float32)
    with device_guard(field):
        sum_penalties[(count,)](
            field, loss, partials, pieces, *extents(field), *weights, DIMS=field.ndim - 2,
            CENTRAL=params["scheme"] == "central", L1=params["penalty"] == "l1", KEEP_MAP=keep_map,
            WIDE=field[0, 0].numel() >= 2**31, BLOCK=BLOCK, **OPTIONS,
        )  # fmt: skip
        return loss if keep_map else finish(partials, divisor)[0], []


def backward(
    grad_output: torch.Tensor, saved: list[torch.Tensor], dvf: torch.Tensor, *, needs_grad: list[bool], **params: Any
) -> list[torch.Tensor]:
    """The gradient, from the field anew."""
    if not needs_grad[0]:
        return []
    field = dvf.contiguous()
    gradient = torch.empty_like(field)
    if field.numel() == 0:
        return [gradient]
    weights, divisor = kernel_weights(dvf, **params)
    weights[:3] = [weight / divisor for weight in weights[:3]]
    pieces, count = programs(field, BLOCK)
    with device_guard(field):
        write_gradient[(count,)](
            grad_output.contiguous(), field, gradient, pieces, *extents(field), *weights, DIMS=field.ndim - 2,
            CENTRAL=params["scheme"] == "central", L1=params["penalty"] == "l1", HAS_MAP=params["reduction"] == "none",
            WIDE=field[0, 0].numel() >= 2**31, BLOCK=BLOCK, **OPTIONS,
        )  # fmt: skip
    return [gradient]
