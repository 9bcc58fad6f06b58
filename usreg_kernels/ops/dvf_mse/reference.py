"""Mean squared error between two displacement fields in plain PyTorch: the oracle of every other backend."""

from __future__ import annotations

import torch

from usreg_kernels.ops.operator import compute_dtype, loss_dtype
from usreg_kernels.ops.reduction import reduce_map, reduction_gradient


def forward(pred_dvf: torch.Tensor, gt_dvf: torch.Tensor, mask: torch.Tensor | None, *, reduction: str) -> torch.Tensor:
    """The squared error of each component, reduced; ``F.mse_loss`` where there is no mask."""
    dtype = compute_dtype(pred_dvf)
    error = pred_dvf.to(dtype) - gt_dvf.to(dtype)
    return reduce_map(error**2, mask, reduction).to(loss_dtype(pred_dvf.dtype))


def backward(
    grad_output: torch.Tensor,
    pred_dvf: torch.Tensor,
    gt_dvf: torch.Tensor,
    mask: torch.Tensor | None,
    *,
    needs_grad: list[bool],
    reduction: str,
) -> list[torch.Tensor]:
    """``2 (pred - gt)`` times the incoming gradient, and its negative for ``gt``."""
    dtype = compute_dtype(pred_dvf)
    error = pred_dvf.to(dtype) - gt_dvf.to(dtype)
    gradient = 2.0 * error * reduction_gradient(grad_output.to(dtype), error.shape, mask, reduction)
    return [sign * gradient.to(pred_dvf.dtype) for sign, needed in zip((1.0, -1.0), needs_grad, strict=True) if needed]
