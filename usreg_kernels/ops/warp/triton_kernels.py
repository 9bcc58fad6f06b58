"""The Triton kernels of warp and composition: values, the gradient to the coordinates, and that to the image.

A program takes BLOCK output voxels that follow on each other in memory, one per thread: so each of the up to eight
loads of a warp of threads touches few cache lines, however the field bends. Coordinates, and the weights of the voxels
around, are found once for all channels. Sizes of rows and planes are constants of the compilation: dividing by a
variable takes tens of instructions, and the distances of the voxels around become parts of their loads. So another
height or width compiles the kernels again.

An axis is a tuple: the voxel at or below the coordinate, how far above it the coordinate lies (0 to 1), the derivative
of that (1, -1, or 0 where the padding stops the coordinate), and whether this voxel and the next lie in the image.
"""

from __future__ import annotations

import triton
import triton.language as tl

ZEROS = tl.constexpr(1)  # of PADDING_CODES in native.py
REFLECTION = tl.constexpr(2)
LARGEST = tl.constexpr(3.4028234663852886e38)  # of float32

# A voxel of the image's gradient is a sum of 64-bit integers, which has the same bits in any order (scatter). Its last
# three bits are no part of the number: they say that an incoming gradient of that kind has reached the voxel.
INFINITE = tl.constexpr(1)
MINUS_INFINITE = tl.constexpr(2)
NOT_A_NUMBER = tl.constexpr(4)
KINDS = tl.constexpr(7)


@triton.jit
def _is_finite(value):
    return tl.abs(value) <= LARGEST


@triton.jit
def _axis(coordinate, size, PADDING: tl.constexpr, NEAREST: tl.constexpr):
    """The axis of coordinates. Those that are not finite come to lie somewhere in the image."""
    low = -1.0 if PADDING == ZEROS else 0.0
    high = size * 1.0 if PADDING == ZEROS else size - 1.0
    slope = tl.where(coordinate == coordinate, 1.0, 0.0)
    if PADDING == REFLECTION:
        period = tl.maximum(2.0 * high, 1.0)
        slope = tl.where(coordinate < 0, -1.0, 1.0)
        coordinate = tl.abs(coordinate)
        coordinate -= tl.floor(coordinate / period) * period
        back = coordinate > high
        slope = tl.where(back, -slope, slope)
        coordinate = tl.where(back, period - coordinate, coordinate)
    if PADDING == ZEROS:
        moves = (coordinate >= low) & (coordinate < high)
    else:
        moves = (coordinate > low) & (coordinate < high)
    slope = tl.where(moves, slope, 0.0)
    coordinate = tl.where(coordinate > low, coordinate, low)  # of NaN, too
    coordinate = tl.where(coordinate < high, coordinate, high)
    if PADDING == ZEROS or NEAREST:
        lower = tl.floor(coordinate).to(tl.int32)
    else:  # the next voxel is always there, but on an axis of one voxel
        lower = tl.minimum(coordinate.to(tl.int32), tl.maximum(size - 2, 0))
    fraction = coordinate - lower.to(tl.float32)
    if NEAREST:  # halves to even
        lower += ((fraction > 0.5) | ((fraction == 0.5) & (lower % 2 != 0))).to(tl.int32)
    return lower, fraction, slope, (lower >= 0) & (lower < size), (lower >= -1) & (lower < size - 1)


@triton.jit
def _coordinate(
    field, affine, batch, index, inside, voxels, own, z, y, x, NUMBER: tl.constexpr, DIMS: tl.constexpr
):  # fmt: skip
    """The coordinates of output voxels along the image's axis NUMBER; ``own`` is where they lie along it themselves."""
    if affine is not None:
        line = affine + (batch * DIMS + NUMBER) * (DIMS + 1)
        own = tl.load(line + DIMS) + tl.load(line + DIMS - 1) * x
        if DIMS >= 2:
            own += tl.load(line + DIMS - 2) * y
        if DIMS >= 3:
            own += tl.load(line) * z
    if field is not None:
        component = field + (batch * DIMS + NUMBER).to(tl.int64) * voxels
        own += tl.load(component + index, mask=inside, other=0.0).to(tl.float32)
    return own


@triton.jit
def _look(
    field, affine, pieces, turn, voxels, D, H: tl.constexpr, W: tl.constexpr, OUT_H: tl.constexpr, OUT_W: tl.constexpr,
    DIMS: tl.constexpr, PADDING: tl.constexpr, NEAREST: tl.constexpr,
    WIDE: tl.constexpr, WIDE_OUT: tl.constexpr, TURNS: tl.constexpr, BLOCK: tl.constexpr,
):  # fmt: skip
    """Where this program's output voxels look.

    Returns their batch, their index in a channel of the output, whether they exist, their own place z, y, x, the axes
    z, y, x of the image, the index there of the voxel at or below, and which coordinates are finite. Of axes that do
    not exist there are copies of another. WIDE: whether int64 is needed to count a channel's voxels.
    """
    batch = tl.program_id(0) // pieces
    piece = tl.program_id(0) % pieces * TURNS + turn
    index = (piece.to(tl.int64) if WIDE_OUT else piece) * BLOCK + tl.arange(0, BLOCK)
    inside = index < voxels
    row = index // OUT_W
    place_z = (row // OUT_H).to(tl.float32)
    place_y = (row % OUT_H).to(tl.float32)
    place_x = (index % OUT_W).to(tl.float32)
    places = place_z, place_y, place_x
    along_x = _coordinate(field, affine, batch, index, inside, voxels, place_x, *places, DIMS - 1, DIMS)
    finite = _is_finite(along_x)
    x = _axis(along_x, W, PADDING, NEAREST)
    found = x[0].to(tl.int64) if WIDE else x[0]
    y = x
    z = x
    if DIMS >= 2:
        along_y = _coordinate(field, affine, batch, index, inside, voxels, place_y, *places, DIMS - 2, DIMS)
        finite = finite & _is_finite(along_y)
        y = _axis(along_y, H, PADDING, NEAREST)
        found += (y[0].to(tl.int64) if WIDE else y[0]) * W
    if DIMS >= 3:
        along_z = _coordinate(field, affine, batch, index, inside, voxels, place_z, *places, 0, DIMS)
        finite = finite & _is_finite(along_z)
        z = _axis(along_z, D, PADDING, NEAREST)
        found += (z[0].to(tl.int64) if WIDE else z[0]) * (H * W)
    return batch, index, inside, places, z, y, x, found, finite


@triton.jit
def _steps(D, H: tl.constexpr, W: tl.constexpr, PADDING: tl.constexpr):
    """From a voxel to the next along z, y, x; none along an axis of one voxel, unless what is outside is hidden."""
    if PADDING == ZEROS:
        return H * W, W, 1
    else:
        return tl.minimum(D - 1, 1) * (H * W), min(H - 1, 1) * W, min(W - 1, 1)


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
    batch, index, inside, places, z, y, x, found, finite = _look(
        field, affine, pieces, 0, voxels, D, H, W, OUT_H, OUT_W, DIMS, PADDING, NEAREST, WIDE, WIDE_OUT, 1, BLOCK
    )
    step_z, step_y, step_x = _steps(D, H, W, PADDING)
    for channel in range(channels):
        number = (batch * channels + channel).to(tl.int64)
        source = image + number * image_voxels + found
        if NEAREST:
            exists = x[3] & y[3] & z[3]
            value = _voxel(source, exists, PADDING)
        else:
            value, along_z, along_y, along_x = _cell(source, z, y, x, step_z, step_y, step_x, PADDING, DIMS)
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
    step_z, step_y, step_x = _steps(D, H, W, PADDING)
    zero = tl.zeros((BLOCK,), tl.float32)
    moments_z = zero, zero, zero, zero
    moments_y = zero, zero, zero, zero
    moments_x = zero, zero, zero, zero
    for turn in range(TURNS):
        batch, index, inside, places, z, y, x, found, finite = _look(
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
            value, along_z, along_y, along_x = _cell(source, z, y, x, step_z, step_y, step_x, PADDING, DIMS)
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
    """Of the power of two by which gradients become integers: no sum of 2 ** count_bits of them has more than 62 bits.

    The largest magnitude lies below 2 ** (biased exponent - 126).
    """
    return 62 - count_bits - ((tl.load(state) >> 23) - 126)


@triton.jit
def _add(target, weight, exists, scaled):
    """Adds a share of a gradient, in units of 8, which leaves the last three bits alone."""
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
    batch, index, inside, places, z, y, x, found, finite = _look(
        field, affine, pieces, 0, voxels, D, H, W, OUT_H, OUT_W, DIMS, PADDING, NEAREST, WIDE, WIDE_OUT, 1, BLOCK
    )
    step_z, step_y, step_x = _steps(D, H, W, PADDING)
    exponent = _exponent(state, count_bits)
    half = exponent // 2
    any_kind = tl.load(state + 1) != 0
    exists = inside & finite
    for channel in range(channels):
        number = (batch * channels + channel).to(tl.int64)
        grad = tl.load(grad_output + number * voxels + index, mask=inside, other=0.0)
        kind = tl.where(grad == float("inf"), INFINITE, tl.where(grad == -float("inf"), MINUS_INFINITE, NOT_A_NUMBER))
        kind = tl.where(_is_finite(grad), 0, kind).to(tl.int64)
        # in two steps, since the power may be beyond float32
        scaled = tl.where(_is_finite(grad), grad, 0.0) * _power_of_two(half) * _power_of_two(exponent - half)
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
