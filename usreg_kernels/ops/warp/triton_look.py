"""Where output voxels look, in Triton: the coordinates, brought into the image by the padding mode.

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


@triton.jit
def is_finite(value):
    return tl.abs(value) <= LARGEST


@triton.jit
def _axis(coordinate, size, PADDING: tl.constexpr, NEAREST: tl.constexpr):
    """The axis of coordinates. Those that are not finite come to lie somewhere in the image."""
    low = -1.0 if PADDING == ZEROS else 0.0
    high = size * 1.0 if PADDING == ZEROS else size - 1.0
    slope = 1.0
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
def look(
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
    finite = is_finite(along_x)
    x = _axis(along_x, W, PADDING, NEAREST)
    found = x[0].to(tl.int64) if WIDE else x[0]
    y = x
    z = x
    if DIMS >= 2:
        along_y = _coordinate(field, affine, batch, index, inside, voxels, place_y, *places, DIMS - 2, DIMS)
        finite = finite & is_finite(along_y)
        y = _axis(along_y, H, PADDING, NEAREST)
        found += (y[0].to(tl.int64) if WIDE else y[0]) * W
    if DIMS >= 3:
        along_z = _coordinate(field, affine, batch, index, inside, voxels, place_z, *places, 0, DIMS)
        finite = finite & is_finite(along_z)
        z = _axis(along_z, D, PADDING, NEAREST)
        found += (z[0].to(tl.int64) if WIDE else z[0]) * (H * W)
    return batch, index, inside, places, z, y, x, found, finite


@triton.jit
def steps(D, H: tl.constexpr, W: tl.constexpr, PADDING: tl.constexpr):
    """From a voxel to the next along z, y, x; none along an axis of one voxel, unless what is outside is hidden."""
    if PADDING == ZEROS:
        return H * W, W, 1
    else:
        return tl.minimum(D - 1, 1) * (H * W), min(H - 1, 1) * W, min(W - 1, 1)
