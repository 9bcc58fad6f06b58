"""The Triton kernels that read the image where output voxels look: values, and the gradient to the coordinates."""

from __future__ import annotations

import triton
import triton.language as tl

from usreg_kernels.ops.warp.triton_look import ZEROS, look, steps


@triton.jit
def _mix(low, high, fraction):
    """Between two values: each of them exactly at its end, and both where they are equal."""
    return tl.fma(fraction, high, tl.fma(-fraction, low, low))


@triton.jit
def _voxel(pointer, exists, PADDING: tl.constexpr):
    if PADDING == ZEROS:
        return tl.load(pointer, mask=exists, other=0.0).to(tl.float32)
    else:
        return tl.load(pointer).to(tl.float32)


@triton.jit
def _pair(pointer, exists, x, step, PADDING: tl.constexpr):
    return _voxel(pointer, exists & x[3], PADDING), _voxel(pointer + step, exists & x[4], PADDING)


@triton.jit
def _plane(pointer, exists, y, x, step_y, step_x, PADDING: tl.constexpr, DIMS: tl.constexpr):
    """The value at a place in a plane of the image, and its derivatives along y and x."""
    if DIMS == 1:
        low, high = _pair(pointer, exists, x, step_x, PADDING)
        return _mix(low, high, x[1]), high - low, high - low
    else:
        low, high = _pair(pointer, exists & y[3], x, step_x, PADDING)
        next_low, next_high = _pair(pointer + step_y, exists & y[4], x, step_x, PADDING)
        value = _mix(low, high, x[1])
        next_value = _mix(next_low, next_high, x[1])
        along_x = _mix(high - low, next_high - next_low, y[1])
        return _mix(value, next_value, y[1]), next_value - value, along_x


@triton.jit
def _cell(pointer, z, y, x, step_z, step_y, step_x, PADDING: tl.constexpr, DIMS: tl.constexpr):
    """The value at a place in the image, and its derivatives along z, y and x."""
    exists = x[0] == x[0]
    if DIMS == 3:
        value, along_y, along_x = _plane(pointer, exists & z[3], y, x, step_y, step_x, PADDING, DIMS)
        next_value, next_along_y, next_along_x = _plane(
            pointer + step_z, exists & z[4], y, x, step_y, step_x, PADDING, DIMS
        )
        along_y = _mix(along_y, next_along_y, z[1])
        along_x = _mix(along_x, next_along_x, z[1])
        return _mix(value, next_value, z[1]), next_value - value, along_y, along_x
    else:
        value, along_y, along_x = _plane(pointer, exists, y, x, step_y, step_x, PADDING, DIMS)
        return value, along_y, along_y, along_x


@triton.jit
def pull(
    image, field, affine, output, pieces, channels, voxels, image_voxels,
    D, H: tl.constexpr, W: tl.constexpr, OUT_H: tl.constexpr, OUT_W: tl.constexpr,
    DIMS: tl.constexpr, PADDING: tl.constexpr, NEAREST: tl.constexpr, COMPOSES: tl.constexpr,
    WIDE: tl.constexpr, WIDE_OUT: tl.constexpr, BLOCK: tl.constexpr,
):  # fmt: skip
    """The values of this program's voxels in all channels; COMPOSES: plus the field, whose components they are."""
    batch, index, inside, _places, z, y, x, found, finite = look(
        field, affine, pieces, 0, voxels, D, H, W, OUT_H, OUT_W, DIMS, PADDING, NEAREST, WIDE, WIDE_OUT, 1, BLOCK
    )
    step_z, step_y, step_x = steps(D, H, W, PADDING)
    for channel in range(channels):
        number = (batch * channels + channel).to(tl.int64)
        source = image + number * image_voxels + found
        if NEAREST:
            exists = x[3] & y[3] & z[3]
            value = _voxel(source, exists, PADDING)
        else:
            value = _cell(source, z, y, x, step_z, step_y, step_x, PADDING, DIMS)[0]
        if COMPOSES:
            value += tl.load(field + number * voxels + index, mask=inside, other=0.0).to(tl.float32)
        tl.store(output + number * voxels + index, tl.where(finite, value, float("nan")), mask=inside)


@triton.jit
def _finish_slope(total, slope, finite):
    """The gradient to a coordinate, from that to the coordinate within the image."""
    return tl.where(finite, tl.where(slope != 0, total * slope, 0.0), float("nan"))


@triton.jit
def _store_component(field_grad, values, component, voxels, index, inside):
    tl.store(field_grad + component.to(tl.int64) * voxels + index, values.to(field_grad.dtype.element_ty), mask=inside)


@triton.jit
def _add_moments(sums, gradient, places, inside, DIMS: tl.constexpr):
    """Adds a coordinate's gradient, times the voxels' places z, y, x and 1, to sums per thread."""
    gradient = tl.where(inside, gradient, 0.0)
    return (
        sums[0] + gradient * places[0] if DIMS >= 3 else sums[0],
        sums[1] + gradient * places[1] if DIMS >= 2 else sums[1],
        sums[2] + gradient * places[2],
        sums[3] + gradient,
    )


@triton.jit
def _store_moments(partials, sums, row, pieces, piece, DIMS: tl.constexpr):
    """A program's sums: to (rows of the affine, its columns, pieces)."""
    target = partials + (row * (DIMS + 1)).to(tl.int64) * pieces + piece
    if DIMS >= 3:
        tl.store(target, tl.sum(sums[0]))
    if DIMS >= 2:
        tl.store(target + (DIMS - 2) * pieces, tl.sum(sums[1]))
    tl.store(target + (DIMS - 1) * pieces, tl.sum(sums[2]))
    tl.store(target + DIMS * pieces, tl.sum(sums[3]))


@triton.jit
def slopes(
    grad_output, image, field, affine, field_grad, partials, pieces, channels, voxels, image_voxels,
    D, H: tl.constexpr, W: tl.constexpr, OUT_H: tl.constexpr, OUT_W: tl.constexpr,
    DIMS: tl.constexpr, PADDING: tl.constexpr, COMPOSES: tl.constexpr,
    WIDE: tl.constexpr, WIDE_OUT: tl.constexpr, TURNS: tl.constexpr, BLOCK: tl.constexpr,
):  # fmt: skip
    """The gradient to the field, if ``field_grad`` is given; and, if ``partials`` is, sums for that to the affine.

    A program takes TURNS blocks of voxels, one after the other.
    """
    piece = tl.program_id(0) % pieces
    step_z, step_y, step_x = steps(D, H, W, PADDING)
    zero = tl.zeros((BLOCK,), tl.float32)
    moments_z = zero, zero, zero, zero
    moments_y = zero, zero, zero, zero
    moments_x = zero, zero, zero, zero
    for turn in range(TURNS):
        batch, index, inside, places, z, y, x, found, finite = look(
            field, affine, pieces, turn, voxels, D, H, W, OUT_H, OUT_W,
            DIMS, PADDING, False, WIDE, WIDE_OUT, TURNS, BLOCK,
        )  # fmt: skip
        total_z = zero
        total_y = zero
        total_x = zero
        for channel in range(channels):
            number = (batch * channels + channel).to(tl.int64)
            grad = tl.load(grad_output + number * voxels + index, mask=inside, other=0.0)
            source = image + number * image_voxels + found
            _value, along_z, along_y, along_x = _cell(source, z, y, x, step_z, step_y, step_x, PADDING, DIMS)
            total_z += grad * along_z
            total_y += grad * along_y
            total_x += grad * along_x
        total_z = _finish_slope(total_z, z[2], finite)
        total_y = _finish_slope(total_y, y[2], finite)
        total_x = _finish_slope(total_x, x[2], finite)
        if COMPOSES:
            own = grad_output + (batch * DIMS).to(tl.int64) * voxels + index
            total_x += tl.load(own + (DIMS - 1) * voxels, mask=inside, other=0.0)
            if DIMS >= 2:
                total_y += tl.load(own + (DIMS - 2) * voxels, mask=inside, other=0.0)
            if DIMS >= 3:
                total_z += tl.load(own, mask=inside, other=0.0)
        if field_grad is not None:
            _store_component(field_grad, total_x, batch * DIMS + DIMS - 1, voxels, index, inside)
            if DIMS >= 2:
                _store_component(field_grad, total_y, batch * DIMS + DIMS - 2, voxels, index, inside)
            if DIMS >= 3:
                _store_component(field_grad, total_z, batch * DIMS, voxels, index, inside)
        if partials is not None:
            moments_x = _add_moments(moments_x, total_x, places, inside, DIMS)
            if DIMS >= 2:
                moments_y = _add_moments(moments_y, total_y, places, inside, DIMS)
            if DIMS >= 3:
                moments_z = _add_moments(moments_z, total_z, places, inside, DIMS)
    if partials is not None:
        first = tl.program_id(0) // pieces * DIMS
        _store_moments(partials, moments_x, first + DIMS - 1, pieces, piece, DIMS)
        if DIMS >= 2:
            _store_moments(partials, moments_y, first + DIMS - 2, pieces, piece, DIMS)
        if DIMS >= 3:
            _store_moments(partials, moments_z, first, pieces, piece, DIMS)


@triton.jit
def add_up(partials, affine_grad, pieces, BLOCK: tl.constexpr):
    """An element of the affine's gradient: the sum of its partial sums, in float64 and in one order."""
    index = tl.arange(0, BLOCK)
    total = tl.zeros((BLOCK,), tl.float64)
    row = partials + tl.program_id(0).to(tl.int64) * pieces
    for start in range(0, pieces, BLOCK):
        total += tl.load(row + start + index, mask=start + index < pieces, other=0.0).to(tl.float64)
    tl.store(affine_grad + tl.program_id(0), tl.sum(total).to(tl.float32))
