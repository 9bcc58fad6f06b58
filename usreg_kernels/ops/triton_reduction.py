"""The second stage of every reduction in Triton: partial sums, one per program of the first stage, to one loss.

One program adds up to ``MOST`` of them. More are cut into chunks first, each of which a program of its own adds up: the
bending energy of a brain has 161,280 partial sums, for which one program would wait for memory tens of times in a row,
on a multiprocessor that on most GPUs adds two float64 numbers per cycle. The additional launch takes microseconds.

All sums are float64, in an order that only depends on how many there are.
"""

from __future__ import annotations

import torch
import triton
import triton.language as tl

from usreg_kernels.ops.triton_backend import OPTIONS

CHUNK = 1024
"""Partial sums per program where many programs add up."""

MOST = 16 * CHUNK
"""Partial sums that one program takes: in four turns, of 4096 lanes each."""


@triton.jit
def _add_chunks(partials, weights, sums, weight_sums, count, HAS_WEIGHTS: tl.constexpr, BLOCK: tl.constexpr):
    """The sum of this program's chunk of the partial sums, in float64; and of the weights, if any."""
    index = tl.program_id(0).to(tl.int64) * BLOCK + tl.arange(0, BLOCK)
    inside = index < count
    values = tl.load(partials + index, mask=inside, other=0.0).to(tl.float64)
    if HAS_WEIGHTS:  # loads come before the first sum, so that the program waits once
        weight_values = tl.load(weights + index, mask=inside, other=0.0).to(tl.float64)
        tl.store(weight_sums + tl.program_id(0), tl.sum(weight_values))
    tl.store(sums + tl.program_id(0), tl.sum(values))


@triton.jit
def _finish(partials, weights, loss, divisor, count, divide_by, HAS_WEIGHTS: tl.constexpr, BLOCK: tl.constexpr):
    """loss = sum(partials) / divisor, in float64 and in one order; divisor: divide_by, or the sum of the weights.

    Weights that sum to 0 count as 1: the masked sum is 0 then.
    """
    index = tl.arange(0, BLOCK)
    totals = tl.zeros((BLOCK,), tl.float64)
    weight_totals = tl.zeros((BLOCK,), tl.float64)
    for start in range(0, count, BLOCK):
        inside = start + index < count
        totals += tl.load(partials + start + index, mask=inside, other=0.0).to(tl.float64)
        if HAS_WEIGHTS:
            weight_totals += tl.load(weights + start + index, mask=inside, other=0.0).to(tl.float64)
    by = tl.zeros((), tl.float64) + divide_by
    if HAS_WEIGHTS:
        weight = tl.sum(weight_totals)
        by = tl.where(weight == 0.0, 1.0, weight)
    tl.store(divisor, by)
    tl.store(loss, (tl.sum(totals) / by).to(tl.float32))


def _lanes(count: int) -> int:
    """How many partial sums the last program takes per turn; eight of them belong to a thread."""
    return 1024 if count <= 1024 else 4096


def _shorten(partials: torch.Tensor, weights: torch.Tensor | None) -> tuple[torch.Tensor, torch.Tensor | None]:
    """The sums of chunks, in float64: 1024 times fewer."""
    count = partials.numel()
    chunks = triton.cdiv(count, CHUNK)
    sums = partials.new_empty((1 if weights is None else 2, chunks), dtype=torch.float64)
    _add_chunks[(chunks,)](
        partials, partials if weights is None else weights, sums[0], sums[-1], count,
        HAS_WEIGHTS=weights is not None, BLOCK=CHUNK, **OPTIONS,
    )  # fmt: skip
    return sums[0], None if weights is None else sums[1]


def finish(
    partials: torch.Tensor, divide_by: int, weights: torch.Tensor | None = None
) -> tuple[torch.Tensor, torch.Tensor]:
    """The loss (float32 scalar) and what the sum was divided by (float64 scalar), both on the device.

    Args:
        partials: float32, one per program, contiguous, in any shape.
        divide_by: the divisor, where there are no weights.
        weights: partial sums of a mask, as many; with them the divisor is their sum, or 1 where that is 0.
    """
    loss = partials.new_empty(())
    divisor = partials.new_empty((), dtype=torch.float64)
    while partials.numel() > MOST:
        partials, weights = _shorten(partials, weights)
    count = partials.numel()
    _finish[(1,)](
        partials,
        partials if weights is None else weights,
        loss,
        divisor,
        count,
        divide_by,
        HAS_WEIGHTS=weights is not None,
        BLOCK=_lanes(count),
        num_warps=_lanes(count) // 256,
        **OPTIONS,
    )
    return loss, divisor
