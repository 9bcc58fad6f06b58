"""The Triton kernels of mutual information's gradients: they look up the derivative by the joint distribution.

b-spline: a voxel reads four entries of one column, or of two where its value of target lies between two bins. The ends
of the range of pred move with the values there: a pass finds the sums of what comes through them first.

gaussian: the windows of a block of voxels, or their derivatives, are multiplied into the table.
"""

from __future__ import annotations

import triton
import triton.language as tl

from usreg_kernels.ops.mutual_information.triton_forward import AT_HIGHEST, AT_LOWEST, DIVISORS, FINITE, TARGET
from usreg_kernels.ops.mutual_information.triton_windows import (
    MARGIN,
    box_bins,
    first_voxel,
    gaussian_slopes,
    gaussian_sums,
    load_voxels,
    place_in_range,
    place_in_unit,
)


@triton.jit
def _incoming(grad_output, numbers, item, share, PER_ITEM: tl.constexpr):
    """What multiplies the derivative by an item's joint distribution, over the divisor of its histogram."""
    if PER_ITEM:
        grad = tl.load(grad_output + item)
    else:
        grad = tl.load(grad_output)
    return grad.to(tl.float64) * share / tl.load(numbers + DIVISORS + item)


@triton.jit
def _look_up(table, p, t, counts, numbers, bins, PAD: tl.constexpr):
    """The derivative by the place of pred's values, and where they lie between the ends of the range, from 0 to 1."""
    unbounded, place = place_in_range(p, counts, tl.load(numbers), tl.load(numbers + 2), bins)
    moves = unbounded <= place
    below = place.to(tl.int32)
    s = (place - below).to(tl.float32)
    along = (place - MARGIN).to(tl.float32) / (bins - 2 * MARGIN)
    _unbounded, place = place_in_range(t, counts, tl.load(numbers + TARGET), tl.load(numbers + TARGET + 2), bins)
    column, share = box_bins(place)
    between = counts & (share == 0.5)
    at = table + (below - 1) * PAD + column + (share == 1.0).to(tl.int32)
    t0 = _entry(at, counts, between)
    t1 = _entry(at + PAD, counts, between)
    t2 = _entry(at + 2 * PAD, counts, between)
    t3 = _entry(at + 3 * PAD, counts, between)
    # the derivatives of the four weights sum to 0
    slope = -0.5 * (1.0 - s) * (1.0 - s) * (t0 - t2) + s * (1.5 * s - 2.0) * (t1 - t2) + 0.5 * s * s * (t3 - t2)
    return tl.where(moves, slope, 0.0), along


@triton.jit
def _entry(at, counts, between):
    """An entry of the table, or the mean of it and the next one."""
    value = tl.load(at, mask=counts, other=0.0)
    return tl.where(between, 0.5 * (value + tl.load(at + 1, mask=between, other=0.0)), value)


@triton.jit
def sum_ends(
    grad_output, slopes, numbers, pred, target, mask, partials, size, voxels, span, parts, bins, share,
    PER_ITEM: tl.constexpr, PAD: tl.constexpr,
    HAS_MASK: tl.constexpr, SHARED: tl.constexpr, WIDE: tl.constexpr, BLOCK: tl.constexpr,
):  # fmt: skip
    """partials (2, programs): this part's derivatives by the lowest and by the highest value of pred."""
    program = tl.program_id(0)
    item = program // parts
    begin = first_voxel(program % parts, span, WIDE)
    stop = tl.minimum(begin + span, size)
    factor = _incoming(grad_output, numbers, item, share, PER_ITEM) / tl.load(numbers + 2)
    table = slopes + item.to(tl.int64) * (PAD * PAD)
    lowest = tl.zeros((BLOCK,), tl.float64)
    highest = tl.zeros((BLOCK,), tl.float64)
    for start in range(begin, stop, BLOCK):
        _at, _inside, p, t, counts, weight = load_voxels(
            pred, target, mask, item, start, stop, size, voxels, HAS_MASK, SHARED, WIDE, BLOCK
        )
        slope, along = _look_up(table, p, t, counts, numbers, bins, PAD)
        lowest += (slope * weight * (along - 1.0)).to(tl.float64)
        highest -= (slope * weight * along).to(tl.float64)
    tl.store(partials + program, tl.sum(lowest) * factor)
    tl.store(partials + tl.num_programs(0) + program, tl.sum(highest) * factor)


@triton.jit
def finish_ends(partials, numbers, ends, count, BLOCK: tl.constexpr):
    """ends (2): what each voxel at the lowest and at the highest value of pred gets besides."""
    index = tl.arange(0, BLOCK)
    lowest = tl.zeros((BLOCK,), tl.float64)
    highest = tl.zeros((BLOCK,), tl.float64)
    for start in range(0, count, BLOCK):
        inside = start + index < count
        lowest += tl.load(partials + start + index, mask=inside, other=0.0)
        highest += tl.load(partials + count + start + index, mask=inside, other=0.0)
    tl.store(ends, tl.sum(lowest) / tl.maximum(tl.load(numbers + AT_LOWEST), 1.0))
    tl.store(ends + 1, tl.sum(highest) / tl.maximum(tl.load(numbers + AT_HIGHEST), 1.0))


@triton.jit
def write_bspline_gradient(
    grad_output, slopes, numbers, ends, pred, target, mask, gradient, size, voxels, pieces, bins, share,
    PER_ITEM: tl.constexpr, PAD: tl.constexpr,
    HAS_MASK: tl.constexpr, SHARED: tl.constexpr, WIDE: tl.constexpr, BLOCK: tl.constexpr,
):  # fmt: skip
    """The gradient to BLOCK voxels of pred."""
    item = tl.program_id(0) // pieces
    start = first_voxel(tl.program_id(0) % pieces, BLOCK, WIDE)
    at, inside, p, t, counts, weight = load_voxels(
        pred, target, mask, item, start, size, size, voxels, HAS_MASK, SHARED, WIDE, BLOCK
    )
    slope, _along = _look_up(slopes + item.to(tl.int64) * (PAD * PAD), p, t, counts, numbers, bins, PAD)
    factor = (_incoming(grad_output, numbers, item, share, PER_ITEM) / tl.load(numbers + 2)).to(tl.float32)
    found = slope * weight * factor
    found += tl.where(p == tl.load(numbers), tl.load(ends), 0.0).to(tl.float32)
    found += tl.where(p == tl.load(numbers + 1), tl.load(ends + 1), 0.0).to(tl.float32)
    found = tl.where(tl.load(numbers + FINITE) == 0, float("nan"), found)
    found = tl.where(counts, found, 0.0)
    tl.store(gradient + at, found.to(gradient.dtype.element_ty), mask=inside)


@triton.jit
def _store_gaussian(gradient, at, inside, value, counts, found):
    """0 where a value does not move, and NaN where it is not finite."""
    moves = (value >= 0) & (value <= 1)
    found = tl.where(counts, tl.where(moves, found, value - value), 0.0)
    tl.store(gradient + at, found.to(gradient.dtype.element_ty), mask=inside)


@triton.jit
def write_gaussian_gradients(
    grad_output, slopes, numbers, pred, target, mask, pred_gradient, target_gradient,
    size, voxels, pieces, bins, falloff, share,
    TO_PRED: tl.constexpr, TO_TARGET: tl.constexpr, TILES: tl.constexpr, SIDE: tl.constexpr,
    PER_ITEM: tl.constexpr, HAS_MASK: tl.constexpr, SHARED: tl.constexpr, WIDE: tl.constexpr, BLOCK: tl.constexpr,
):  # fmt: skip
    """The gradients to BLOCK voxels of pred, of target or of both."""
    PAD: tl.constexpr = TILES * SIDE
    item = tl.program_id(0) // pieces
    start = first_voxel(tl.program_id(0) % pieces, BLOCK, WIDE)
    at, inside, p, t, counts, weight = load_voxels(
        pred, target, mask, item, start, size, size, voxels, HAS_MASK, SHARED, WIDE, BLOCK
    )
    nearest, above = place_in_unit(p, counts, bins)
    inverse, mean = gaussian_sums(nearest, above, bins, falloff, SIDE, TILES)
    other_nearest, other_above = place_in_unit(t, counts, bins)
    other_inverse, other_mean = gaussian_sums(other_nearest, other_above, bins, falloff, SIDE, TILES)
    table = slopes + item.to(tl.int64) * (PAD * PAD)
    to_pred = tl.zeros((BLOCK,), tl.float32)
    to_target = tl.zeros((BLOCK,), tl.float32)
    for tile in range(TILES * TILES):
        first_a = tile // TILES * SIDE
        first_b = tile % TILES * SIDE
        row = (first_a + tl.arange(0, SIDE))[None, :]
        column = (first_b + tl.arange(0, SIDE))[:, None]
        entries = tl.load(table + row * PAD + column)  # by bins of target, bins of pred
        window, slope = gaussian_slopes(nearest, above, inverse, mean, first_a, bins, falloff, SIDE)
        other, other_slope = gaussian_slopes(
            other_nearest, other_above, other_inverse, other_mean, first_b, bins, falloff, SIDE
        )
        if TO_PRED:
            to_pred += tl.sum(slope * tl.dot(other, entries, input_precision="ieee"), axis=1)
        if TO_TARGET:
            to_target += tl.sum(window * tl.dot(other_slope, entries, input_precision="ieee"), axis=1)
    factor = (_incoming(grad_output, numbers, item, share, PER_ITEM) * (bins - 1)).to(tl.float32)
    if TO_PRED:
        _store_gaussian(pred_gradient, at, inside, p, counts, to_pred * weight * factor)
    if TO_TARGET:
        _store_gaussian(target_gradient, at, inside, t, counts, to_target * weight * factor)
