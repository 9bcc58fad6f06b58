"""Mutual information in Triton. Forward saves the derivative of each item's loss by its joint distribution.

That is a table of a few kilobytes per item, which backward looks up for every voxel.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import torch
import triton

from usreg_kernels.ops.mutual_information.reference import loss_like
from usreg_kernels.ops.mutual_information.triton_backward import (
    finish_ends,
    sum_ends,
    write_bspline_gradient,
    write_gaussian_gradients,
)
from usreg_kernels.ops.mutual_information.triton_forward import DIVISORS, add_up, count, find_range, finish_range, score
from usreg_kernels.ops.triton_backend import OPTIONS, device_guard
from usreg_kernels.ops.triton_reduction import finish

BLOCK = 64  # voxels whose windows are multiplied at once
GRADIENT_BLOCK = 32  # the same in the gaussian's backward pass, which keeps four windows
FLAT_BLOCK = 256  # voxels of a turn that makes no windows
LEAST_SPAN = 32 * BLOCK  # voxels of a program
MOST_SIDE = 32  # bins of an axis of a program's histogram
MOST_PROGRAMS = 1024
MOST_NUMBERS = 1 << 21  # of all programs' histograms
SCORE_BLOCK = 2048  # entries of a histogram at once


class Plan(NamedTuple):
    """A call: its contiguous tensors, and how it is cut into programs.

    Attributes:
        pred, target: (B, C, spatial...).
        mask: or None.
        bins, falloff: numbers of the kernels; falloff is 1 / (2 sigma^2).
        gaussian: or b-spline.
        side, tiles: bins along an axis of a tile of the histogram, and how many there are.
        parts: programs per item and tile.
        span: voxels of a program.
    """

    pred: torch.Tensor
    target: torch.Tensor
    mask: torch.Tensor | None
    bins: int
    gaussian: bool
    falloff: float
    side: int
    tiles: int
    parts: int
    span: int

    @property
    def items(self) -> int:
        """The batch."""
        return self.pred.shape[0]

    @property
    def size(self) -> int:
        """The voxels of an item, in all channels."""
        return self.pred.shape[1:].numel()

    @property
    def pad(self) -> int:
        """The bins of a histogram in memory; those behind the last one are 0."""
        return self.side * self.tiles

    @property
    def images(self) -> tuple[torch.Tensor | None, ...]:
        """What every kernel reads."""
        return self.pred, self.target, self.mask

    @property
    def sizes(self) -> tuple[int, int]:
        """The voxels of an item, and of a channel."""
        return self.size, self.pred.shape[2:].numel()

    def constants(self, block: int) -> dict[str, Any]:
        """Constants for the compilation of each kernel that reads the images."""
        return {
            "HAS_MASK": self.mask is not None,
            "SHARED": self.mask is not None and self.mask.shape[1] != self.pred.shape[1],
            "WIDE": self.pred.numel() + max(self.span, FLAT_BLOCK) >= 2**31,
            "BLOCK": block,
            **OPTIONS,
        }


def make_plan(
    pred: torch.Tensor,
    target: torch.Tensor,
    mask: torch.Tensor | None,
    num_bins: int,
    kernel_type: str,
    sigma_ratio: float,
) -> Plan:
    """The plan of a call, which depends on shapes and parameters only: the same bits on any GPU."""
    padded = max(16, triton.next_power_of_2(num_bins))
    side = min(MOST_SIDE, padded)
    size = pred.shape[1:].numel()
    most = min(MOST_PROGRAMS, MOST_NUMBERS // padded**2) // max(1, pred.shape[0])
    span = BLOCK * triton.cdiv(max(LEAST_SPAN, triton.cdiv(size, max(1, most))), BLOCK)
    return Plan(
        pred.contiguous(),
        target.contiguous(),
        None if mask is None else mask.contiguous(),
        num_bins,
        kernel_type == "gaussian",
        0.5 / sigma_ratio**2,
        side,
        padded // side,
        max(1, triton.cdiv(size, span)),
        span,
    )


def _count(plan: Plan, numbers: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """The joint histograms (B, pad, pad), and the tallies of all programs."""
    pred, programs = plan.pred, plan.items * plan.parts
    if not plan.gaussian:
        partials = pred.new_empty((5, programs), dtype=torch.float32)
        find_range[(programs,)](
            *plan.images, partials, *plan.sizes, plan.span, plan.parts, **plan.constants(FLAT_BLOCK)
        )  # fmt: skip
        finish_range[(1,)](partials, numbers, programs, plan.bins, BLOCK=1024, **OPTIONS)
    histograms = pred.new_empty((programs, plan.pad, plan.pad), dtype=torch.float64)
    tallies = pred.new_empty((3, programs), dtype=torch.float64)
    count[(programs * plan.tiles**2,)](
        *plan.images, numbers, histograms, tallies, *plan.sizes, plan.span, plan.parts, plan.bins, plan.falloff,
        GAUSSIAN=plan.gaussian, TILES=plan.tiles, SIDE=plan.side,
        **plan.constants(BLOCK),
    )  # fmt: skip
    joint = pred.new_empty((plan.items, plan.pad, plan.pad), dtype=torch.float64)
    add_up[(plan.items * plan.pad**2 // 64,)](histograms, joint, plan.parts, PAD=plan.pad, TURN=32, BLOCK=64, **OPTIONS)
    return joint, tallies


def forward(
    pred: torch.Tensor,
    target: torch.Tensor,
    mask: torch.Tensor | None,
    *,
    needs_grad: list[bool],
    num_bins: int,
    kernel_type: str,
    normalized: bool,
    sigma_ratio: float,
    reduction: str,
    smooth_nr: float,
    smooth_dr: float,
) -> tuple[torch.Tensor, list[torch.Tensor]]:
    """The loss, and where a gradient is needed the table and the numbers."""
    saved = saved_like(pred, needs_grad=needs_grad, num_bins=num_bins)
    if pred.shape[0] == 0:
        loss = loss_like(pred, reduction=reduction)
        return loss.fill_(float("nan") if reduction == "mean" else 0.0), saved
    plan = make_plan(pred, target, mask, num_bins, kernel_type, sigma_ratio)
    slopes, numbers = saved or [None, _new_numbers(pred)]
    with device_guard(pred):
        joint, tallies = _count(plan, numbers)
        values = pred.new_empty(plan.items, dtype=torch.float32)
        score[(plan.items,)](
            joint, tallies, values, slopes, numbers, plan.parts, tallies.shape[1], smooth_nr, smooth_dr,
            NORMALIZED=normalized, HAS_MASK=mask is not None, SAVES=bool(saved),
            PAD=plan.pad, BLOCK=min(SCORE_BLOCK, plan.pad**2), **OPTIONS,
        )  # fmt: skip
        if reduction == "none":
            return values, saved
        return finish(values, plan.items if reduction == "mean" else 1)[0], saved


def _new_numbers(pred: torch.Tensor) -> torch.Tensor:
    return pred.new_empty(DIVISORS.value + pred.shape[0], dtype=torch.float64)


def saved_like(pred: torch.Tensor, *others: Any, needs_grad: list[bool], num_bins: int, **params: Any) -> list[Any]:
    """The derivative by the joint distribution (B, pad, pad), and the numbers of ranges and divisors."""
    if not any(needs_grad):
        return []
    pad = max(16, triton.next_power_of_2(num_bins))
    return [pred.new_empty((pred.shape[0], pad, pad), dtype=torch.float32), _new_numbers(pred)]


def backward(
    grad_output: torch.Tensor,
    saved: list[torch.Tensor],
    pred: torch.Tensor,
    target: torch.Tensor,
    mask: torch.Tensor | None,
    *,
    needs_grad: list[bool],
    num_bins: int,
    kernel_type: str,
    sigma_ratio: float,
    reduction: str,
    **params: Any,
) -> list[torch.Tensor]:
    """The gradients that are needed."""
    plan = make_plan(pred, target, mask, num_bins, kernel_type, sigma_ratio)
    share = 1.0 / max(1, plan.items) if reduction == "mean" else 1.0
    if not plan.gaussian:
        found = [_bspline_gradient(plan, grad_output.contiguous(), saved, share)] if needs_grad[0] else []
        return found + [torch.zeros_like(plan.target)] * needs_grad[1]
    to_pred, to_target = (torch.empty_like(plan.pred) if needed else None for needed in needs_grad)
    if pred.numel() and any(needs_grad):
        pieces = triton.cdiv(plan.size, GRADIENT_BLOCK)
        with device_guard(pred):
            write_gaussian_gradients[(plan.items * pieces,)](
                grad_output.contiguous(), *saved, *plan.images, to_pred, to_target,
                *plan.sizes, pieces, plan.bins, plan.falloff, share,
                TO_PRED=needs_grad[0], TO_TARGET=needs_grad[1], TILES=plan.tiles, SIDE=plan.side,
                PER_ITEM=reduction == "none", **plan.constants(GRADIENT_BLOCK),
            )  # fmt: skip
    return [gradient for gradient in (to_pred, to_target) if gradient is not None]


def _bspline_gradient(plan: Plan, grad: torch.Tensor, saved: list[torch.Tensor], share: float) -> torch.Tensor:
    gradient = torch.empty_like(plan.pred)
    if gradient.numel() == 0:
        return gradient
    slopes, numbers = saved
    programs, pieces = plan.items * plan.parts, triton.cdiv(plan.size, FLAT_BLOCK)
    partials, ends = (numbers.new_empty(shape) for shape in ((2, programs), (2,)))
    constants = {"PER_ITEM": grad.ndim > 0, "PAD": plan.pad, **plan.constants(FLAT_BLOCK)}
    with device_guard(gradient):
        sum_ends[(programs,)](
            grad, slopes, numbers, *plan.images, partials, *plan.sizes, plan.span, plan.parts, plan.bins, share,
            **constants,
        )  # fmt: skip
        finish_ends[(1,)](partials, numbers, ends, programs, BLOCK=1024, **OPTIONS)
        write_bspline_gradient[(plan.items * pieces,)](
            grad, slopes, numbers, ends, *plan.images, gradient, *plan.sizes, pieces, plan.bins, share, **constants
        )  # fmt: skip
    return gradient
