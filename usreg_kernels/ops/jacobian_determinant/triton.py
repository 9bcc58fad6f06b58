"""The Jacobian determinant in Triton: one pass over the field for the map, and one for the gradient. It saves nothing.

The gradient gathers: a voxel enters the derivatives of its neighbours, whose cofactors are computed again from values
that the caches hold. At a border it enters its own, which is as if the neighbour were the voxel itself, with the other
sign: so no voxel's path differs.
"""

from __future__ import annotations

from typing import Any

import torch
import triton
import triton.language as tl

from usreg_kernels.ops.jacobian_determinant.reference import axis_scales, map_like
from usreg_kernels.ops.triton_fields import load_real, locate, write

BLOCK = 256  # voxels per program of the map
GRADIENT_BLOCK = 128  # of the gradient: one per thread, or it would not fit the registers


@triton.jit
def _difference(here, before, after, scale, exists):
    return scale * (load_real(here + after, exists) - load_real(here + before, exists))


@triton.jit
def _scale_at(position, size, scale):
    """What multiplies the difference of a voxel's neighbours: half the scale where there are both."""
    return tl.where((position > 0) & (position < size - 1), 0.5 * scale, scale)


@triton.jit
def column(here, voxels, position, size, stride, scale, exists, OWN: tl.constexpr, DIMS: tl.constexpr):
    """A column of the matrix: the derivatives of the components along an axis, plus 1 for the axis' OWN component.

    here: the first component's values. voxels: from one component to the next. exists: which of them to compute.
    """
    exists = exists & ((position > 0) | (position < size - 1))  # the axis has more than one voxel
    before = tl.where(position > 0, -stride, 0)
    after = tl.where(position < size - 1, stride, 0)
    scale = _scale_at(position, size, scale)
    first = _difference(here, before, after, scale, exists) + (1.0 if OWN == 0 else 0.0)
    second = first
    third = first
    if DIMS >= 2:
        second = _difference(here + voxels, before, after, scale, exists) + (1.0 if OWN == 1 else 0.0)
    if DIMS >= 3:
        third = _difference(here + 2 * voxels, before, after, scale, exists) + (1.0 if OWN == 2 else 0.0)
    return first, second, third


@triton.jit
def cross(a0, a1, a2, b0, b1, b2):
    """The cross product of two columns: the derivative of the determinant by the third."""
    return a1 * b2 - a2 * b1, a2 * b0 - a0 * b2, a0 * b1 - a1 * b0


@triton.jit
def place(pieces, D, H: tl.constexpr, W: tl.constexpr, DIMS: tl.constexpr, WIDE: tl.constexpr, BLOCK: tl.constexpr):
    """This program's voxels: where in the field's first component, where in a map; voxels per map; inside, z, y, x."""
    _, first, index, inside, z, y, x = locate(pieces, D, H, W, WIDE, BLOCK)
    voxels = (tl.zeros((), tl.int64) + D) * H * W
    return DIMS * first + index, first + index, voxels, inside, z, y, x


@triton.jit
def determinant(
    here, voxels, inside, z, y, x, D, H: tl.constexpr, W: tl.constexpr, scale_z, scale_y, scale_x, DIMS: tl.constexpr
):
    """The determinants of voxels, by the first row, as everywhere: infinities make the same infinities or NaN."""
    c0, c1, c2 = column(here, voxels, x, W, 1, scale_x, inside, DIMS - 1, DIMS)
    if DIMS == 1:
        return c0
    else:
        b0, b1, b2 = column(here, voxels, y, H, W, scale_y, inside, DIMS - 2, DIMS)
        if DIMS == 2:
            return b0 * c1 - b1 * c0
        else:
            a0, a1, a2 = column(here, voxels, z, D, H * W, scale_z, inside, 0, DIMS)
            return a0 * (b1 * c2 - c1 * b2) + b0 * (c1 * a2 - a1 * c2) + c0 * (a1 * b2 - b1 * a2)


@triton.jit
def write_determinants(
    ddf, values, pieces, D, H: tl.constexpr, W: tl.constexpr, scale_z, scale_y, scale_x,
    DIMS: tl.constexpr, WIDE: tl.constexpr, BLOCK: tl.constexpr,
):  # fmt: skip
    """The map of this program's voxels."""
    start, at, voxels, inside, z, y, x = place(pieces, D, H, W, DIMS, WIDE, BLOCK)
    found = determinant(ddf + start, voxels, inside, z, y, x, D, H, W, scale_z, scale_y, scale_x, DIMS)
    tl.store(values + at, found, mask=inside)


@triton.jit
def _pull_of(
    here, slopes, at, voxels, z, y, x, D, H: tl.constexpr, W: tl.constexpr, scale_z, scale_y, scale_x, weight, exists,
    AXIS: tl.constexpr, DIMS: tl.constexpr, SPARSE: tl.constexpr,
):  # fmt: skip
    """What the derivatives of a voxel along an axis pull at each component; z, y and x are the voxel's."""
    slope = tl.load(slopes + at, mask=exists, other=0.0)
    if SPARSE:
        exists = exists & (slope != 0)
    slope *= weight
    if DIMS == 1:
        return slope, slope, slope
    elif DIMS == 2:
        if AXIS == 1:
            c0, c1, c2 = column(here, voxels, x, W, 1, scale_x, exists, 1, DIMS)
            return slope * c1, -slope * c0, slope
        else:
            b0, b1, b2 = column(here, voxels, y, H, W, scale_y, exists, 0, DIMS)
            return -slope * b1, slope * b0, slope
    else:
        if AXIS == 0:
            b0, b1, b2 = column(here, voxels, y, H, W, scale_y, exists, 1, DIMS)
            c0, c1, c2 = column(here, voxels, x, W, 1, scale_x, exists, 2, DIMS)
        elif AXIS == 1:
            b0, b1, b2 = column(here, voxels, x, W, 1, scale_x, exists, 2, DIMS)
            c0, c1, c2 = column(here, voxels, z, D, H * W, scale_z, exists, 0, DIMS)
        else:
            b0, b1, b2 = column(here, voxels, z, D, H * W, scale_z, exists, 0, DIMS)
            c0, c1, c2 = column(here, voxels, y, H, W, scale_y, exists, 1, DIMS)
        n0, n1, n2 = cross(b0, b1, b2, c0, c1, c2)
        return slope * n0, slope * n1, slope * n2


@triton.jit
def _pull_along(
    here, slopes, at, voxels, z, y, x, D, H: tl.constexpr, W: tl.constexpr, scale_z, scale_y, scale_x,
    position, size, stride, scale, inside, AXIS: tl.constexpr, DIMS: tl.constexpr, SPARSE: tl.constexpr,
):  # fmt: skip
    """What the derivatives along an axis of the two voxels beside a voxel pull at it."""
    exists = inside & ((position > 0) | (position < size - 1))
    DZ: tl.constexpr = 1 if AXIS == 0 else 0
    DY: tl.constexpr = 1 if AXIS == 1 else 0
    DX: tl.constexpr = 1 if AXIS == 2 else 0
    back = tl.where(position > 0, 1, 0)
    weight = _scale_at(position - back, size, scale) * tl.where(back == 1, 1.0, -1.0)
    p0, p1, p2 = _pull_of(
        here - back * stride, slopes, at - back * stride, voxels, z - DZ * back, y - DY * back, x - DX * back, D, H, W,
        scale_z, scale_y, scale_x, weight, exists, AXIS, DIMS, SPARSE,
    )  # fmt: skip
    ahead = tl.where(position < size - 1, 1, 0)
    weight = _scale_at(position + ahead, size, scale) * tl.where(ahead == 1, -1.0, 1.0)
    q0, q1, q2 = _pull_of(
        here + ahead * stride, slopes, at + ahead * stride, voxels, z + DZ * ahead, y + DY * ahead, x + DX * ahead,
        D, H, W, scale_z, scale_y, scale_x, weight, exists, AXIS, DIMS, SPARSE,
    )  # fmt: skip
    return p0 + q0, p1 + q1, p2 + q2


@triton.jit
def write_gradient(
    ddf, slopes, gradient, pieces, D, H: tl.constexpr, W: tl.constexpr, scale_z, scale_y, scale_x,
    DIMS: tl.constexpr, SPARSE: tl.constexpr, WIDE: tl.constexpr, BLOCK: tl.constexpr,
):  # fmt: skip
    """The gradient of this program's voxels. slopes: of each determinant; SPARSE: most of them are 0."""
    start, at, voxels, inside, z, y, x = place(pieces, D, H, W, DIMS, WIDE, BLOCK)
    here = ddf + start
    p0, p1, p2 = _pull_along(
        here, slopes, at, voxels, z, y, x, D, H, W, scale_z, scale_y, scale_x, x, W, 1, scale_x, inside,
        2, DIMS, SPARSE,
    )  # fmt: skip
    if DIMS >= 2:
        q0, q1, q2 = _pull_along(
            here, slopes, at, voxels, z, y, x, D, H, W, scale_z, scale_y, scale_x, y, H, W, scale_y, inside,
            1, DIMS, SPARSE,
        )  # fmt: skip
        p0 += q0
        p1 += q1
        p2 += q2
    if DIMS >= 3:
        q0, q1, q2 = _pull_along(
            here, slopes, at, voxels, z, y, x, D, H, W, scale_z, scale_y, scale_x, z, D, H * W, scale_z, inside,
            0, DIMS, SPARSE,
        )  # fmt: skip
        p0 += q0
        p1 += q1
        p2 += q2
    target = gradient + start
    tl.store(target, p0.to(gradient.dtype.element_ty), mask=inside)
    if DIMS >= 2:
        tl.store(target + voxels, p1.to(gradient.dtype.element_ty), mask=inside)
    if DIMS >= 3:
        tl.store(target + 2 * voxels, p2.to(gradient.dtype.element_ty), mask=inside)


def scales(ddf: torch.Tensor, spacing: list[float] | None) -> list[float]:
    """What multiplies the derivatives along z, y and x."""
    dims = ddf.ndim - 2
    return [1.0] * (3 - dims) + axis_scales(dims, spacing)


def forward(ddf: torch.Tensor, *, needs_grad: list[bool], **params: Any) -> tuple[torch.Tensor, list[torch.Tensor]]:
    """The map."""
    field = ddf.contiguous()
    values = map_like(field)
    write(write_determinants, [field, values], values, scales(field, **params), BLOCK=BLOCK)
    return values, []


def backward(
    grad_output: torch.Tensor, saved: list[torch.Tensor], ddf: torch.Tensor, *, needs_grad: list[bool], **params: Any
) -> list[torch.Tensor]:
    """The gradient, from the field once more."""
    if not needs_grad[0]:
        return []
    field, slopes = ddf.contiguous(), grad_output.contiguous()
    gradient = torch.empty_like(field)
    tensors = [field, slopes, gradient]
    write(write_gradient, tensors, slopes, scales(field, **params), SPARSE=False, BLOCK=GRADIENT_BLOCK)
    return [gradient]
