"""The Triton kernels of mutual information's loss: the range of values, joint histograms, and their score.

A program adds windows of one part of an item's voxels: a matrix product per block of voxels, in float32, whose results
it adds in float64. Programs' histograms are added in one order: the same bits each time, without atomics.
"""

from __future__ import annotations

import triton
import triton.language as tl

from usreg_kernels.ops.mutual_information.triton_windows import (
    MARGIN,
    box_window,
    cubic_window,
    first_voxel,
    gaussian_sums,
    gaussian_window,
    load_voxels,
    place_in_range,
    place_in_unit,
)

# The numbers that forward saves, b-spline: lowest, highest value and length of a bin of each image; whether all values
# are finite; how many voxels of pred have its lowest and its highest value. What each item's histogram is divided by
# follows.
TARGET = tl.constexpr(3)
FINITE = tl.constexpr(6)
AT_LOWEST = tl.constexpr(7)
AT_HIGHEST = tl.constexpr(8)
DIVISORS = tl.constexpr(9)


@triton.jit
def _is_strange(value, counts):
    """Whether a value that counts is not finite."""
    return counts & ((value - value) != 0)


@triton.jit
def find_range(
    pred, target, mask, partials, size, voxels, span, parts,
    HAS_MASK: tl.constexpr, SHARED: tl.constexpr, WIDE: tl.constexpr, BLOCK: tl.constexpr,
):  # fmt: skip
    """partials (5, programs): lowest and highest of pred and of target in this part, and 1 if any is not finite."""
    program = tl.program_id(0)
    begin = first_voxel(program % parts, span, WIDE)
    stop = tl.minimum(begin + span, size)
    lowest = tl.full((BLOCK,), float("inf"), tl.float32)
    highest, other_lowest, other_highest = -lowest, lowest, -lowest
    strange = tl.zeros((BLOCK,), tl.int32)
    for start in range(begin, stop, BLOCK):
        _at, _inside, p, t, counts, _weight = load_voxels(
            pred, target, mask, program // parts, start, stop, size, voxels, HAS_MASK, SHARED, WIDE, BLOCK
        )
        strange = strange | (_is_strange(p, counts) | _is_strange(t, counts)).to(tl.int32)
        lowest = tl.minimum(lowest, tl.where(counts, p, float("inf")))
        highest = tl.maximum(highest, tl.where(counts, p, -float("inf")))
        other_lowest = tl.minimum(other_lowest, tl.where(counts, t, float("inf")))
        other_highest = tl.maximum(other_highest, tl.where(counts, t, -float("inf")))
    programs = tl.num_programs(0)
    tl.store(partials + program, tl.min(lowest))
    tl.store(partials + programs + program, tl.max(highest))
    tl.store(partials + 2 * programs + program, tl.min(other_lowest))
    tl.store(partials + 3 * programs + program, tl.max(other_highest))
    tl.store(partials + 4 * programs + program, tl.max(strange).to(tl.float32))


@triton.jit
def _store_axis(lowest, highest, numbers, bins):
    """The range of an image, and the length of a bin; the range is 0 where no voxel counts."""
    nothing = lowest > highest
    low = tl.where(nothing, 0.0, lowest).to(tl.float64)
    high = tl.where(nothing, 0.0, highest).to(tl.float64)
    length = high - low
    tl.store(numbers, low)
    tl.store(numbers + 1, high)
    tl.store(numbers + 2, tl.where(length == 0.0, float("inf"), length / (bins - 2 * MARGIN)))


@triton.jit
def finish_range(partials, numbers, count, bins, BLOCK: tl.constexpr):
    """The numbers of both images' ranges from the partial ones."""
    index = tl.arange(0, BLOCK)
    lowest = tl.full((BLOCK,), float("inf"), tl.float32)
    highest, other_lowest, other_highest = -lowest, lowest, -lowest
    strange = tl.zeros((BLOCK,), tl.float32)
    for start in range(0, count, BLOCK):
        inside = start + index < count
        at = partials + start + index
        lowest = tl.minimum(lowest, tl.load(at, mask=inside, other=float("inf")))
        highest = tl.maximum(highest, tl.load(at + count, mask=inside, other=-float("inf")))
        other_lowest = tl.minimum(other_lowest, tl.load(at + 2 * count, mask=inside, other=float("inf")))
        other_highest = tl.maximum(other_highest, tl.load(at + 3 * count, mask=inside, other=-float("inf")))
        strange += tl.load(at + 4 * count, mask=inside, other=0.0)
    _store_axis(tl.min(lowest), tl.max(highest), numbers, bins)
    _store_axis(tl.min(other_lowest), tl.max(other_highest), numbers + TARGET, bins)
    tl.store(numbers + FINITE, tl.where(tl.max(strange) > 0, 0.0, 1.0).to(tl.float64))


@triton.jit
def count(
    pred, target, mask, numbers, histograms, tallies, size, voxels, span, parts, bins, falloff,
    GAUSSIAN: tl.constexpr, TILES: tl.constexpr, SIDE: tl.constexpr,
    HAS_MASK: tl.constexpr, SHARED: tl.constexpr, WIDE: tl.constexpr, BLOCK: tl.constexpr,
):  # fmt: skip
    """A tile of the joint histogram of this part: to histograms (items * parts, PAD, PAD), with PAD = TILES * SIDE.

    tallies (3, items * parts): whether a value is not finite, and how many voxels of pred have its lowest and
    its highest value.
    """
    tile = tl.program_id(0) % (TILES * TILES)
    program = tl.program_id(0) // (TILES * TILES)
    first_a = tile // TILES * SIDE
    first_b = tile % TILES * SIDE
    begin = first_voxel(program % parts, span, WIDE)
    stop = tl.minimum(begin + span, size)
    total = tl.zeros((SIDE, SIDE), tl.float64)
    strange = tl.zeros((BLOCK,), tl.int32)
    at_lowest = tl.zeros((BLOCK,), tl.int32)
    at_highest = tl.zeros((BLOCK,), tl.int32)
    if not GAUSSIAN:
        lowest, highest, bin_size = tl.load(numbers), tl.load(numbers + 1), tl.load(numbers + 2)
        other_lowest, other_bin_size = tl.load(numbers + TARGET), tl.load(numbers + TARGET + 2)
        strange += (tl.load(numbers + FINITE) == 0).to(tl.int32)
    for start in range(begin, stop, BLOCK):
        _at, _inside, p, t, counts, weight = load_voxels(
            pred, target, mask, program // parts, start, stop, size, voxels, HAS_MASK, SHARED, WIDE, BLOCK
        )
        if GAUSSIAN:
            strange = strange | (_is_strange(p, counts) | _is_strange(t, counts)).to(tl.int32)
            nearest, above = place_in_unit(p, counts, bins)
            inverse, _mean = gaussian_sums(nearest, above, bins, falloff, SIDE, TILES)
            window = gaussian_window(nearest, above, inverse, first_a, bins, falloff, SIDE)
            nearest, above = place_in_unit(t, counts, bins)
            inverse, _mean = gaussian_sums(nearest, above, bins, falloff, SIDE, TILES)
            other = gaussian_window(nearest, above, inverse, first_b, bins, falloff, SIDE)
        else:
            at_lowest += (counts & (p == lowest)).to(tl.int32)
            at_highest += (counts & (p == highest)).to(tl.int32)
            _unbounded, place = place_in_range(p, counts, lowest, bin_size, bins)
            window = cubic_window(place, first_a, SIDE)
            _unbounded, place = place_in_range(t, counts, other_lowest, other_bin_size, bins)
            other = box_window(place, first_b, SIDE)
        total += tl.dot(tl.trans(window * weight[:, None]), other, input_precision="ieee").to(tl.float64)
    row = (first_a + tl.arange(0, SIDE))[:, None]
    column = (first_b + tl.arange(0, SIDE))[None, :]
    PAD: tl.constexpr = TILES * SIDE
    tl.store(histograms + program.to(tl.int64) * (PAD * PAD) + row * PAD + column, total)
    if tile == 0:
        programs = tl.num_programs(0) // (TILES * TILES)
        tl.store(tallies + program, tl.max(strange).to(tl.float64))
        tl.store(tallies + programs + program, tl.sum(at_lowest.to(tl.int64)).to(tl.float64))
        tl.store(tallies + 2 * programs + program, tl.sum(at_highest.to(tl.int64)).to(tl.float64))


@triton.jit
def add_up(histograms, joint, parts, PAD: tl.constexpr, TURN: tl.constexpr, BLOCK: tl.constexpr):
    """joint (items, PAD, PAD): the sums of the histograms of all parts; a program takes BLOCK entries of an item."""
    pieces: tl.constexpr = PAD * PAD // BLOCK
    item = (tl.program_id(0) // pieces).to(tl.int64)
    entry = tl.program_id(0) % pieces * BLOCK + tl.arange(0, BLOCK)
    total = tl.zeros((TURN, BLOCK), tl.float64)
    for start in range(0, parts, TURN):
        part = start + tl.arange(0, TURN)
        at = histograms + (item * parts + part)[:, None] * (PAD * PAD) + entry[None, :]
        total += tl.load(at, mask=(part < parts)[:, None], other=0.0)
    tl.store(joint + item * (PAD * PAD) + entry, tl.sum(total, axis=0))


@triton.jit
def _sum_all(values, start, count, BLOCK: tl.constexpr):
    """The sum of so many numbers, in one order."""
    index = tl.arange(0, BLOCK)
    total = tl.zeros((BLOCK,), tl.float64)
    for turn in range(0, count, BLOCK):
        total += tl.load(values + start + turn + index, mask=turn + index < count, other=0.0)
    return tl.sum(total)


@triton.jit
def _entropy_term(p):
    return -p * tl.log(tl.where(p == 0, 1.0, p))


@triton.jit
def _entropy_slope(p):
    return tl.where(p == 0, 0.0, -tl.log(tl.where(p == 0, 1.0, p)) - 1.0)


@triton.jit
def _load_rows(joint, item, first_row, divisor, PAD: tl.constexpr, ROWS: tl.constexpr):
    """Where rows of an item's histogram lie, and the joint distribution there."""
    entry = (first_row + tl.arange(0, ROWS))[:, None] * PAD + tl.arange(0, PAD)[None, :]
    at = item.to(tl.int64) * (PAD * PAD) + entry
    return at, tl.load(joint + at) / divisor


@triton.jit
def _terms(p, p_b, smooth_nr, smooth_dr):
    """Of rows of the joint distribution: their sums, the logarithms, and the derivatives of the terms.

    The latter are those by the entry itself, without the logarithm, and by the product of the sums along both axes.
    """
    p_a = tl.sum(p, axis=1)
    below = p_a[:, None] * p_b[None, :] + smooth_dr
    ratio = (p + smooth_nr) / below
    inside = ratio + smooth_dr
    own = p / inside / below
    return p_a, tl.log(inside), own, own * ratio


@triton.jit
def score(
    joint, tallies, values, slopes, numbers, parts, programs, smooth_nr, smooth_dr,
    NORMALIZED: tl.constexpr, HAS_MASK: tl.constexpr, SAVES: tl.constexpr, PAD: tl.constexpr, BLOCK: tl.constexpr,
):  # fmt: skip
    """The loss of an item, and with SAVES its derivative by each entry of its joint distribution, less a constant.

    The histogram is divided by its own sum: that of the weights, but for what rounding does to windows. Without a mask
    it is 0 only where there are no voxels.

    Windows sum to 1: a constant changes no gradient, and without it entries of images that have nothing in common are
    about 0, where float32 is finest. The formulas are in ``reference.py``.
    """
    ROWS: tl.constexpr = BLOCK // PAD
    item = tl.program_id(0)
    nr = tl.zeros((), tl.float64) + smooth_nr
    dr = tl.zeros((), tl.float64) + smooth_dr
    strange = _sum_all(tallies, item * parts, parts, 1024)
    divisor = _sum_all(joint + item.to(tl.int64) * (PAD * PAD), 0, PAD * PAD, BLOCK)
    divisor = tl.where(divisor == 0, 1.0 if HAS_MASK else float("nan"), divisor)
    p_b = tl.zeros((PAD,), tl.float64)
    entropy = tl.zeros((), tl.float64)
    marginal_entropies = tl.zeros((), tl.float64)
    for row in range(0, PAD, ROWS):
        _at, p = _load_rows(joint, item, row, divisor, PAD, ROWS)
        p_b += tl.sum(p, axis=0)
        if NORMALIZED:
            entropy += tl.sum(_entropy_term(p))
            marginal_entropies += tl.sum(_entropy_term(tl.sum(p, axis=1)))
    through_b = tl.zeros((PAD,), tl.float64)
    if NORMALIZED:
        below = entropy + dr
        quotient = (marginal_entropies + tl.sum(_entropy_term(p_b)) + nr) / below
        value = -quotient
    else:
        value = tl.zeros((), tl.float64)
        for row in range(0, PAD, ROWS):
            _at, p = _load_rows(joint, item, row, divisor, PAD, ROWS)
            p_a, logarithm, _own, by_product = _terms(p, p_b, nr, dr)
            value -= tl.sum(p * logarithm)
            through_b += tl.sum(by_product * p_a[:, None], axis=0)
    nan = float("nan")
    tl.store(values + item, tl.where(strange > 0, nan, value).to(tl.float32))
    if SAVES:
        for row in range(0, PAD, ROWS):
            at, p = _load_rows(joint, item, row, divisor, PAD, ROWS)
            if NORMALIZED:
                by_a = _entropy_slope(tl.sum(p, axis=1))
                slope = _entropy_slope(p) * quotient - by_a[:, None] - _entropy_slope(p_b)[None, :]
                slope = (slope + quotient - 2.0) / below
            else:
                p_a, logarithm, own, by_product = _terms(p, p_b, nr, dr)
                through_a = tl.sum(by_product * p_b[None, :], axis=1)
                slope = through_a[:, None] + through_b[None, :] - own - logarithm - 1.0
            tl.store(slopes + at, tl.where(strange > 0, nan, slope).to(tl.float32))
        tl.store(numbers + DIVISORS + item, divisor)
        if item == 0:
            tl.store(numbers + AT_LOWEST, _sum_all(tallies, programs, programs, 1024))
            tl.store(numbers + AT_HIGHEST, _sum_all(tallies, 2 * programs, programs, 1024))
