"""Supervision of a displacement field in plain PyTorch: the weighted sum of two other references."""

from __future__ import annotations

from typing import Any

import torch

from usreg_kernels.ops.dvf_mse import reference as mse
from usreg_kernels.ops.gradient_smoothness import reference as smoothness
from usreg_kernels.ops.operator import compute_dtype, loss_dtype


def smoothness_params(spacing: list[float] | None) -> dict[str, Any]:
    """The parameters of the smoothness: mean squared forward differences."""
    return {"penalty": "l2", "scheme": "forward", "spacing": spacing, "normalize": False, "reduction": "mean"}


def forward(
    pred_dvf: torch.Tensor,
    gt_dvf: torch.Tensor,
    *,
    mse_weight: float,
    smooth_weight: float,
    spacing: list[float] | None,
) -> torch.Tensor:
    """``mse_weight * mean((pred - gt)^2) + smooth_weight * smoothness(pred)``."""
    dtype = compute_dtype(pred_dvf)
    pred, gt = pred_dvf.to(dtype), gt_dvf.to(dtype)
    error = mse.forward(pred, gt, None, reduction="mean")
    roughness = smoothness.forward(pred, **smoothness_params(spacing))
    return (mse_weight * error + smooth_weight * roughness).to(loss_dtype(pred_dvf.dtype))


def backward(
    grad_output: torch.Tensor,
    pred_dvf: torch.Tensor,
    gt_dvf: torch.Tensor,
    *,
    needs_grad: list[bool],
    mse_weight: float,
    smooth_weight: float,
    spacing: list[float] | None,
) -> list[torch.Tensor]:
    """The sums of the two terms' gradients; that to ``gt`` has one term."""
    dtype = compute_dtype(pred_dvf)
    pred, gt, incoming = pred_dvf.to(dtype), gt_dvf.to(dtype), grad_output.to(dtype)
    gradients = mse.backward(mse_weight * incoming, pred, gt, None, needs_grad=needs_grad, reduction="mean")
    if needs_grad[0]:
        params = smoothness_params(spacing)
        (smooth,) = smoothness.backward(smooth_weight * incoming, pred, needs_grad=[True], **params)
        gradients[0] = gradients[0] + smooth
    return [gradient.to(pred_dvf.dtype) for gradient in gradients]
