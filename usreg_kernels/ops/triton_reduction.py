"""The second stage of every reduction in Triton: partial sums, one per program of the first stage, to one loss."""

from __future__ import annotations

import torch
import triton
import triton.language as tl

from usreg_kernels.ops.triton_backend import OPTIONS

_BLOCK = 1024


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


def finish(
    partials: torch.Tensor, divide_by: int, weights: torch.Tensor | None = None
) -> tuple[torch.Tensor, torch.Tensor]:
    """The loss (float32 scalar) and what the sum was divided by (float64 scalar), both on the device.

    Args:
        partials: float32, one per program, in any shape.
        divide_by: the divisor, where there are no weights.
        weights: partial sums of a mask; with them the divisor is their sum, or 1 where that is 0.
    """
    loss = partials.new_empty(())
    divisor = partials.new_empty((), dtype=torch.float64)
    _finish[(1,)](
        partials,
        partials if weights is None else weights,
        loss,
        divisor,
        partials.numel(),
        divide_by,
        HAS_WEIGHTS=weights is not None,
        BLOCK=_BLOCK,
        **OPTIONS,
    )
    return loss, divisor
