"""The compiled DVF MSE: C++ on CPUs (``csrc/cpu/dvf_mse``), CUDA C++ on GPUs (``csrc/cuda/dvf_mse``).

Nothing but the divisor of the mean is saved for backward: the op is bound by memory traffic, and reading both fields
again moves fewer bytes than writing a finished gradient in forward and reading it in backward.
"""

from __future__ import annotations

from typing import Any

import torch

from usreg_kernels.ops.compiled import REDUCTION_CODES, CompiledBackend, only_needed
from usreg_kernels.ops.operator import LIBRARY

LIBRARY.define(
    "dvf_mse_native_forward(Tensor pred_dvf, Tensor gt_dvf, Tensor? mask, int reduction) -> (Tensor, Tensor)"
)
LIBRARY.define(
    "dvf_mse_native_backward(Tensor grad_output, Tensor pred_dvf, Tensor gt_dvf, Tensor? mask, Tensor weight, "
    "int reduction, bool pred_grad, bool gt_grad) -> (Tensor?, Tensor?)"
)


class Native(CompiledBackend):
    """One pass over both fields each way."""

    def forward(
        self,
        pred_dvf: torch.Tensor,
        gt_dvf: torch.Tensor,
        mask: torch.Tensor | None,
        *,
        needs_grad: list[bool],
        reduction: str,
    ) -> tuple[torch.Tensor, list[torch.Tensor]]:
        """The loss, and the divisor of the mean to save."""
        loss, weight = self.kernels.dvf_mse_native_forward(pred_dvf, gt_dvf, mask, REDUCTION_CODES[reduction])
        return loss, [weight]

    def saved_like(self, pred_dvf: torch.Tensor, *others: Any, **params: Any) -> list[torch.Tensor]:
        """The divisor: one float64 scalar."""
        return [pred_dvf.new_empty((), dtype=torch.float64)]

    def backward(
        self,
        grad_output: torch.Tensor,
        saved: list[torch.Tensor],
        *tensors: torch.Tensor | None,
        needs_grad: list[bool],
        reduction: str,
    ) -> list[torch.Tensor]:
        """Either gradient or both."""
        gradients = self.kernels.dvf_mse_native_backward(
            grad_output, *tensors, saved[0], REDUCTION_CODES[reduction], *needs_grad
        )
        return only_needed(gradients, needs_grad)
