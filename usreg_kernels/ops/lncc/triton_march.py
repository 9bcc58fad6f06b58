"""The kernels of local normalised cross-correlation in Triton: a march along z that holds all window sums in registers.

A program owns a tile of BY rows of BG lanes along x, each lane TX voxels wide, and takes plane after plane. Each plane
is summed along y by loading the neighbouring rows, which the caches hold; along x by exchanging partial sums within a
warp; and along z by adding it to the unfinished sums of all planes whose windows reach it. Nothing is ever subtracted:
running sums leave a residue after bright tissue that is as large as ``smooth_dr``.

Between the passes lie maps of the derivatives of ncc with respect to the local statistics, from which the gradient is
the same march: ``gradient(p) = t S_by_cross + p S_slope_p + S_constant_p``. They stay float32, because a cancellation
between them would not survive rounding them apart.

Tensors are (BY, BG * TX): rows of neighbouring voxels. Only the exchange along x splits them into TX columns (BY, BG).
Triton deals the elements of a tensor to threads by its loads and stores, first along the axis with the longest run of
neighbours in memory. In tensors (BY, BG, TX), rows and lanes tie for the second place. Triton before 3.7 then takes the
rows: the lanes of a row lie in several warps, and every exchange between them goes through shared memory. Two axes do
not tie.

Names: a *pitch* is how many elements lie between rows; a *halo* is half a window; columns are counted from a lane's
first; ``WEIGHTS_*`` are a window's weights along an axis, None for a box; ``WHOLE``: the tile holds whole rows.
"""

from __future__ import annotations

import triton
import triton.language as tl

NUMBERS = ("D", "H", "y_tiles", "x_tiles", "z_chunks", "chunk")
"""Arguments of both kernels that cut a call into programs. A kernel is compiled once for all their values."""

# ---- along x: exchange between lanes ---------------------------------------------------------------------------------


@triton.jit
def _columns(x, TX: tl.constexpr, BY: tl.constexpr, BG: tl.constexpr):
    """The TX columns of x (BY, BG * TX), each (BY, BG)."""
    if TX == 2:
        first, second = tl.split(tl.reshape(x, (BY, BG, 2)))
        return first, second
    else:
        even, odd = tl.split(tl.reshape(x, (BY, BG, 2, 2)))
        first, third = tl.split(even)
        second, fourth = tl.split(odd)
        return first, second, third, fourth


@triton.jit
def _join(columns, TX: tl.constexpr, BY: tl.constexpr, BG: tl.constexpr):
    """The inverse of _columns."""
    if TX == 2:
        return tl.reshape(tl.join(columns[0], columns[1]), (BY, BG * 2))
    else:
        even = tl.join(columns[0], columns[2])
        odd = tl.join(columns[1], columns[3])
        return tl.reshape(tl.join(even, odd), (BY, BG * 4))


@triton.jit
def _from_lane(value, lane, STEP: tl.constexpr, BG: tl.constexpr, WHOLE: tl.constexpr):
    """The value (BY, BG) of the lane STEP further: 0 beyond whole rows, arbitrary beyond a tile's lanes."""
    if STEP == 0:
        return value
    else:
        source = lane + STEP
        found = tl.gather(value, tl.minimum(tl.maximum(source, 0), BG - 1), 1)
        return tl.where((source >= 0) & (source < BG), found, 0.0) if WHOLE else found


@triton.jit
def _sum_from(columns, FIRST: tl.constexpr, LAST: tl.constexpr):
    """The sum of the columns FIRST to LAST."""
    total = columns[FIRST]
    for i in tl.static_range(FIRST + 1, LAST + 1):
        total = total + columns[i]
    return total


@triton.jit
def _box_sum(columns, lane, COLUMN: tl.constexpr, HALO: tl.constexpr, TX: tl.constexpr, BG: tl.constexpr,
             WHOLE: tl.constexpr):  # fmt: skip
    """The sum of the box around a column: the whole lanes inside it, and a part of one at either end.

    Only sums of a lane's own columns travel, and neighbouring boxes share them.
    """
    FIRST: tl.constexpr = (COLUMN - HALO) // TX
    LAST: tl.constexpr = (COLUMN + HALO) // TX
    BEGIN: tl.constexpr = (COLUMN - HALO) % TX
    END: tl.constexpr = (COLUMN + HALO) % TX
    if FIRST == LAST:
        return _sum_from(columns, BEGIN, END)
    else:
        lanes = _sum_from(columns, 0, TX - 1)
        # Ends that take in a whole lane count to the middle.
        MIDDLE_FIRST: tl.constexpr = FIRST if BEGIN == 0 else FIRST + 1
        MIDDLE_LAST: tl.constexpr = LAST if END == TX - 1 else LAST - 1
        if MIDDLE_FIRST > MIDDLE_LAST:
            before = _from_lane(_sum_from(columns, BEGIN, TX - 1), lane, FIRST, BG, WHOLE)
            return before + _from_lane(_sum_from(columns, 0, END), lane, LAST, BG, WHOLE)
        else:
            total = _from_lane(lanes, lane, MIDDLE_FIRST, BG, WHOLE)
            for step in tl.static_range(MIDDLE_FIRST + 1, MIDDLE_LAST + 1):
                total = total + _from_lane(lanes, lane, step, BG, WHOLE)
            if BEGIN > 0:
                total = total + _from_lane(_sum_from(columns, BEGIN, TX - 1), lane, FIRST, BG, WHOLE)
            if END < TX - 1:
                total = total + _from_lane(_sum_from(columns, 0, END), lane, LAST, BG, WHOLE)
            return total


@triton.jit
def _weighted_sum(columns, lane, COLUMN: tl.constexpr, HALO: tl.constexpr, WEIGHTS: tl.constexpr, TX: tl.constexpr,
                  BG: tl.constexpr, WHOLE: tl.constexpr):  # fmt: skip
    """The weighted sum around a column."""
    total = WEIGHTS[HALO] * columns[COLUMN]
    for i in tl.static_range(0, HALO):
        before = _from_lane(columns[(COLUMN + i - HALO) % TX], lane, (COLUMN + i - HALO) // TX, BG, WHOLE)
        after = _from_lane(columns[(COLUMN + HALO - i) % TX], lane, (COLUMN + HALO - i) // TX, BG, WHOLE)
        total = total + WEIGHTS[i] * before
        total = total + WEIGHTS[i] * after
    return total


@triton.jit
def _sum_x(x, lane, HALO: tl.constexpr, WEIGHTS: tl.constexpr, TX: tl.constexpr, BY: tl.constexpr, BG: tl.constexpr,
           WHOLE: tl.constexpr):  # fmt: skip
    """Window sums of x (BY, BG * TX) along x."""
    if HALO == 0:
        return x if WEIGHTS is None else x * WEIGHTS[0]
    else:
        columns = _columns(x, TX, BY, BG)
        sums = ()
        for i in tl.static_range(TX):
            if WEIGHTS is None:
                sums = sums + (_box_sum(columns, lane, i, HALO, TX, BG, WHOLE),)
            else:
                sums = sums + (_weighted_sum(columns, lane, i, HALO, WEIGHTS, TX, BG, WHOLE),)
        return _join(sums, TX, BY, BG)


# ---- along z: unfinished sums ----------------------------------------------------------------------------------------


@triton.jit
def _no_sums(zero, COUNT: tl.constexpr):
    """COUNT unfinished sums that nothing was added to."""
    sums = ()
    for _ in tl.static_range(COUNT):
        sums = sums + (zero,)
    return sums


@triton.jit
def _sum_z(unfinished, plane, HALO: tl.constexpr, WEIGHTS: tl.constexpr):
    """Add a plane to the 2 HALO unfinished sums: the one that it finishes, and the others with a new one."""
    if HALO == 0:
        return plane if WEIGHTS is None else plane * WEIGHTS[0], unfinished
    else:
        others = ()
        if WEIGHTS is None:
            finished = unfinished[0] + plane
            for i in tl.static_range(1, 2 * HALO):
                others = others + (unfinished[i] + plane,)
            others = others + (plane,)
        else:
            finished = unfinished[0] + plane * WEIGHTS[0]
            for i in tl.static_range(1, 2 * HALO):
                others = others + (unfinished[i] + plane * WEIGHTS[i],)
            others = others + (plane * WEIGHTS[2 * HALO],)
        return finished, others


@triton.jit
def _next_sum(unfinished, zero, HALO: tl.constexpr):
    """Like _sum_z, with a plane of zeros."""
    others = ()
    for i in tl.static_range(1, 2 * HALO):
        others = others + (unfinished[i],)
    return unfinished[0], others + (zero,)


# ---- rows that no lane's voxels divide -------------------------------------------------------------------------------


@triton.jit
def _load(pointer, place, exists, ALIGNED: tl.constexpr, TX: tl.constexpr, BY: tl.constexpr, BG: tl.constexpr):
    """Values as float32, 0 where there are none; column by column where rows begin anywhere.

    Left to itself, the compiler would deal such a load to the lanes in another way, and exchange it through memory. A
    column is loaded as one axis of rows and lanes: none of its elements are neighbours in memory, so two axes would
    tie.
    """
    if ALIGNED:
        return tl.load(pointer + place, mask=exists, other=0.0).to(tl.float32)
    else:
        places = _columns(place, TX, BY, BG)
        existing = _columns(exists, TX, BY, BG)
        values = ()
        for i in tl.static_range(TX):
            place_in_line = tl.reshape(places[i], (BY * BG,))
            exists_in_line = tl.reshape(existing[i], (BY * BG,))
            value = tl.load(pointer + place_in_line, mask=exists_in_line, other=0.0).to(tl.float32)
            values = values + (tl.reshape(value, (BY, BG)),)
        return _join(values, TX, BY, BG)


@triton.jit
def _store(pointer, place, value, exists, ALIGNED: tl.constexpr, TX: tl.constexpr, BY: tl.constexpr,
           BG: tl.constexpr):  # fmt: skip
    """Store values in the pointer's dtype; see _load."""
    value = value.to(pointer.dtype.element_ty)
    if ALIGNED:
        tl.store(pointer + place, value, mask=exists)
    else:
        places = _columns(place, TX, BY, BG)
        existing = _columns(exists, TX, BY, BG)
        values = _columns(value, TX, BY, BG)
        for i in tl.static_range(TX):
            place_in_line = tl.reshape(places[i], (BY * BG,))
            exists_in_line = tl.reshape(existing[i], (BY * BG,))
            tl.store(pointer + place_in_line, tl.reshape(values[i], (BY * BG,)), mask=exists_in_line)


# ---- a program's place ----------------------------------------------------------------------------------------------


@triton.jit
def _locate(y_tiles, x_tiles, z_chunks, chunk, HALO: tl.constexpr, TX: tl.constexpr, BY: tl.constexpr,
            BG: tl.constexpr, WIDE: tl.constexpr, WHOLE: tl.constexpr):  # fmt: skip
    """Image and first plane; y (BY, 1) and x (1, BG * TX) of voxels; which the tile owns (1, BG * TX).

    Programs that follow on each other are neighbours along y: they share rows in the caches.
    """
    program = tl.program_id(0)
    tile_y = program % y_tiles
    y = (tile_y.to(tl.int64) if WIDE else tile_y) * BY + tl.arange(0, BY)
    program = program // y_tiles
    x = tl.arange(0, BG * TX)
    if WHOLE:
        owns = x >= 0
    else:
        BEFORE: tl.constexpr = (HALO + TX - 1) // TX * TX  # in whole lanes
        OWNED: tl.constexpr = BG * TX - 2 * BEFORE
        owns = (x >= BEFORE) & (x < BEFORE + OWNED)
        x = (program % x_tiles) * OWNED + (x - BEFORE)
    program = program // x_tiles
    return program // z_chunks, (program % z_chunks) * chunk, y[:, None], x[None, :], owns[None, :]


# ---- forward ---------------------------------------------------------------------------------------------------------


@triton.jit
def _products(pred, target, y, H, exists, lane, PITCH: tl.constexpr, HALO_Y: tl.constexpr, HALO_X: tl.constexpr,
              WEIGHTS_Y: tl.constexpr, WEIGHTS_X: tl.constexpr, TX: tl.constexpr, BY: tl.constexpr, BG: tl.constexpr,
              WHOLE: tl.constexpr):  # fmt: skip
    """Window sums within a plane of p, t, p p, t t and p t, each (BY, BG * TX)."""
    for row in tl.static_range(-HALO_Y, HALO_Y + 1):
        inside = (y + row >= 0) & (y + row < H) & exists
        p = tl.load(pred + row * PITCH, mask=inside, other=0.0).to(tl.float32)
        t = tl.load(target + row * PITCH, mask=inside, other=0.0).to(tl.float32)
        weighted_p = p if WEIGHTS_Y is None else p * WEIGHTS_Y[row + HALO_Y]
        weighted_t = t if WEIGHTS_Y is None else t * WEIGHTS_Y[row + HALO_Y]
        if row == -HALO_Y:
            sum_p = weighted_p
            sum_t = weighted_t
            sum_pp = weighted_p * p
            sum_tt = weighted_t * t
            sum_pt = weighted_p * t
        else:
            sum_p += weighted_p
            sum_t += weighted_t
            sum_pp += weighted_p * p
            sum_tt += weighted_t * t
            sum_pt += weighted_p * t
    return (
        _sum_x(sum_p, lane, HALO_X, WEIGHTS_X, TX, BY, BG, WHOLE),
        _sum_x(sum_t, lane, HALO_X, WEIGHTS_X, TX, BY, BG, WHOLE),
        _sum_x(sum_pp, lane, HALO_X, WEIGHTS_X, TX, BY, BG, WHOLE),
        _sum_x(sum_tt, lane, HALO_X, WEIGHTS_X, TX, BY, BG, WHOLE),
        _sum_x(sum_pt, lane, HALO_X, WEIGHTS_X, TX, BY, BG, WHOLE),
    )


@triton.jit
def _about_means(sum_ab, sum_a, sum_b, volume, inverse_volume):
    """The sum of a b about the means of a and b: ``(N S_ab - S_a S_b) / N``.

    A rounded product, and what its rounding lost (Kahan's difference of products): 0 where images are constant and
    integer, such as air in a CT, where a mean that is rounded leaves more than ``smooth_dr``.
    """
    product = sum_a * sum_b
    return (tl.fma(sum_ab, volume, -product) - tl.fma(sum_a, sum_b, -product)) * inverse_volume


@triton.jit
def _ncc(sum_p, sum_t, sum_pp, sum_tt, sum_pt, volume, inverse_volume, smooth_nr, smooth_dr, MAPS: tl.constexpr):
    """ncc, and as many maps of its derivatives: by_cross, slope_p, constant_p, slope_t, constant_t.

    Two reciprocal roots instead of the reciprocal of a product, which could overflow long before the correlation does.
    """
    cross = _about_means(sum_pt, sum_p, sum_t, volume, inverse_volume)
    var_p = _about_means(sum_pp, sum_p, sum_p, volume, inverse_volume)
    var_t = _about_means(sum_tt, sum_t, sum_t, volume, inverse_volume)
    root_p = tl.rsqrt(tl.maximum(var_p, smooth_dr))
    root_t = tl.rsqrt(tl.maximum(var_t, smooth_dr))
    root = root_p * root_t
    correlation = cross * root_p * root_t
    ncc = correlation * correlation + smooth_nr * root * root
    if MAPS == 0:
        return (ncc,)
    else:
        mean_p = sum_p * inverse_volume
        mean_t = sum_t * inverse_volume
        by_cross = 2.0 * correlation * root
        slope_p = tl.where(var_p > smooth_dr, -2.0 * ncc * root_p * root_p, 0.0)
        constant_p = -(by_cross * mean_t + slope_p * mean_p)
        if MAPS == 3:
            return ncc, by_cross, slope_p, constant_p
        else:
            slope_t = tl.where(var_t > smooth_dr, -2.0 * ncc * root_t * root_t, 0.0)
            constant_t = -(by_cross * mean_p + slope_t * mean_t)
            return ncc, by_cross, slope_p, constant_p, slope_t, constant_t


@triton.jit
def _emit(sums, total, total_weight, mask, loss_map, maps, row, mask_row, y, column, writes, counts, volume,
          inverse_volume, smooth_nr, smooth_dr, W: tl.constexpr, MAP_PITCH: tl.constexpr, HAS_MASK: tl.constexpr,
          KEEP_MAP: tl.constexpr, MAPS: tl.constexpr, TX: tl.constexpr, BY: tl.constexpr,
          BG: tl.constexpr):  # fmt: skip
    """Use a plane's finished sums: add to the totals, or store the loss; store the maps. Returns the totals.

    row, mask_row: how many rows lie before the plane.
    """
    found = _ncc(*sums, volume, inverse_volume, smooth_nr, smooth_dr, MAPS)
    ncc = found[0]
    if HAS_MASK:
        weight = _load(mask, mask_row * W + (y * W + column), counts, W % TX == 0, TX, BY, BG)
        ncc = ncc * weight
        total_weight += weight
    if KEEP_MAP:
        _store(loss_map, row * W + (y * W + column), -ncc, counts, W % TX == 0, TX, BY, BG)
    else:
        total += ncc
    for i in tl.static_range(MAPS):
        value = found[i + 1]
        if HAS_MASK:
            value = value * weight
        if MAP_PITCH != W:
            value = tl.where(counts, value, 0.0)  # the backward march reads on into a row's padding
        place = maps + row * (MAPS * MAP_PITCH) + (y * (MAPS * MAP_PITCH) + column)
        tl.store(place + i * MAP_PITCH, value, mask=writes)
    return total, total_weight


@triton.jit(
    do_not_specialize=(*NUMBERS, "channels_per_mask"),
    do_not_specialize_on_alignment=("partials", "partial_weights"),
)
def correlate(
    pred, target, mask, loss_map, maps, partials, partial_weights, D, H, y_tiles, x_tiles, z_chunks, chunk,
    channels_per_mask, volume, inverse_volume, smooth_nr, smooth_dr,
    W: tl.constexpr, PITCH: tl.constexpr, MAP_PITCH: tl.constexpr,
    HALO_Z: tl.constexpr, HALO_Y: tl.constexpr, HALO_X: tl.constexpr,
    WEIGHTS_Z: tl.constexpr, WEIGHTS_Y: tl.constexpr, WEIGHTS_X: tl.constexpr,
    HAS_MASK: tl.constexpr, KEEP_MAP: tl.constexpr, MAPS: tl.constexpr, WIDE: tl.constexpr, WHOLE: tl.constexpr,
    TX: tl.constexpr, BY: tl.constexpr, BG: tl.constexpr,
):  # fmt: skip
    """The loss map or its sum over a chunk of a tile's planes; with MAPS = 3 or 5 the maps for one or both gradients.

    pred, target: (volumes, D, H, PITCH), zeros from W on; mask, loss_map: rows of W; maps: (volumes, D, H, MAPS,
    MAP_PITCH), so that all loads of the backward march have constant distances.
    """
    image, begin, y, column, owns = _locate(y_tiles, x_tiles, z_chunks, chunk, HALO_X, TX, BY, BG, WIDE, WHOLE)
    lane = tl.arange(0, BG)[None, :] + tl.zeros((BY, 1), tl.int32)
    exists = (column >= 0) & (column < PITCH)
    writes = owns & (column >= 0) & (column < MAP_PITCH) & (y < H)
    counts = writes & (column < W) if MAP_PITCH != W else writes
    zero = tl.zeros((BY, BG * TX), tl.float32)
    total = zero
    total_weight = zero
    z_p = _no_sums(zero, 2 * HALO_Z)
    z_t = _no_sums(zero, 2 * HALO_Z)
    z_pp = _no_sums(zero, 2 * HALO_Z)
    z_tt = _no_sums(zero, 2 * HALO_Z)
    z_pt = _no_sums(zero, 2 * HALO_Z)
    zero_64 = tl.zeros((), tl.int64)
    rows = (image + zero_64) * D * H  # before this image
    mask_rows = (image // channels_per_mask + zero_64) * D * H
    voxel = y * PITCH + column
    first = tl.maximum(begin - HALO_Z, 0)
    last = tl.minimum(begin + chunk + HALO_Z, D)
    for z in range(first, last):
        plane = (rows + (z + zero_64) * H) * PITCH
        p, t, pp, tt, pt = _products(
            pred + plane + voxel, target + plane + voxel, y, H, exists, lane, PITCH, HALO_Y, HALO_X, WEIGHTS_Y,
            WEIGHTS_X, TX, BY, BG, WHOLE,
        )  # fmt: skip
        p, z_p = _sum_z(z_p, p, HALO_Z, WEIGHTS_Z)
        t, z_t = _sum_z(z_t, t, HALO_Z, WEIGHTS_Z)
        pp, z_pp = _sum_z(z_pp, pp, HALO_Z, WEIGHTS_Z)
        tt, z_tt = _sum_z(z_tt, tt, HALO_Z, WEIGHTS_Z)
        pt, z_pt = _sum_z(z_pt, pt, HALO_Z, WEIGHTS_Z)
        if z >= begin + HALO_Z:
            row = (z - HALO_Z + zero_64) * H
            total, total_weight = _emit(
                (p, t, pp, tt, pt), total, total_weight, mask, loss_map, maps, rows + row, mask_rows + row, y, column,
                writes, counts, volume, inverse_volume, smooth_nr, smooth_dr, W, MAP_PITCH, HAS_MASK, KEEP_MAP, MAPS,
                TX, BY, BG,
            )  # fmt: skip
    if HALO_Z > 0:  # windows that reach beyond the last plane
        # Its end is computed here, so that no register carries it through the main loop.
        for z in range(last, tl.minimum(begin + chunk, D) + HALO_Z):
            p, z_p = _next_sum(z_p, zero, HALO_Z)
            t, z_t = _next_sum(z_t, zero, HALO_Z)
            pp, z_pp = _next_sum(z_pp, zero, HALO_Z)
            tt, z_tt = _next_sum(z_tt, zero, HALO_Z)
            pt, z_pt = _next_sum(z_pt, zero, HALO_Z)
            if z >= begin + HALO_Z:
                row = (z - HALO_Z + zero_64) * H
                total, total_weight = _emit(
                    (p, t, pp, tt, pt), total, total_weight, mask, loss_map, maps, rows + row, mask_rows + row, y,
                    column, writes, counts, volume, inverse_volume, smooth_nr, smooth_dr, W, MAP_PITCH, HAS_MASK,
                    KEEP_MAP, MAPS, TX, BY, BG,
                )  # fmt: skip
    if not KEEP_MAP:
        tl.store(partials + tl.program_id(0), -tl.sum(tl.where(counts, total, 0.0)))
        if HAS_MASK:
            tl.store(partial_weights + tl.program_id(0), tl.sum(total_weight))


# ---- backward --------------------------------------------------------------------------------------------------------


@triton.jit
def _map_sums(maps, grad_map, place, y, H, exists, lane, PITCH: tl.constexpr, MAP_PITCH: tl.constexpr,
              HALO_Y: tl.constexpr, HALO_X: tl.constexpr, WEIGHTS_Y: tl.constexpr, WEIGHTS_X: tl.constexpr,
              MAPS: tl.constexpr, USED: tl.constexpr, HAS_MAP: tl.constexpr, TX: tl.constexpr, BY: tl.constexpr,
              BG: tl.constexpr, WHOLE: tl.constexpr):  # fmt: skip
    """Window sums within a plane of the maps USED, each (BY, BG * TX), with HAS_MAP each times grad_map."""
    sums = ()
    for row in tl.static_range(-HALO_Y, HALO_Y + 1):
        inside = (y + row >= 0) & (y + row < H) & exists
        if HAS_MAP:
            incoming = tl.load(grad_map + place + row * PITCH, mask=inside, other=0.0)
        added = ()
        for i in tl.static_range(len(USED)):
            value = tl.load(maps + (row * MAPS + USED[i]) * MAP_PITCH, mask=inside, other=0.0)
            if HAS_MAP:
                value = value * incoming
            if WEIGHTS_Y is not None:
                value = value * WEIGHTS_Y[row + HALO_Y]
            if row == -HALO_Y:
                added = added + (value,)
            else:
                added = added + (sums[i] + value,)
        sums = added
    totals = ()
    for i in tl.static_range(len(USED)):
        totals = totals + (_sum_x(sums[i], lane, HALO_X, WEIGHTS_X, TX, BY, BG, WHOLE),)
    return totals


@triton.jit
def _write_gradients(sums, pred, target, pred_grad, target_grad, place, counts, scale, PRED: tl.constexpr,
                     TARGET: tl.constexpr, ALIGNED: tl.constexpr, TX: tl.constexpr, BY: tl.constexpr,
                     BG: tl.constexpr):  # fmt: skip
    """A plane's gradients from the finished sums of by_cross, then of constant and slope of each gradient's image."""
    p = _load(pred, place, counts, ALIGNED, TX, BY, BG)
    t = _load(target, place, counts, ALIGNED, TX, BY, BG)
    if PRED:
        gradient = scale * (sums[1] + p * sums[2] + t * sums[0])
        _store(pred_grad, place, gradient, counts, ALIGNED, TX, BY, BG)
    if TARGET:
        gradient = scale * (sums[-2] + t * sums[-1] + p * sums[0])
        _store(target_grad, place, gradient, counts, ALIGNED, TX, BY, BG)


@triton.jit(do_not_specialize=NUMBERS, do_not_specialize_on_alignment=("divisor",))
def propagate(
    grad_output, divisor, maps, pred, target, pred_grad, target_grad, D, H, y_tiles, x_tiles, z_chunks, chunk,
    W: tl.constexpr, PITCH: tl.constexpr, MAP_PITCH: tl.constexpr,
    HALO_Z: tl.constexpr, HALO_Y: tl.constexpr, HALO_X: tl.constexpr,
    WEIGHTS_Z: tl.constexpr, WEIGHTS_Y: tl.constexpr, WEIGHTS_X: tl.constexpr,
    HAS_MAP: tl.constexpr, MAPS: tl.constexpr, USED: tl.constexpr, PRED: tl.constexpr, TARGET: tl.constexpr,
    WIDE: tl.constexpr, WHOLE: tl.constexpr, TX: tl.constexpr, BY: tl.constexpr, BG: tl.constexpr,
):  # fmt: skip
    """The gradients of a chunk of a tile's planes; grad_output is multiplied in before rounding.

    maps: what correlate stored, of which USED go into these gradients; pred, target and gradients: rows of W;
    grad_output: (volumes, D, H, PITCH) with HAS_MAP, else a scalar.
    """
    image, begin, y, column, owns = _locate(y_tiles, x_tiles, z_chunks, chunk, HALO_X, TX, BY, BG, WIDE, WHOLE)
    lane = tl.arange(0, BG)[None, :] + tl.zeros((BY, 1), tl.int32)
    exists = (column >= 0) & (column < PITCH)
    counts = owns & exists & (y < H)
    if PITCH != W:
        counts = counts & (column < W)
    if HAS_MAP:
        scale = -1.0
    else:
        scale = (-tl.load(grad_output).to(tl.float64) / tl.load(divisor)).to(tl.float32)
    zero = tl.zeros((BY, BG * TX), tl.float32)
    unfinished = ()
    for _ in tl.static_range(len(USED)):
        unfinished = unfinished + (_no_sums(zero, 2 * HALO_Z),)
    zero_64 = tl.zeros((), tl.int64)
    rows = (image + zero_64) * D * H
    first = tl.maximum(begin - HALO_Z, 0)
    last = tl.minimum(begin + chunk + HALO_Z, D)
    for z in range(first, last):
        row = rows + (z + zero_64) * H
        added = _map_sums(
            maps + row * (MAPS * MAP_PITCH) + (y * (MAPS * MAP_PITCH) + column), grad_output,
            row * PITCH + (y * PITCH + column), y, H, exists, lane, PITCH, MAP_PITCH, HALO_Y, HALO_X, WEIGHTS_Y,
            WEIGHTS_X, MAPS, USED, HAS_MAP, TX, BY, BG, WHOLE,
        )  # fmt: skip
        sums = ()
        others = ()
        for i in tl.static_range(len(USED)):
            finished, rest = _sum_z(unfinished[i], added[i], HALO_Z, WEIGHTS_Z)
            sums = sums + (finished,)
            others = others + (rest,)
        unfinished = others
        if z >= begin + HALO_Z:
            place = (rows + (z - HALO_Z + zero_64) * H) * W + (y * W + column)
            _write_gradients(
                sums, pred, target, pred_grad, target_grad, place, counts, scale, PRED, TARGET, W % TX == 0, TX,
                BY, BG,
            )  # fmt: skip
    if HALO_Z > 0:  # windows that reach beyond the last plane
        # Its end is computed here, so that no register carries it through the main loop.
        for z in range(last, tl.minimum(begin + chunk, D) + HALO_Z):
            sums = ()
            others = ()
            for i in tl.static_range(len(USED)):
                finished, rest = _next_sum(unfinished[i], zero, HALO_Z)
                sums = sums + (finished,)
                others = others + (rest,)
            unfinished = others
            if z >= begin + HALO_Z:
                place = (rows + (z - HALO_Z + zero_64) * H) * W + (y * W + column)
                _write_gradients(
                    sums, pred, target, pred_grad, target_grad, place, counts, scale, PRED, TARGET, W % TX == 0, TX,
                    BY, BG,
                )  # fmt: skip
