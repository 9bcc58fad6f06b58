"""The compiled DVF MSE: C++ on CPUs (``csrc/cpu/dvf_mse.cpp``), CUDA C++ on GPUs (``csrc/cuda/dvf_mse.cuh``).

Nothing but the divisor of the mean is saved for backward: the op is bound by memory traffic, and reading both fields
again moves fewer bytes than writing a finished gradient in forward and reading it in backward.
"""

from __future__ import annotations

from typing import Any

import torch

from usreg_kernels.ops.contract import LIBRARY
from usreg_kernels.ops.native import REDUCTION_CODES, register

LIBRARY.define(
    "dvf_mse_native_forward(Tensor pred_dvf, Tensor gt_dvf, Tensor? mask, int reduction) -> (Tensor, Tensor)"
)
LIBRARY.define(
    "dvf_mse_native_backward(Tensor grad_output, Tensor pred_dvf, Tensor gt_dvf, Tensor? mask, Tensor weight, "
    "int reduction, bool pred_grad, bool gt_grad) -> (Tensor?, Tensor?)"
)


def forward(
    kernels: Any, pred_dvf: torch.Tensor, gt_dvf: torch.Tensor, mask: torch.Tensor | None, *, reduction: str, **_: Any
) -> tuple[torch.Tensor, list[torch.Tensor]]:
    """The loss, and the divisor of the mean to save."""
    loss, weight = kernels.dvf_mse_native_forward(pred_dvf, gt_dvf, mask, REDUCTION_CODES[reduction])
    return loss, [weight]


def saved_like(pred_dvf: torch.Tensor, *_: Any, **params: Any) -> list[torch.Tensor]:
    """The divisor: one float64 scalar."""
    return [pred_dvf.new_empty((), dtype=torch.float64)]


def backward(
    kernels: Any,
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
    gradients = kernels.dvf_mse_native_backward(
        grad_output, pred_dvf, gt_dvf, mask, saved[0], REDUCTION_CODES[reduction], *needs_grad
    )
    return [gradient for gradient, needed in zip(gradients, needs_grad, strict=True) if needed]


register("dvf_mse", forward, backward, saved_like)
