"""Gaussian smoothing in Triton: a pass over the image per axis.

The axes before the last one are filtered across rows: a program takes a piece of a row and computes as many rows in
succession as SPAN says, so that each row that it loads serves several results. Along the last axis, a program takes
voxels that follow on each other in memory, whose neighbours come from the first-level cache.

The adjoint is the same filter with other borders. With ``zeros``, nothing changes. With ``reflection``, what lies at
the two ends of an axis counts double, and results there half. With ``border``, the filter sees zeros outside, and both
ends get in addition what would have come from outside: ``tails`` are the weights' sums beyond each distance.
"""

from __future__ import annotations

from typing import Any

import torch
import triton
import triton.language as tl

from usreg_kernels.ops.gaussian_smooth.native import weights_of_axes
from usreg_kernels.ops.gaussian_smooth.weights import tails
from usreg_kernels.ops.triton_backend import OPTIONS, device_guard
from usreg_kernels.ops.warp.native import PADDING_CODES

ROW_BLOCK = 512  # voxels of a row per program
SPAN = 8  # rows per program
BLOCK = 1024  # voxels per program along the last axis

BORDER = tl.constexpr(PADDING_CODES["border"])
REFLECTION = tl.constexpr(PADDING_CODES["reflection"])


@triton.jit
def _weight(weights, tails, j, last, K: tl.constexpr, PADDING: tl.constexpr, ADJOINT: tl.constexpr):
    """The weight in the result at j of what lies K further."""
    DISTANCE: tl.constexpr = K if K >= 0 else -K
    weight = weights[DISTANCE]
    if ADJOINT and PADDING == BORDER:
        if K >= 0:
            weight += tl.where(j == 0, tails[DISTANCE], 0.0)
        if K <= 0:
            weight += tl.where(j == last, tails[DISTANCE], 0.0)
    return weight


@triton.jit
def _source(place, last, PADDING: tl.constexpr, ADJOINT: tl.constexpr, FAR: tl.constexpr):
    """The element of an axis that a place repeats; the place itself, where there are zeros.

    FAR: whether places may lie further outside than the axis is long.
    """
    if PADDING == BORDER and not ADJOINT:
        return tl.minimum(tl.maximum(place, 0), last)
    elif PADDING == REFLECTION:
        distance = tl.abs(place)
        if FAR:
            distance = distance % (2 * last)
        return tl.minimum(distance, 2 * last - distance)
    else:
        return place


@triton.jit
def _of_ends(value, j, last, factor, PADDING: tl.constexpr, ADJOINT: tl.constexpr):
    """The value, times a factor at both ends of an axis where the adjoint of a reflection asks for it."""
    if ADJOINT and PADDING == REFLECTION:
        return tl.where((j == 0) | (j == last), value * factor, value)
    else:
        return value


@triton.jit
def filter_rows(
    source, target, weights, tails, last, width, spans, pieces,
    RADIUS: tl.constexpr, PADDING: tl.constexpr, ADJOINT: tl.constexpr, FAR: tl.constexpr, SPAN: tl.constexpr,
    BLOCK: tl.constexpr,
):  # fmt: skip
    """Filter the middle axis of (outer, last + 1, width)."""
    piece = tl.program_id(0) % pieces
    first = tl.program_id(0) // pieces % spans * SPAN
    start = (tl.program_id(0) // pieces // spans).to(tl.int64) * (last + 1) * width
    column = piece * BLOCK + tl.arange(0, BLOCK)
    totals = ()
    for _ in tl.static_range(SPAN):
        totals = totals + (tl.zeros((BLOCK,), tl.float32),)
    for step in tl.static_range(SPAN + 2 * RADIUS):
        row = _source(first + step - RADIUS, last, PADDING, ADJOINT, FAR)
        end = tl.where((row >= 0) & (row <= last), width, 0)
        values = tl.load(source + start + row.to(tl.int64) * width + column, mask=column < end, other=0.0)
        values = _of_ends(values.to(tl.float32), row, last, 2.0, PADDING, ADJOINT)
        added = ()
        for i in tl.static_range(SPAN):
            if step - 2 * RADIUS <= i and i <= step:
                weight = _weight(weights, tails, first + i, last, step - RADIUS - i, PADDING, ADJOINT)
                added = added + (totals[i] + weight * values,)
            else:
                added = added + (totals[i],)
        totals = added
    for i in tl.static_range(SPAN):
        row = first + i
        total = _of_ends(totals[i], row, last, 0.5, PADDING, ADJOINT)
        end = tl.where(row <= last, width, 0)
        place = target + start + row.to(tl.int64) * width + column
        tl.store(place, total.to(target.dtype.element_ty), mask=column < end)


@triton.jit
def filter_columns(
    source, target, weights, tails, count, SIZE: tl.constexpr,
    RADIUS: tl.constexpr, PADDING: tl.constexpr, ADJOINT: tl.constexpr, FAR: tl.constexpr, BLOCK: tl.constexpr,
):  # fmt: skip
    """Filter the last axis of (outer, SIZE), of ``count`` voxels."""
    start = tl.program_id(0).to(tl.int64) * BLOCK
    index = tl.arange(0, BLOCK)
    inside = start + index < count
    j = ((start % SIZE).to(tl.int32) + index) % SIZE
    total = tl.zeros((BLOCK,), tl.float32)
    for step in tl.static_range(2 * RADIUS + 1):
        column = _source(j + (step - RADIUS), SIZE - 1, PADDING, ADJOINT, FAR)
        exists = (column >= 0) & (column < SIZE)
        values = tl.load(source + start + (index + column - j), mask=inside & exists, other=0.0)
        values = _of_ends(values.to(tl.float32), column, SIZE - 1, 2.0, PADDING, ADJOINT)
        total += _weight(weights, tails, j, SIZE - 1, step - RADIUS, PADDING, ADJOINT) * values
    total = _of_ends(total, j, SIZE - 1, 0.5, PADDING, ADJOINT)
    tl.store(target + start + index, total.to(target.dtype.element_ty), mask=inside)


def filter_axis(
    source: torch.Tensor, target: torch.Tensor, axis: int, weights: tuple[float, ...], padding: int, adjoint: bool
) -> None:
    """Fill target with the source, filtered along one axis, or with what the adjoint makes of it.

    weights: at distances 0, 1, ... padding: a code of :data:`PADDING_CODES`. Both tensors are contiguous.
    """
    size, width = source.shape[axis], source.shape[axis + 1 :].numel()
    radius = len(weights) - 1
    if size == 1 and padding == REFLECTION.value:  # of one voxel, which is an edge
        padding = BORDER.value
    options = {"RADIUS": radius, "PADDING": padding, "ADJOINT": adjoint, "FAR": radius >= size, **OPTIONS}
    if width == 1:
        grid = (triton.cdiv(source.numel(), BLOCK),)
        filter_columns[grid](source, target, weights, tails(weights), source.numel(), SIZE=size, BLOCK=BLOCK, **options)
        return
    spans, pieces = triton.cdiv(size, SPAN), triton.cdiv(width, ROW_BLOCK)
    grid = (source.numel() // (size * width) * spans * pieces,)
    filter_rows[grid](
        source, target, weights, tails(weights), size - 1, width, spans, pieces, SPAN=SPAN, BLOCK=ROW_BLOCK, **options
    )


def _smooth(x: torch.Tensor, target: torch.Tensor, params: dict[str, Any], adjoint: bool) -> torch.Tensor:
    """Fills target with the smoothed x, or with what the adjoint makes of it. Between axes, values are float32."""
    source, padding = x.contiguous(), PADDING_CODES[params["padding_mode"]]
    weights = weights_of_axes(params["sigma"], params["truncate"])[5 - x.ndim :]
    steps = [(axis, row) for axis, row in enumerate(weights, start=2) if len(row) > 1]
    if not steps or x.numel() == 0:
        return target.copy_(source)
    with device_guard(x):
        for i, (axis, row) in enumerate(steps, start=1):
            into = target if i == len(steps) else torch.empty_like(source, dtype=torch.float32)
            filter_axis(source, into, axis, row, padding, adjoint)
            source = into
    return target


def forward(x: torch.Tensor, *, needs_grad: list[bool], **params: Any) -> tuple[torch.Tensor, list[torch.Tensor]]:
    """The smoothed image; nothing is saved."""
    return _smooth(x, x.new_empty(x.shape, dtype=torch.float32), params, adjoint=False), []


def backward(
    grad_output: torch.Tensor, saved: list[torch.Tensor], x: torch.Tensor, *, needs_grad: list[bool], **params: Any
) -> list[torch.Tensor]:
    """The gradient of the image, if it is needed."""
    if not needs_grad[0]:
        return []
    return [_smooth(grad_output, x.new_empty(x.shape), params, adjoint=True)]
