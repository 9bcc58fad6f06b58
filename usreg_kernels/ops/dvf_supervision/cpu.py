"""Supervision of a displacement field in C++, one pass for both terms (``csrc/cpu/field_losses/field_losses.cpp``)."""

from __future__ import annotations

from typing import Any

import torch

from usreg_kernels.ops.compiled import CompiledBackend, only_needed
from usreg_kernels.ops.gradient_smoothness.native import scales
from usreg_kernels.ops.operator import LIBRARY

_INPUTS = "Tensor pred_dvf, Tensor gt_dvf, float mse_weight, float smooth_weight, float[] scales"
LIBRARY.define(f"dvf_supervision_native_forward({_INPUTS}) -> Tensor")
LIBRARY.define(
    f"dvf_supervision_native_backward(Tensor grad_output, {_INPUTS}, bool pred_grad, bool gt_grad) "
    "-> (Tensor?, Tensor?)"
)


def _arguments(
    pred_dvf: torch.Tensor, mse_weight: float, smooth_weight: float, spacing: list[float] | None
) -> tuple[Any, ...]:
    """The operators' arguments that are no tensors, but for the flags."""
    return mse_weight, smooth_weight, scales(pred_dvf.shape, None if spacing is None else tuple(spacing), False)


class Cpu(CompiledBackend):
    """One pass over both fields each way; nothing is saved."""

    def forward(
        self, pred_dvf: torch.Tensor, gt_dvf: torch.Tensor, *, needs_grad: list[bool], **params: Any
    ) -> tuple[torch.Tensor, list[torch.Tensor]]:
        """The loss."""
        return self.kernels.dvf_supervision_native_forward(pred_dvf, gt_dvf, *_arguments(pred_dvf, **params)), []

    def backward(
        self,
        grad_output: torch.Tensor,
        saved: list[torch.Tensor],
        pred_dvf: torch.Tensor,
        gt_dvf: torch.Tensor,
        *,
        needs_grad: list[bool],
        may_overwrite: bool = False,
        **params: Any,
    ) -> list[torch.Tensor]:
        """Either gradient or both."""
        gradients = self.kernels.dvf_supervision_native_backward(
            grad_output, pred_dvf, gt_dvf, *_arguments(pred_dvf, **params), *needs_grad
        )
        return only_needed(gradients, needs_grad)
