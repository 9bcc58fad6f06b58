"""The Triton kernels of the gradient to the image: find the largest incoming gradient, add as integers, convert."""

from __future__ import annotations

import triton
import triton.language as tl

from usreg_kernels.ops.warp.triton_look import LARGEST, is_finite, look, steps

# A voxel of the image's gradient is a sum of 64-bit integers, which has the same bits in any order (scatter). Its last
# three bits are no part of the number: they say that an incoming gradient of that kind has reached the voxel.
INFINITE = tl.constexpr(1)
MINUS_INFINITE = tl.constexpr(2)
NOT_A_NUMBER = tl.constexpr(4)
KINDS = tl.constexpr(7)


@triton.jit
def measure(grad_output, state, count, BLOCK: tl.constexpr):
    """state[0]: the bits of the largest finite magnitude; state[1]: 1 if any value is not finite. Both start at 0."""
    index = tl.program_id(0).to(tl.int64) * BLOCK + tl.arange(0, BLOCK)
    magnitude = tl.abs(tl.load(grad_output + index, mask=index < count, other=0.0))
    finite = magnitude <= LARGEST
    bits = tl.where(finite, magnitude, 0.0).to(tl.int32, bitcast=True)  # in the order of the magnitudes
    tl.atomic_max(state, tl.max(bits), sem="relaxed")
    if tl.max((~finite).to(tl.int32)) != 0:
        tl.atomic_max(state + 1, 1, sem="relaxed")


@triton.jit
def _power_of_two(exponent):
    """2 ** exponent, for -126 to 127."""
    return ((exponent + 127) << 23).to(tl.float32, bitcast=True)


@triton.jit
def _exponent(state, count_bits):
    """The exponent of the power of two that makes gradients integers: a sum of 2 ** count_bits has 62 bits at most.

    The largest magnitude lies below 2 ** (biased exponent - 126).
    """
    return 62 - count_bits - ((tl.load(state) >> 23) - 126)


@triton.jit
def _add(target, weight, exists, scaled):
    """Adds a share of a gradient, in units of 8, which does not touch the last three bits."""
    share = (weight * scaled).to(tl.int64) & -8
    tl.atomic_add(target, share, mask=exists & (share != 0), sem="relaxed")


@triton.jit
def _mark(target, weight, exists, kind):
    """Notes that a gradient which is not finite has reached a voxel."""
    tl.atomic_or(target, kind, mask=exists & (weight != 0) & (kind != 0), sem="relaxed")


@triton.jit
def _share_along_x(target, weight, exists, x, step, scaled, kind, any_kind, NEAREST: tl.constexpr):
    lower = weight if NEAREST else weight * (1.0 - x[1])
    _add(target, lower, exists & x[3], scaled)
    if not NEAREST:
        _add(target + step, weight * x[1], exists & x[4], scaled)
    if any_kind:
        _mark(target, lower, exists & x[3], kind)
        if not NEAREST:
            _mark(target + step, weight * x[1], exists & x[4], kind)


@triton.jit
def _share_in_plane(
    target, weight, exists, y, x, step_y, step_x, scaled, kind, any_kind, NEAREST: tl.constexpr, DIMS: tl.constexpr
):  # fmt: skip
    if DIMS == 1:
        _share_along_x(target, weight, exists, x, step_x, scaled, kind, any_kind, NEAREST)
    else:
        lower = weight if NEAREST else weight * (1.0 - y[1])
        _share_along_x(target, lower, exists & y[3], x, step_x, scaled, kind, any_kind, NEAREST)
        if not NEAREST:
            _share_along_x(
                target + step_y, weight * y[1], exists & y[4], x, step_x, scaled, kind, any_kind, NEAREST
            )  # fmt: skip


@triton.jit
def scatter(
    grad_output, field, affine, sums, state, count_bits, pieces, channels, voxels, image_voxels,
    D, H: tl.constexpr, W: tl.constexpr, OUT_H: tl.constexpr, OUT_W: tl.constexpr,
    DIMS: tl.constexpr, PADDING: tl.constexpr, NEAREST: tl.constexpr,
    WIDE: tl.constexpr, WIDE_OUT: tl.constexpr, BLOCK: tl.constexpr,
):  # fmt: skip
    """Adds this program's part of the image's gradient to ``sums``, as integers. ``state``: of :func:`measure`."""
    batch, index, inside, _places, z, y, x, found, finite = look(
        field, affine, pieces, 0, voxels, D, H, W, OUT_H, OUT_W, DIMS, PADDING, NEAREST, WIDE, WIDE_OUT, 1, BLOCK
    )
    step_z, step_y, step_x = steps(D, H, W, PADDING)
    exponent = _exponent(state, count_bits)
    half = exponent // 2
    any_kind = tl.load(state + 1) != 0
    exists = inside & finite
    for channel in range(channels):
        number = (batch * channels + channel).to(tl.int64)
        grad = tl.load(grad_output + number * voxels + index, mask=inside, other=0.0)
        kind = tl.where(grad == float("inf"), INFINITE, tl.where(grad == -float("inf"), MINUS_INFINITE, NOT_A_NUMBER))
        kind = tl.where(is_finite(grad), 0, kind).to(tl.int64)
        # in two steps, since the power may be beyond float32
        scaled = tl.where(is_finite(grad), grad, 0.0) * _power_of_two(half) * _power_of_two(exponent - half)
        target = sums + number * image_voxels + found
        one = tl.full((BLOCK,), 1.0, tl.float32)
        if DIMS == 3:
            lower = one if NEAREST else 1.0 - z[1]
            _share_in_plane(
                target, lower, exists & z[3], y, x, step_y, step_x, scaled, kind, any_kind, NEAREST, DIMS
            )  # fmt: skip
            if not NEAREST:
                _share_in_plane(
                    target + step_z, z[1], exists & z[4], y, x, step_y, step_x, scaled, kind, any_kind, NEAREST, DIMS
                )
        else:
            _share_in_plane(target, one, exists, y, x, step_y, step_x, scaled, kind, any_kind, NEAREST, DIMS)


@triton.jit
def convert(sums, state, image_grad, count_bits, count, BLOCK: tl.constexpr):
    """The image's gradient from the sums of :func:`scatter`."""
    index = tl.program_id(0).to(tl.int64) * BLOCK + tl.arange(0, BLOCK)
    found = tl.load(sums + index, mask=index < count, other=0)
    kind = found & KINDS
    exponent = -_exponent(state, count_bits)
    half = exponent // 2
    value = (found - kind).to(tl.float32) * _power_of_two(half) * _power_of_two(exponent - half)
    infinite = tl.where(kind == INFINITE, float("inf"), tl.where(kind == MINUS_INFINITE, -float("inf"), float("nan")))
    value = tl.where(kind == 0, value, infinite)
    tl.store(image_grad + index, value.to(image_grad.dtype.element_ty), mask=index < count)
