"""DVF MSE in Triton: one pass over both fields for the loss, and one for the gradients.

Nothing but the divisor of the mean is saved: reading both fields again moves as many bytes as a gradient that forward
would write and backward would scale, and takes no memory.
"""

from __future__ import annotations

from typing import Any

import torch
import triton
import triton.language as tl

from usreg_kernels.ops.triton_backend import OPTIONS, device_guard
from usreg_kernels.ops.triton_reduction import finish

BLOCK = 2048  # elements per program


@triton.jit
def _offsets(size, pieces, BLOCK: tl.constexpr):
    """The row of this program, the first element of its piece, and which elements of it lie within the row."""
    row = tl.program_id(0) // pieces
    start = (tl.program_id(0) % pieces).to(tl.int64) * BLOCK
    index = tl.arange(0, BLOCK)
    return row, row.to(tl.int64) * size + start, start, index, start + index < size


@triton.jit
def sum_errors(
    pred, gt, mask, loss_map, partials, weights, size, pieces, rows_per_mask,
    HAS_MASK: tl.constexpr, KEEP_MAP: tl.constexpr, BLOCK: tl.constexpr,
):  # fmt: skip
    """Squared errors of a piece of a row, times the mask: their map, or their sum and the mask's."""
    row, first, start, index, inside = _offsets(size, pieces, BLOCK)
    error = tl.load(pred + first + index, mask=inside, other=0.0).to(tl.float32)
    error -= tl.load(gt + first + index, mask=inside, other=0.0).to(tl.float32)
    value = error * error
    if HAS_MASK:
        weight = tl.load(mask + (row // rows_per_mask).to(tl.int64) * size + start + index, mask=inside, other=0.0)
        value *= weight
        if not KEEP_MAP:
            tl.store(weights + tl.program_id(0), tl.sum(weight))
    if KEEP_MAP:
        tl.store(loss_map + first + index, value, mask=inside)
    else:
        tl.store(partials + tl.program_id(0), tl.sum(value))


@triton.jit
def write_gradients(
    grad_output, pred, gt, mask, divisor, pred_grad, gt_grad, size, pieces, rows_per_mask,
    HAS_MASK: tl.constexpr, HAS_MAP: tl.constexpr, PRED: tl.constexpr, GT: tl.constexpr, BLOCK: tl.constexpr,
):  # fmt: skip
    """The gradients of a piece of a row; grad_output is multiplied in before rounding."""
    row, first, start, index, inside = _offsets(size, pieces, BLOCK)
    gradient = tl.load(pred + first + index, mask=inside, other=0.0).to(tl.float32)
    gradient -= tl.load(gt + first + index, mask=inside, other=0.0).to(tl.float32)
    if HAS_MAP:
        gradient *= 2.0 * tl.load(grad_output + first + index, mask=inside, other=0.0)
    else:
        gradient *= (2.0 * tl.load(grad_output).to(tl.float64) / tl.load(divisor)).to(tl.float32)
    if HAS_MASK:
        gradient *= tl.load(mask + (row // rows_per_mask).to(tl.int64) * size + start + index, mask=inside, other=0.0)
    if PRED:
        tl.store(pred_grad + first + index, gradient.to(pred_grad.dtype.element_ty), mask=inside)
    if GT:
        tl.store(gt_grad + first + index, (-gradient).to(gt_grad.dtype.element_ty), mask=inside)


def _rows(field: torch.Tensor, mask: torch.Tensor | None) -> tuple[int, int, int]:
    """How a field is cut into rows that a mask's fit: a row's size, its pieces, and how many rows share the mask's."""
    shared = mask is not None and mask.shape[1] != field.shape[1]
    size = field[0, 0].numel() if shared else field.numel()
    return size, triton.cdiv(size, BLOCK), field.shape[1] if shared else 1


def forward(
    pred_dvf: torch.Tensor, gt_dvf: torch.Tensor, mask: torch.Tensor | None, *, reduction: str, **_: Any
) -> tuple[torch.Tensor, list[torch.Tensor]]:
    """The loss, and the divisor of the mean to save."""
    pred, gt = pred_dvf.contiguous(), gt_dvf.contiguous()
    weights = None if mask is None else mask.contiguous()
    keep_map = reduction == "none"
    loss = pred.new_empty(pred.shape if keep_map else (), dtype=torch.float32)
    if pred.numel() == 0:
        empty = float("nan") if reduction == "mean" else 0.0
        return loss.fill_(empty), [pred.new_ones((), dtype=torch.float64)]
    size, pieces, rows_per_mask = _rows(pred, weights)
    programs = pred.numel() // size * pieces
    partials = pred.new_empty((2, 0 if keep_map else programs), dtype=torch.float32)
    with device_guard(pred):
        sum_errors[(programs,)](
            pred, gt, weights, loss, partials[0], partials[1], size, pieces, rows_per_mask,
            HAS_MASK=weights is not None, KEEP_MAP=keep_map, BLOCK=BLOCK, **OPTIONS,
        )  # fmt: skip
        if keep_map:
            return loss, [pred.new_ones((), dtype=torch.float64)]
        if reduction == "sum":
            loss, divisor = finish(partials[0], 1)
        else:
            loss, divisor = finish(partials[0], pred.numel(), None if weights is None else partials[1])
    return loss, [divisor]


def saved_like(pred_dvf: torch.Tensor, *_: Any, **params: Any) -> list[torch.Tensor]:
    """The divisor: one float64 scalar."""
    return [pred_dvf.new_empty((), dtype=torch.float64)]


def backward(
    grad_output: torch.Tensor,
    saved: list[torch.Tensor],
    pred_dvf: torch.Tensor,
    gt_dvf: torch.Tensor,
    mask: torch.Tensor | None,
    *,
    needs_grad: list[bool],
    reduction: str,
) -> list[torch.Tensor]:
    """One pass over both fields for either gradient or both."""
    pred, gt = pred_dvf.contiguous(), gt_dvf.contiguous()
    weights = None if mask is None else mask.contiguous()
    gradients = [torch.empty_like(pred) if needed else None for needed in needs_grad]
    found = [gradient for gradient in gradients if gradient is not None]
    if not found or pred.numel() == 0:
        return found
    size, pieces, rows_per_mask = _rows(pred, weights)
    with device_guard(pred):
        write_gradients[(pred.numel() // size * pieces,)](
            grad_output.contiguous(), pred, gt, weights, saved[0], gradients[0], gradients[1], size, pieces,
            rows_per_mask, HAS_MASK=weights is not None, HAS_MAP=reduction == "none", PRED=needs_grad[0],
            GT=needs_grad[1], BLOCK=BLOCK, **OPTIONS,
        )  # fmt: skip
    return found
