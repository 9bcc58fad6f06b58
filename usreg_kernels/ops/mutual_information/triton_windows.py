"""Where voxels lie among the bins, in Triton: the voxels of a program, and the windows of both kernels.

Places are float64 from the value to the bin, by the operations of the reference, since the box has steps; what is left
of them between two bins is float32, and so are windows.
"""

from __future__ import annotations

import triton
import triton.language as tl

MARGIN = tl.constexpr(2)  # bins at each end of the range that a cubic B-spline needs


@triton.jit
def load_voxels(
    pred, target, mask, item, start, stop, size, voxels,
    HAS_MASK: tl.constexpr, SHARED: tl.constexpr, WIDE: tl.constexpr, BLOCK: tl.constexpr,
):  # fmt: skip
    """The voxels of an item from start, at most BLOCK and none from stop on.

    Returns where they lie in a tensor, whether they are there, the values of both images in float32, which of them
    count, and their weights. SHARED: the mask has one channel, of ``voxels`` voxels, for all.
    """
    index = start + tl.arange(0, BLOCK)
    inside = index < stop
    if WIDE:
        at = item.to(tl.int64) * size + index
    else:
        at = item * size + index
    p = tl.load(pred + at, mask=inside, other=0.0).to(tl.float32)
    t = tl.load(target + at, mask=inside, other=0.0).to(tl.float32)
    if HAS_MASK:
        if SHARED:
            weight = tl.load(mask + item.to(tl.int64) * voxels + index % voxels, mask=inside, other=0.0)
        else:
            weight = tl.load(mask + at, mask=inside, other=0.0)
        counts = weight != 0
    else:
        weight = inside.to(tl.float32)
        counts = inside
    return at, inside, p, t, counts, weight


@triton.jit
def first_voxel(part, span, WIDE: tl.constexpr):
    """Where a part of ``span`` voxels begins in its item."""
    if WIDE:
        return part.to(tl.int64) * span
    else:
        return part * span


@triton.jit
def place_in_range(value, counts, lowest, bin_size, bins):
    """Places of values in units of bins, b-spline: unbounded, and at most the last bin that moves, where NaN is."""
    at = tl.where(counts, (value.to(tl.float64) - lowest) / bin_size + MARGIN, 2.0)
    last = (bins - MARGIN - 1).to(tl.float64)
    return at, tl.where(at <= last, at, last)


@triton.jit
def box_bins(at):
    """The bin below a place of the box, and how much the one above it gets: 0, 1/2 or 1."""
    below = at.to(tl.int32)
    rest = at - below
    return below, tl.where(rest > 0.5, 1.0, tl.where(rest == 0.5, 0.5, 0.0))


@triton.jit
def cubic_window(at, first_bin, SIDE: tl.constexpr):
    """(BLOCK, SIDE), the cubic B-spline of voxels at places, over SIDE bins."""
    below = at.to(tl.int32)
    within = (at - below).to(tl.float32)
    step = (first_bin + tl.arange(0, SIDE))[None, :] - below[:, None]
    d = tl.abs(step.to(tl.float32) - within[:, None])
    e = 2.0 - d
    near = 2.0 / 3.0 + d * d * (0.5 * d - 1.0)
    return tl.where((step < -1) | (step > 2), 0.0, tl.where((step == 0) | (step == 1), near, e * e * e * (1.0 / 6.0)))


@triton.jit
def box_window(at, first_bin, SIDE: tl.constexpr):
    """(BLOCK, SIDE), the box of voxels at places."""
    below, share = box_bins(at)
    step = (first_bin + tl.arange(0, SIDE))[None, :] - below[:, None]
    share = share.to(tl.float32)[:, None]
    return tl.where(step == 0, 1.0 - share, tl.where(step == 1, share, 0.0))


@triton.jit
def place_in_unit(value, counts, bins):
    """The bin nearest to values, gaussian, and how far above it they lie: from -1/2 to 1/2. NaN counts as 0."""
    bounded = tl.where(counts & (value > 0), tl.minimum(value, 1.0), 0.0)
    at = bounded.to(tl.float64) * (bins - 1)
    nearest = (at + 0.5).to(tl.int32)
    return nearest, (at - nearest).to(tl.float32)


@triton.jit
def _unscaled(nearest, above, first_bin, bins, falloff, SIDE: tl.constexpr):
    """Steps from the nearest bin, and a gaussian over them that is 1 there; falloff: 1 / (2 sigma^2)."""
    bin_index = first_bin + tl.arange(0, SIDE)
    step = (bin_index[None, :] - nearest[:, None]).to(tl.float32)
    weight = tl.exp(-step * (step - 2.0 * above[:, None]) * falloff)
    return step, tl.where((bin_index < bins)[None, :], weight, 0.0)


@triton.jit
def gaussian_sums(nearest, above, bins, falloff, SIDE: tl.constexpr, TILES: tl.constexpr):
    """(BLOCK,) each: what gaussians over all bins are multiplied by to sum to 1, and their mean step."""
    total = tl.zeros_like(above)
    moment = tl.zeros_like(above)
    for tile in tl.static_range(TILES):
        step, weight = _unscaled(nearest, above, tile * SIDE, bins, falloff, SIDE)
        total += tl.sum(weight, axis=1)
        moment += tl.sum(step * weight, axis=1)
    return 1.0 / total, moment / total


@triton.jit
def gaussian_window(nearest, above, inverse, first_bin, bins, falloff, SIDE: tl.constexpr):
    """(BLOCK, SIDE), gaussians over SIDE of the bins."""
    _step, weight = _unscaled(nearest, above, first_bin, bins, falloff, SIDE)
    return weight * inverse[:, None]


@triton.jit
def gaussian_slopes(nearest, above, inverse, mean, first_bin, bins, falloff, SIDE: tl.constexpr):
    """(BLOCK, SIDE), the windows, and their derivatives by the place."""
    step, weight = _unscaled(nearest, above, first_bin, bins, falloff, SIDE)
    weight = weight * inverse[:, None]
    return weight, weight * (step - mean[:, None]) * (2.0 * falloff)
