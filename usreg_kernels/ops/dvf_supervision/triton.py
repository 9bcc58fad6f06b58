"""Supervision of a displacement field in Triton: both terms from one read of the predicted field.

One pass over the fields for the loss and one for the gradients. It saves nothing, and neither do its terms.
"""

from __future__ import annotations

from typing import Any

import torch
import triton
import triton.language as tl

from usreg_kernels.ops.dvf_supervision.reference import smoothness_params
from usreg_kernels.ops.gradient_smoothness.triton import loss_weights, penalty_along, pull_along
from usreg_kernels.ops.triton_fields import Weights, add_up, gradient_weights, load_real, locate, write

BLOCK = 512  # voxels per program


@triton.jit
def sum_terms(
    pred, gt, partials, pieces, D, H: tl.constexpr, W: tl.constexpr,
    mse_weight, weight_z, weight_y, weight_x,
    DIMS: tl.constexpr, WIDE: tl.constexpr, BLOCK: tl.constexpr,
):  # fmt: skip
    """The sum of this program's weighted squared errors and penalties. weight_*: of an axis' penalties."""
    _, first, index, inside, z, y, x = locate(pieces, D, H, W, WIDE, BLOCK)
    voxel = pred + first + index
    error = load_real(voxel, inside) - load_real(gt + first + index, inside)
    value = mse_weight * error * error
    value += penalty_along(voxel, x, W, 1, weight_x, inside, False, False)
    if DIMS >= 2:
        value += penalty_along(voxel, y, H, W, weight_y, inside, False, False)
    if DIMS >= 3:
        value += penalty_along(voxel, z, D, H * W, weight_z, inside, False, False)
    tl.store(partials + tl.program_id(0), tl.sum(value))


@triton.jit
def write_gradients(
    grad_output, pred, gt, pred_grad, gt_grad, pieces, D, H: tl.constexpr, W: tl.constexpr,
    mse_weight, weight_z, weight_y, weight_x,
    PRED: tl.constexpr, GT: tl.constexpr, DIMS: tl.constexpr, WIDE: tl.constexpr, BLOCK: tl.constexpr,
):  # fmt: skip
    """The gradients of this program's voxels; grad_output is multiplied in before rounding."""
    component, first, index, inside, z, y, x = locate(pieces, D, H, W, WIDE, BLOCK)
    voxel = pred + first + index
    scale = tl.load(grad_output)
    slope = 2.0 * mse_weight * (load_real(voxel, inside) - load_real(gt + first + index, inside))
    if PRED:
        pull = slope + pull_along(
            voxel, grad_output, component, z, y, x, D, H, W, x, W, 1, weight_x, inside, 2, DIMS, False, False, False
        )
        if DIMS >= 2:
            pull += pull_along(
                voxel, grad_output, component, z, y, x, D, H, W, y, H, W, weight_y, inside, 1, DIMS, False, False, False
            )
        if DIMS >= 3:
            pull += pull_along(
                voxel, grad_output, component, z, y, x, D, H, W, z, D, H * W, weight_z, inside, 0, DIMS, False, False,
                False,
            )  # fmt: skip
        tl.store(pred_grad + first + index, (scale * pull).to(pred_grad.dtype.element_ty), mask=inside)
    if GT:
        tl.store(gt_grad + first + index, (-scale * slope).to(gt_grad.dtype.element_ty), mask=inside)


def _weights(field: torch.Tensor, mse_weight: float, smooth_weight: float, spacing: list[float] | None) -> Weights:
    """The kernels' weights, of the error and of the axes."""
    axes = loss_weights(field, **smoothness_params(spacing)).terms
    return Weights([mse_weight, *[smooth_weight * weight for weight in axes]], field.numel())


def forward(
    pred_dvf: torch.Tensor, gt_dvf: torch.Tensor, *, needs_grad: list[bool], **params: Any
) -> tuple[torch.Tensor, list[torch.Tensor]]:
    """The loss."""
    pred, gt = pred_dvf.contiguous(), gt_dvf.contiguous()
    return add_up(sum_terms, [pred, gt], pred, _weights(pred, **params), BLOCK=BLOCK), []


def backward(
    grad_output: torch.Tensor,
    saved: list[torch.Tensor],
    pred_dvf: torch.Tensor,
    gt_dvf: torch.Tensor,
    *,
    needs_grad: list[bool],
    **params: Any,
) -> list[torch.Tensor]:
    """One pass over both fields for either gradient or both."""
    pred, gt = pred_dvf.contiguous(), gt_dvf.contiguous()
    gradients = [torch.empty_like(pred) if needed else None for needed in needs_grad]
    if any(needs_grad):
        weights, (to_pred, to_gt) = gradient_weights(_weights(pred, **params)), needs_grad
        write(write_gradients, [grad_output, pred, gt, *gradients], pred, weights, PRED=to_pred, GT=to_gt, BLOCK=BLOCK)
    return [gradient for gradient in gradients if gradient is not None]
