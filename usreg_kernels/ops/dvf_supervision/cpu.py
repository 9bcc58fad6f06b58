"""Supervision of a displacement field in C++, one pass for both terms (``csrc/cpu/field_losses/field_losses.cpp``)."""

from __future__ import annotations

from typing import Any

import torch

from usreg_kernels.ops.compiled import StatelessBackend, define_stateless
from usreg_kernels.ops.dvf_supervision.reference import smoothness_params
from usreg_kernels.ops.field_weights import smoothness_weights

define_stateless("dvf_supervision", "Tensor pred_dvf, Tensor gt_dvf, float mse_weight, float[] weights")


class Cpu(StatelessBackend):
    """One pass over both fields each way."""

    op = "dvf_supervision"

    def arguments(
        self,
        pred_dvf: torch.Tensor,
        gt_dvf: torch.Tensor,
        mse_weight: float,
        smooth_weight: float,
        spacing: list[float] | None,
    ) -> tuple[Any, ...]:
        """What multiplies the squared errors, and the squared differences."""
        weights = smoothness_weights(pred_dvf.shape, **smoothness_params(spacing))
        return mse_weight, [smooth_weight * weight for weight in weights.penalties]
